"""The prose of a text, without code, markup, tables and quotations, since rules about prose do not
apply to those."""

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
    # The end of a line in C-like languages.
    r"[{};]\s*(?://.*|\#.*|/\*.*)?$"
    r"|^\s*(?:def|class|elif|else|try|except|finally|with|while|for|if|async|match|case)\b[^.?!]*:\s*(?:\#.*)?$"
    r"|^\s*(?:import \w|from [\w.]+ import|return\b|print\(|raise \w|\#include|using \w|package \w|public |private |"
    r"static |"
    r"const \w+ ?=|let \w+ ?=|var \w+ ?=|function\b|fn |func |echo |sudo |npm |pip |git |docker |curl |cd |@\w+|"
    r"\$ \w|>>> )"
    r"|^\s*(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE (?:TABLE|VIEW|INDEX)|ALTER TABLE|DROP TABLE|FROM|WHERE|"
    r"GROUP BY|ORDER BY|"
    r"(?:LEFT |INNER |RIGHT )?JOIN|HAVING|LIMIT|VALUES)\b"
    r"|^\s*(?://|/\*|\*/|\#!|\#\s?\w.*[=(])"
    # An assignment.
    r"|^\s*[\w.\[\]\"'*&]+\s*(?:[-+*/|&]|:)?=(?!=)\s*\S"
    # A call.
    r"|^\s*[\w.]+\([^()]*(?:\([^()]*\)[^()]*)*\)\s*;?\s*(?:\#.*)?$"
    # JSON, or a dictionary.
    r"|^\s*[\"'][\w-]+[\"']\s*:\s*[\"'\[{\d].*$|^\s*[\w-]+:\s*[\"'\[{\d].*,$"
    r"|^\s*</?[a-zA-Z!][^<>]*>|[\w\"'/]>\s*$"
    r"|=>|::|->\s*\w|\\[dwsb]|&&|\|\|"
)
SIGNS = re.compile(r"[{};=<>_\\|&$#*/^~]|\w\(|\w\[")
# Share of typical code characters among the visible ones from which a line is code.
SIGN_SHARE = 0.15
# Share of visible characters in code from which an answer is code.
CODE_SHARE = 0.5


def prose(text: str) -> str:
    """The text without code, markup and tables; the remaining lines stay lines."""
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
    # Markdown and hashtags use some of the same characters.
    bare = re.sub(r"^[\s*#>-]+|[*_]{1,3}|#(?=\w)", "", line)
    return len(SIGNS.findall(bare)) >= SIGN_SHARE * max(1, len(bare) - bare.count(" "))


def code_share(text: str) -> float:
    """The share of the visible characters that are in code; 0 for an empty text."""
    visible = _visible(text)
    if not visible:
        return 0.0
    outside = INLINE.sub(" ", FENCED.sub("\n", text))
    lines = sum(_visible(line) for line in outside.split("\n") if not is_code_line(line))
    return 1 - lines / visible


def is_code(text: str) -> bool:
    return code_share(text) >= CODE_SHARE


def unquoted(text: str) -> str:
    """The text without quotations."""
    return QUOTED.sub(" ", text)


def _visible(text: str) -> int:
    return len(text) - sum(map(text.count, " \n\t"))


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text, without blank ones."""
    return [part.strip() for part in re.split(r"(?<=[.!?。！？])[\"'”’)]*\s+|\n+", text) if part.strip()]
