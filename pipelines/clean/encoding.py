"""Wrongly decoded text: UTF-8 read as Windows-1252 or CP949, CP949 read as Latin-1, bytes that are
no text."""

import re

# UTF-8 read as Latin-1 or Windows-1252: the letter of a lead byte, then the characters of
# continuation bytes. One of these must be a character that no text has right after such a letter:
# «così», “così” and «gâché » (with its no-break space) are fine.
ODD = "\x80-\x9f¡-ª¬-º¼-¿€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ"
ANY = ODD + "‘’“”…–—\xa0«»"
DAMAGED = "|".join(
    (
        "\ufffd",
        f"[ÃÂ][{ODD}]|[a-z,.;:!?*>)-]Â[\xa0 ]",
        # Hangul lost to a character set without it.
        r"(?:\?{2,6}[ .,!]{1,2}){4,}",
        f"[â-ï](?:[{ANY}][{ODD}]|[{ODD}][{ANY}])",
        # EUC-KR or CP949 read as Latin-1.
        "[\xa1-\xff]{6,}",
        # Cyrillic, Greek or Arabic in UTF-8 read as Windows-1252.
        f"(?:[ÐÑÎÏØÙ][{ODD}]){{2,}}",
        # Emoji in UTF-8 read as Windows-1252.
        "ð[Ÿ\x9f]",
        # UTF-8 read as Mac Roman.
        "‚Ä[ôúùìîòö¢¶]|‚Ñ¢|√[©®†°¥≠¨ßºå∂]",
        # UTF-8 read as Windows-1251.
        'вЂ[”™“ќў"¦˜њ]|в„ў|Г[©ЁЎ¶±јў]',
        # Korean in UTF-8 read as CP949: two syllables on one line that Korean does not have.
        "[쓣뒗뿉땲뒿븯쏆븣쑝젮뵾][^\n]{0,60}[쓣뒗뿉땲뒿븯쏆븣쑝젮뵾]|[?]{2,}[가-힣][a-z]",
        # U+FFFD in UTF-8 read as CP949.
        "占쏙|쏙옙",
        # C1 control characters except U+0085, which is a line end.
        "[\x80-\x84\x86-\x9f]",
        # Accented letters read as CP949.
        "[A-Za-z][가-힣][a-z]{1,12}\\b|\\b[A-Za-z]{2,12}[가-힣][a-z]",
    )
)
_AS_CP949 = re.compile("[A-Za-z][가-힣][a-z]{1,12}\\b|\\b[A-Za-z]{2,12}[가-힣][a-z]", re.ASCII)
# Words of a text about encodings.
_SUBJECT = re.compile(
    r"utf-?8|\bencoding|\bdecod|mojibake|\bunicode|latin-?1|iso-?8859|cp-?125[0-9]|windows-125|cp949|euc-kr|"
    r"replacement character|U\+FFFD|garbled|"
    r"인코딩|디코딩|깨진 ?글|깨져|깨짐|유니코드|strip_accents|remove_accents",
    re.IGNORECASE,
)
# So few damaged places in a text about encodings are its examples.
_FEW = 4
# A text with less than this share of Hangul letters is not Korean.
_SOME_HANGUL = 0.3


def judge(texts: str, places: list[str]) -> list[str]:
    """Those of the suspicious `places` that are damaged. A text about encodings may show a few as
    examples."""
    if len(places) <= _FEW and "\ufffd" * 3 not in texts and _SUBJECT.search(texts):
        return []
    return [place for place in places if not _AS_CP949.fullmatch(place) or _is_latin(texts)]


def _is_latin(text: str) -> bool:
    """Whether Hangul is so rare in a text that a syllable inside a word must be damage."""
    letters = sum(map(str.isalpha, text))
    hangul = sum("가" <= sign <= "힣" for sign in text)
    return hangul < _SOME_HANGUL * letters
