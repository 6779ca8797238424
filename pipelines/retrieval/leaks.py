"""No prompt contains its own answer: finds records too close to the one in question, by the same
rule as cleaning.

Two records are alike if they ask the same question. They are also alike if the Jaccard index of
their character 3-shingles, over question and answer, is at least `cleaning.near_duplicate_jaccard`.
Case, width and white space make no difference. Cleaning drops such train records; here the rule
also covers examples that were cleaned with other settings.
"""

import unicodedata
from dataclasses import dataclass
from functools import cached_property

from pipelines.clean.comparable import comparable
from pipelines.clean.shingles import SHINGLE


@dataclass(frozen=True)
class Sides:
    """The name, question and answer of a record."""

    name: str
    question: str
    answer: str

    @cached_property
    def plain_question(self) -> str:
        return _plain(self.question)

    @cached_property
    def grams(self) -> frozenset[str]:
        """The distinct character 3-shingles of question and answer together."""
        text = _plain(f"{self.question}\n{self.answer}").ljust(SHINGLE, "\0")
        return frozenset(text[at : at + SHINGLE] for at in range(len(text) - SHINGLE + 1))


def gives_away(held_out: Sides, other: Sides, jaccard: float) -> bool:
    """Whether `other` is the same record as `held_out`, asks the same question, or is alike."""
    if held_out.name == other.name or held_out.plain_question == other.plain_question:
        return True
    fewer, more = sorted((len(held_out.grams), len(other.grams)))
    # Sets of too different sizes cannot reach the threshold, whatever they share.
    if fewer < jaccard * more:
        return False
    common = len(held_out.grams & other.grams)
    return common >= jaccard * (fewer + more - common)


def _plain(text: str) -> str:
    return comparable(" ".join(unicodedata.normalize("NFC", text).lower().split()))
