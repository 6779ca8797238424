"""The words by which BM25 compares texts: Latin and other alphabetic words whole, Hangul, kana and Han as character bigrams.

Korean joins particles to its nouns (서울은, 서울에서), so that whole words seldom meet. Their bigrams do, without a tokenizer.
"""

import re
import unicodedata

from pipelines.clean.comparable import comparable

_RUN = re.compile(r"[^\W_]+")
# Hangul syllables and jamo, kana, Han: scripts that are cut into bigrams
_BY_CHARACTER = re.compile("[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3]+")
LONGEST = 64  # characters of one word: longer ones are no words
MOST_CHARS = 20_000  # of one text


def words(text: str) -> list[str]:
    """The words of `text` in their order, equal ones as often as they stand there; [] where it has none."""
    plain = comparable(" ".join(unicodedata.normalize("NFC", text[:MOST_CHARS]).lower().split()))
    terms: list[str] = []
    for run in _RUN.findall(plain):
        place = 0
        for match in _BY_CHARACTER.finditer(run):
            terms += _word(run[place : match.start()])
            terms += _bigrams(match.group())
            place = match.end()
        terms += _word(run[place:])
    return terms


def _word(word: str) -> list[str]:
    return [word[:LONGEST]] if word else []


def _bigrams(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run) - 1)] or [run]
