"""The shipped corpus: half Korean, half English, no record twice, and all of it accepted by
cleaning."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from pipelines.clean.clean import clean, examples
from pipelines.clean.read import corpus_records
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.records.reading import read_corpus
from pipelines.settings.cleaning import Cleaning

CORPUS = PROJECT / "data" / "corpus.json"


@pytest.fixture(scope="module")
def corpus() -> list[dict[str, Any]]:
    return read_corpus(CORPUS)


def hangul_share(text: str) -> float:
    letters = [letter for letter in text if letter.isalpha()]
    return sum("가" <= letter <= "힣" for letter in letters) / len(letters)


def shingles(text: str, size: int = 5) -> set[str]:
    return {text[i : i + size] for i in range(len(text) - size + 1)}


def test_it_holds_at_least_300_records(corpus: list[dict[str, Any]]) -> None:
    assert len(corpus) >= 300


def test_half_is_korean_and_half_english(corpus: list[dict[str, Any]]) -> None:
    count = Counter(record["language"] for record in corpus)
    assert set(count) == {"ko", "en"}
    assert abs(count["ko"] - count["en"]) <= 0.04 * len(corpus)


def test_each_record_is_in_the_language_it_names(corpus: list[dict[str, Any]]) -> None:
    for record in corpus:
        for name in ("instruction", "output"):
            assert (hangul_share(record[name]) > 0.3) == (record["language"] == "ko"), record


def test_every_record_has_a_topic_and_says_something(corpus: list[dict[str, Any]]) -> None:
    for record in corpus:
        assert re.fullmatch(r"[a-z0-9-]+(/[a-z0-9-]+)+", record["topic"]), record
        assert len(record["output"]) >= 20
        assert record["instruction"].strip()


def test_no_instruction_comes_twice(corpus: list[dict[str, Any]]) -> None:
    count = Counter((record["instruction"].casefold(), record["input"].casefold()) for record in corpus)
    assert [instruction for instruction, n in count.items() if n > 1] == []


def test_no_two_outputs_share_half_of_their_shingles(corpus: list[dict[str, Any]]) -> None:
    sets = [shingles(record["output"]) for record in corpus]
    for (i, one), (j, other) in combinations(enumerate(sets), 2):
        shared = len(one & other) / min(len(one), len(other))
        assert shared < 0.5, f"{shared:.0%}: {corpus[i]['output']!r} and {corpus[j]['output']!r}"


def test_no_five_word_opening_is_a_habit(corpus: list[dict[str, Any]]) -> None:
    openings = Counter(" ".join(record["output"].lower().split()[:5]) for record in corpus)
    opening, count = openings.most_common(1)[0]
    assert count <= 0.02 * len(corpus), opening


def test_cleaning_alone_keeps_at_least_95_percent(corpus: list[dict[str, Any]], tmp_path: Path) -> None:
    data = DataRoot(tmp_path)
    result = clean(data, corpus_records(data), Cleaning())
    assert result.read == len(corpus)
    assert result.accepted >= 0.95 * len(corpus), result.reasons
    sides = Counter((row["language"], row["split"]) for row in examples(result))
    assert min(sides[language, "eval"] for language in ("ko", "en")) >= 10, "both languages are evaluated on"


def test_the_file_is_readable_utf8_as_people_edit_it() -> None:
    text = CORPUS.read_text(encoding="utf-8")
    assert "\\u" not in text, "Korean stands as Korean, not as escapes"
    assert json.loads(text)
