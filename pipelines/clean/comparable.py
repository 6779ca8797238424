"""Text as it is compared, alike in Python and in SQL: without what nobody sees, and without differences of width.

Only what is compared loses it; the text itself keeps the joiners that scripts and emoji need. What nobody sees: Unicode's format
characters (Cf), those that it calls default ignorable (variation selectors, tags, the fillers of Hangul), control characters.
"""

import re
import unicodedata

# first and last of each range, listed so that Python's Unicode version changes no result
_UNSEEN_RANGES = (
    (0x00, 0x08), (0x0E, 0x1B), (0x7F, 0x84), (0x86, 0x9F), (0xAD, 0xAD), (0x34F, 0x34F), (0x600, 0x605), (0x61C, 0x61C),
    (0x6DD, 0x6DD), (0x70F, 0x70F), (0x890, 0x891), (0x8E2, 0x8E2), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
# a class of regular expressions, for Python and for DuckDB's RE2
UNSEEN = "".join(rf"\x{{{first:X}}}-\x{{{last:X}}}" for first, last in _UNSEEN_RANGES)
_UNSEEN = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _UNSEEN_RANGES) + "]")


def _other_widths() -> dict[str, str]:
    """Each character of full or half width → the usual one: Ａ → A, ｶ → カ. NFKC would also make 22 of 2², and change ㅋ."""
    blocks = [*range(0xFF01, 0xFFA0), *range(0xFFA1, 0xFFE7)]
    decomposed = {chr(code): unicodedata.decomposition(chr(code)).partition("> ")[2] for code in blocks}
    return {character: chr(int(usual, 16)) for character, usual in decomposed.items() if usual}


_WIDTHS = _other_widths()
_TO_USUAL = str.maketrans(_WIDTHS)
_FROM, _TO_QUOTED = "".join(_WIDTHS), "".join(_WIDTHS.values()).replace("'", "''")
_ODD = r"\x{FF01}-\x{FFE6}" + UNSEEN


def visible(text: str) -> str:
    """`text` without what nobody sees."""
    return text if text.isascii() and text.isprintable() else _UNSEEN.sub("", text)


def comparable(normalized: str) -> str:
    """What two texts have in common where they look the same. `normalized`: NFC, lower case, one space between words."""
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
    """SQL for `text` as records are grouped by for the split: without what nobody sees. Widths stay, since a record's side must."""
    return _folded_in_sql(text, odd=UNSEEN, folded=_visible_in_sql(text))


def _visible_in_sql(text: str) -> str:
    return f"regexp_replace({text}, '[{UNSEEN}]', '', 'g')"


def _folded_in_sql(text: str, *, odd: str, folded: str) -> str:
    # a text without any odd character, as most are, costs one look
    one_space = rf"trim(regexp_replace(nfc_normalize({folded}), '\s+', ' ', 'g'))"
    return f"CASE WHEN regexp_matches({text}, '[{odd}]') THEN {one_space} ELSE {text} END"
