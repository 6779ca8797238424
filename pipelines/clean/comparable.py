"""Text in the form in which it is compared, the same in Python and SQL: without invisible
characters and differences of width.

Only the compared form loses them; the text itself keeps the joiners that scripts and emoji need.
Invisible are Unicode's format characters (Cf), default-ignorable characters (variation selectors,
tags, Hangul fillers) and control characters.
"""

import re
import unicodedata

# First and last of each range. They are listed so that results do not depend on Python's Unicode
# version.
_UNSEEN_RANGES = (
    (0x00, 0x08), (0x0E, 0x1B), (0x7F, 0x84), (0x86, 0x9F), (0xAD, 0xAD), (0x34F, 0x34F), (0x600, 0x605), (0x61C, 0x61C),
    (0x6DD, 0x6DD), (0x70F, 0x70F), (0x890, 0x891), (0x8E2, 0x8E2), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
# The content of a character class, for DuckDB's RE2.
UNSEEN = "".join(rf"\x{{{first:X}}}-\x{{{last:X}}}" for first, last in _UNSEEN_RANGES)
_UNSEEN = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _UNSEEN_RANGES) + "]")


def _other_widths() -> dict[str, str]:
    """Each full-width or half-width character → the usual one: Ａ → A, ｶ → カ. NFKC would also turn
    2² into 22 and change ㅋ."""
    blocks = [*range(0xFF01, 0xFFA0), *range(0xFFA1, 0xFFE7)]
    decomposed = {chr(code): unicodedata.decomposition(chr(code)).partition("> ")[2] for code in blocks}
    return {character: chr(int(usual, 16)) for character, usual in decomposed.items() if usual}


_WIDTHS = _other_widths()
_TO_USUAL = str.maketrans(_WIDTHS)
_FROM, _TO_QUOTED = "".join(_WIDTHS), "".join(_WIDTHS.values()).replace("'", "''")
_ODD = r"\x{FF01}-\x{FFE6}" + UNSEEN


def visible(text: str) -> str:
    """`text` without invisible characters."""
    return text if text.isascii() and text.isprintable() else _UNSEEN.sub("", text)


def comparable(normalized: str) -> str:
    """A form that is equal for texts that look the same. `normalized`: NFC, lower case, one space
    between words."""
    if normalized.isascii() and normalized.isprintable():
        return normalized
    usual = visible(normalized).translate(_TO_USUAL)
    return " ".join(unicodedata.normalize("NFC", usual).split())


def comparable_in_sql(normalized: str) -> str:
    """SQL for `comparable` of the expression `normalized`."""
    return _folded_in_sql(
        normalized, odd=_ODD, folded=f"translate({_visible_in_sql(normalized)}, '{_FROM}', '{_TO_QUOTED}')"
    )


def group_in_sql(text: str) -> str:
    """SQL for the form of `text` by which records are grouped for the split: without invisible
    characters.

    Widths are kept, so that no record changes its side.
    """
    return _folded_in_sql(text, odd=UNSEEN, folded=_visible_in_sql(text))


def _visible_in_sql(text: str) -> str:
    return f"regexp_replace({text}, '[{UNSEEN}]', '', 'g')"


def _folded_in_sql(text: str, *, odd: str, folded: str) -> str:
    # Most texts have no odd character; for them one search is enough.
    one_space = rf"trim(regexp_replace(nfc_normalize({folded}), '\s+', ' ', 'g'))"
    return f"CASE WHEN regexp_matches({text}, '[{odd}]') THEN {one_space} ELSE {text} END"
