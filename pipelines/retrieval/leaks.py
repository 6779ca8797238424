"""An answer never stands in its own prompt: which texts are too close to a record that is asked, by the rule that cleaning has.

Two records are alike where they ask the same, or where question and answer together have at least
`cleaning.near_duplicate_jaccard` as the Jaccard index of their character 3-shingles; case, width and space make no difference.
Cleaning drops such train records; here the rule holds also for examples that were cleaned otherwise.
"""

import unicodedata
from dataclasses import dataclass
from functools import cached_property

from pipelines.clean.comparable import comparable
from pipelines.clean.shingles import SHINGLE


@dataclass(frozen=True)
class Sides:
    """A record's name, and what it asks and answers."""

    name: str
    question: str
    answer: str

    @cached_property
    def plain_question(self) -> str:
        return _plain(self.question)

    @cached_property
    def grams(self) -> frozenset[str]:
        """The distinct character 3-shingles of question and answer."""
        whole = _plain(f"{self.question}\n{self.answer}").ljust(SHINGLE, "\0")
        return frozenset(whole[at : at + SHINGLE] for at in range(len(whole) - SHINGLE + 1))


def gives_away(held_out: Sides, other: Sides, jaccard: float) -> bool:
    """Whether `other` is the record that is asked, asks the same, or is alike."""
    if held_out.name == other.name or held_out.plain_question == other.plain_question:
        return True
    fewer, more = sorted((len(held_out.grams), len(other.grams)))
    if fewer < jaccard * more:  # they cannot be alike, however many they share
        return False
    common = len(held_out.grams & other.grams)
    return common >= jaccard * (fewer + more - common)


def _plain(text: str) -> str:
    return comparable(" ".join(unicodedata.normalize("NFC", text).lower().split()))
