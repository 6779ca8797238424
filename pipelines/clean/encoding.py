"""Text that was decoded wrongly: UTF-8 read as Windows-1252 or CP949, CP949 read as Latin-1, bytes that were no text at all."""

import re

# UTF-8 that was read as Latin-1 or Windows-1252: a lead byte's letter, then signs that stand for continuation bytes. One of
# them must be a sign that no text has right after such a letter: «così», “così” and «gâché » (with its no-break space) are fine.
ODD = "\x80-\x9f¡-ª¬-º¼-¿€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ"
ANY = ODD + "‘’“”…–—\xa0«»"
DAMAGED = "|".join(
    (
        "\ufffd",
        f"[ÃÂ][{ODD}]|[a-z,.;:!?*>)-]Â[\xa0 ]",
        r"(?:\?{2,6}[ .,!]{1,2}){4,}",  # Hangul lost to a character set that has none
        f"[â-ï](?:[{ANY}][{ODD}]|[{ODD}][{ANY}])",
        "[\xa1-\xff]{6,}",  # EUC-KR or CP949 read as Latin-1
        f"(?:[ÐÑÎÏØÙ][{ODD}]){{2,}}",  # Cyrillic, Greek, Arabic in UTF-8, read as Windows-1252
        "ð[Ÿ\x9f]",  # an emoji, likewise
        "‚Ä[ôúùìîòö¢¶]|‚Ñ¢|√[©®†°¥≠¨ßºå∂]",  # UTF-8 read as Mac Roman
        'вЂ[”™“ќў"¦˜њ]|в„ў|Г[©ЁЎ¶±јў]',  # UTF-8 read as Windows-1251
        # Korean in UTF-8 read as CP949: syllables that Korean has not, two of them in a line
        "[쓣뒗뿉땲뒿븯쏆븣쑝젮뵾][^\n]{0,60}[쓣뒗뿉땲뒿븯쏆븣쑝젮뵾]|[?]{2,}[가-힣][a-z]",
        "占쏙|쏙옙",  # U+FFFD in UTF-8, read as CP949
        "[\x80-\x84\x86-\x9f]",  # C1 control characters; U+0085 is a line end
        "[A-Za-z][가-힣][a-z]{1,12}\\b|\\b[A-Za-z]{2,12}[가-힣][a-z]",  # accented letters read as CP949
    )
)
_AS_CP949 = re.compile("[A-Za-z][가-힣][a-z]{1,12}\\b|\\b[A-Za-z]{2,12}[가-힣][a-z]", re.ASCII)
_SUBJECT = re.compile(
    r"utf-?8|\bencoding|\bdecod|mojibake|\bunicode|latin-?1|iso-?8859|cp-?125[0-9]|windows-125|cp949|euc-kr|"
    r"replacement character|U\+FFFD|garbled|"
    r"인코딩|디코딩|깨진 ?글|깨져|깨짐|유니코드|strip_accents|remove_accents",
    re.IGNORECASE,
)
_FEW = 4  # damaged places in a text about encodings are its examples
_SOME_HANGUL = 0.3


def judge(texts: str, places: list[str]) -> list[str]:
    """Of the `places` in a record's texts that look damaged, those that are: a text about encodings shows some as examples."""
    if len(places) <= _FEW and "\ufffd" * 3 not in texts and _SUBJECT.search(texts):
        return []
    return [place for place in places if not _AS_CP949.fullmatch(place) or _is_latin(texts)]


def _is_latin(text: str) -> bool:
    """Whether Hangul is rare in a text, so that it has no business in the middle of a word."""
    letters = sum(map(str.isalpha, text))
    hangul = sum("가" <= sign <= "힣" for sign in text)
    return hangul < _SOME_HANGUL * letters
