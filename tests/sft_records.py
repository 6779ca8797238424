"""Records to clean, made of the corpus's own words and unlike each other, and their outcomes."""

import random
import unicodedata
from functools import cache
from typing import Any

from pipelines.clean.clean import CleaningResult, clean, examples, rejects
from pipelines.clean.read import CORPUS
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.records.reading import RawRecord, read_corpus
from pipelines.settings.cleaning import Cleaning

SETTINGS = Cleaning()
GOOD = {
    "instruction": "What should I read on the night bus home?",
    "input": "",
    "output": "Stoner by John Williams: quiet, short chapters, nobody shouts.",
}


@cache
def vocabulary(language: str) -> list[str]:
    """The words of the corpus's answers, each as often as it occurs there."""
    corpus = read_corpus(PROJECT / "data" / "corpus.json")
    return [word for record in corpus if record["language"] == language for word in record["output"].split()]


def words(rng: random.Random, count: int, *, korean: bool = False) -> str:
    """Random words; two such texts share few shingles."""
    return " ".join(rng.choices(vocabulary("ko" if korean else "en"), k=count))


def prose(length: int, *, korean: bool = False, seed: int = 1) -> str:
    """Text of exactly this many characters, with white space at neither end."""
    text = words(random.Random(seed), length, korean=korean)[: length - 1]
    return text + ("요" if korean else "y")


def story(number: int, *, korean: bool = False, **more: Any) -> dict[str, Any]:
    rng = random.Random(f"{number} {korean}")
    record = {"instruction": words(rng, 9, korean=korean), "input": "", "output": words(rng, 30, korean=korean)}
    return record | more


def stories(count: int, *, source: str = CORPUS, first: int = 0) -> list[RawRecord]:
    """This many records, half of them Korean, unlike each other."""
    return [RawRecord(source=source, value=story(i, korean=i % 2 == 1)) for i in range(first, first + count)]


def verdicts(data: DataRoot, *values: Any, settings: Cleaning = SETTINGS) -> list[str]:
    """The outcome of each value among thirty good records: `accepted` or the reason."""
    own = [RawRecord(source=f"value {i}", value=value) for i, value in enumerate(values)]
    result = clean(data, stories(30) + own, settings)
    fate = {row["source"]: row["reason"] for row in rejects(result)} | {
        row["source"]: "accepted" for row in examples(result)
    }
    assert fate[CORPUS] == "accepted"
    assert result.accepted + result.rejected == result.read == 30 + len(values)
    return [fate[record.source] for record in own]


def contents(result: CleaningResult) -> tuple[Any, ...]:
    return result.fingerprint, examples(result), rejects(result), result.reasons


def sides(result: CleaningResult) -> dict[str, str]:
    return {row["record_id"]: row["split"] for row in examples(result)}


def shingles(text: str, size: int = 3) -> set[str]:
    return {text[i : i + size] for i in range(len(text) - size + 1)}


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def compared(record: dict[str, str]) -> str:
    """The text of a record that near-duplicates are compared by."""
    text = "\n".join((record["instruction"], record["input"], record["output"]))
    return " ".join(unicodedata.normalize("NFC", text).lower().split())
