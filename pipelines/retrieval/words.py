"""The terms of a text for BM25: whole words in alphabetic scripts; character bigrams in Hangul,
kana and Han.

Korean appends particles to nouns (서울은, 서울에서), so whole words seldom match. Their bigrams do,
without a tokenizer.
"""

import re
import unicodedata

from pipelines.clean.comparable import comparable

_RUN = re.compile(r"[^\W_]+")
# Hangul syllables and jamo, kana, Han: the scripts that are cut into bigrams.
_BY_CHARACTER = re.compile("[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3]+")
# Characters of one word. Longer ones are cut.
LONGEST = 64
# Characters of one text.
MOST_CHARS = 20_000


def words(text: str) -> list[str]:
    """The terms of `text` in order, with repetitions; [] if it has none."""
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
