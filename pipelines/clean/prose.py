"""What of a text is prose: code, markup, tables and quotations are told apart, since rules about prose do not hold in them."""

import re

FENCED = re.compile(r"(?:```|~~~).*?(?:```|~~~|\Z)", re.DOTALL)
INLINE = re.compile(r"`[^`\n]+`")
TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9-]*(?:\s[^<>\n]*)?/?>|<!--.*?-->|<!DOCTYPE[^>]*>", re.DOTALL | re.IGNORECASE)
URL = re.compile(r"(?:https?://|www\.)\S+")
QUOTED = re.compile(
    r"\"[^\"\n]{2,}\"|“[^”\n]{2,}”|«[^»\n]{2,}»|「[^」\n]{2,}」|『[^』\n]{2,}』|(?<!\w)'[^'\n]{2,}'(?!\w)|"
    r"‘[^’\n]{2,}’(?!\w)"
)
TABLE_LINE = re.compile(r"^\s*\|.*\|\s*$|^(?:[^\n|]*\S ?\|){2,}[^\n|]*$|^\s*[-+=|: ]{3,}$|\t")
CODE_LINE = re.compile(
    r"[{};]\s*(?://.*|\#.*|/\*.*)?$"  # how lines of C and its relatives end
    r"|^\s*(?:def|class|elif|else|try|except|finally|with|while|for|if|async|match|case)\b[^.?!]*:\s*(?:\#.*)?$"
    r"|^\s*(?:import \w|from [\w.]+ import|return\b|print\(|raise \w|\#include|using \w|package \w|public |private |"
    r"static |"
    r"const \w+ ?=|let \w+ ?=|var \w+ ?=|function\b|fn |func |echo |sudo |npm |pip |git |docker |curl |cd |@\w+|"
    r"\$ \w|>>> )"
    r"|^\s*(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE (?:TABLE|VIEW|INDEX)|ALTER TABLE|DROP TABLE|FROM|WHERE|"
    r"GROUP BY|ORDER BY|"
    r"(?:LEFT |INNER |RIGHT )?JOIN|HAVING|LIMIT|VALUES)\b"
    r"|^\s*(?://|/\*|\*/|\#!|\#\s?\w.*[=(])"
    r"|^\s*[\w.\[\]\"'*&]+\s*(?:[-+*/|&]|:)?=(?!=)\s*\S"  # an assignment
    r"|^\s*[\w.]+\([^()]*(?:\([^()]*\)[^()]*)*\)\s*;?\s*(?:\#.*)?$"  # a call
    r"|^\s*[\"'][\w-]+[\"']\s*:\s*[\"'\[{\d].*$|^\s*[\w-]+:\s*[\"'\[{\d].*,$"  # JSON, a dictionary
    r"|^\s*</?[a-zA-Z!][^<>]*>|[\w\"'/]>\s*$"
    r"|=>|::|->\s*\w|\\[dwsb]|&&|\|\|"
)
SIGNS = re.compile(r"[{};=<>_\\|&$#*/^~]|\w\(|\w\[")
SIGN_SHARE = 0.15  # of a line's visible characters being signs of code
CODE_SHARE = 0.5  # of an answer's visible characters in code: then it is code


def prose(text: str) -> str:
    """The text without code, markup and tables; line by line, so that what is left keeps its lines."""
    if not text:
        return text
    text = INLINE.sub(" ", FENCED.sub("\n", text))
    if "<" in text:
        text = TAG.sub(" ", text)
    return "\n".join(line for line in text.split("\n") if not (is_code_line(line) or TABLE_LINE.search(line)))


def is_code_line(line: str) -> bool:
    visible = len(line) - line.count(" ")
    if visible < 2:
        return False
    if CODE_LINE.search(line):
        return True
    bare = re.sub(r"^[\s*#>-]+|[*_]{1,3}|#(?=\w)", "", line)  # signs of Markdown, and of hashtags
    return len(SIGNS.findall(bare)) >= SIGN_SHARE * max(1, len(bare) - bare.count(" "))


def code_share(text: str) -> float:
    """The share of the visible characters that stand in code; 0 for an empty text."""
    visible = _visible(text)
    if not visible:
        return 0.0
    outside = INLINE.sub(" ", FENCED.sub("\n", text))
    lines = sum(_visible(line) for line in outside.split("\n") if not is_code_line(line))
    return 1 - lines / visible


def is_code(text: str) -> bool:
    return code_share(text) >= CODE_SHARE


def unquoted(text: str) -> str:
    """The text without what stands in quotation marks."""
    return QUOTED.sub(" ", text)


def _visible(text: str) -> int:
    return len(text) - sum(map(text.count, " \n\t"))


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text, without blank ones."""
    return [part.strip() for part in re.split(r"(?<=[.!?。！？])[\"'”’)]*\s+|\n+", text) if part.strip()]
