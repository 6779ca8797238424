"""Cleaning: every record is accepted or rejected for a named reason, whatever the order and the
other records."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.clean.clean import CleaningResult, clean, current, examples, rejects
from pipelines.clean.read import CORPUS, GENERATED, file_records, named_files
from pipelines.clean.reasons import REASONS
from pipelines.errors import WorkError
from pipelines.lake.paths import DataRoot
from pipelines.records.reading import RawRecord
from pipelines.settings.cleaning import Cleaning
from pipelines.settings.sources import FileSource
from tests.sft_records import GOOD, SETTINGS, contents, sides, stories, story, verdicts


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot(tmp_path)


def records_of(*paths: Path) -> Iterable[RawRecord]:
    return file_records(named_files([FileSource(path=str(path)) for path in paths]))


@pytest.mark.parametrize("near", [False, True])
def test_of_equal_records_the_corpus_is_kept_then_files_then_generated_ones(data: DataRoot, near: bool) -> None:
    value = story(3000)
    records = [
        RawRecord(source=source, value={**value, "output": value["output"] + ("!" * i if near else "")})
        for i, source in enumerate((CORPUS, "mine.jsonl", GENERATED))
    ]

    def accepted_sources(*those: RawRecord) -> set[str]:
        result = clean(data, [*stories(30, source="other.csv"), *those], SETTINGS)
        assert result.rejected == len(those) - 1
        return {row["source"] for row in examples(result)} - {"other.csv"}

    assert accepted_sources(*records) == {CORPUS}
    assert accepted_sources(*records[::-1]) == {CORPUS}
    assert accepted_sources(*records[1:]) == {"mine.jsonl"}


def test_rejects_keep_the_record_as_it_came(data: DataRoot) -> None:
    value = {"instruction": "책 추천", "output": ["목록"], "extra": {"deep": None}}
    result = clean(data, [*stories(30), RawRecord("mine.jsonl", value, provider="someone")], SETTINGS)
    (row,) = rejects(result)
    assert json.loads(row["record"]) == value
    assert (row["source"], row["provider"], row["reason"]) == ("mine.jsonl", "someone", "schema")
    assert "output: expected a text (got ['목록'])" in row["detail"]


# --- accepted + rejected = read


def mixture(seed: int) -> list[RawRecord]:
    """Good and bad records of every kind and source, some of them several times."""
    rng = random.Random(seed)
    records = stories(50, first=100 * seed)
    good = [record.value for record in records]
    kinds = [
        lambda: {"question": rng.random()},
        lambda: {**GOOD, "output": " "},
        lambda: {**GOOD, "output": "x" * rng.randint(1, 19)},
        lambda: {**GOOD, "output": "y" * (8001 + rng.randint(0, 5))},
        lambda: rng.choice(good),
        lambda: (lambda value: {**value, "output": value["output"] + rng.choice("!?.")})(rng.choice(good)),
        lambda: rng.choice([None, 7, "text", [], {}]),
        lambda: {**GOOD, "output": f"\ufffd {rng.random()} is what it says"},
    ]
    for i in range(90):
        source = rng.choice([CORPUS, "mine.jsonl", GENERATED])
        topic = rng.choice([None, "tired/nurse", "glad/cook"])
        problem = f"line {i}: broken" if rng.random() < 0.1 else None
        records.append(RawRecord(source=source, value=kinds[i % len(kinds)](), topic=topic, problem=problem))
    return records


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_record_is_accepted_or_rejected(data: DataRoot, seed: int) -> None:
    records = mixture(seed)
    result = clean(data, records, Cleaning(min_output_chars=20))
    accepted, dropped = examples(result), rejects(result)
    assert len(accepted) == result.accepted == result.train + result.eval
    assert len(dropped) == result.rejected == sum(result.reasons.values())
    assert result.accepted + result.rejected == result.read == len(records)
    assert result.reasons == Counter(row["reason"] for row in dropped)
    made = {"schema", "empty", "too_short", "too_long", "encoding", "exact_duplicate", "near_duplicate"}
    assert made <= set(result.reasons) <= set(REASONS)
    ids = [row["record_id"] for row in accepted + dropped]
    assert len(set(ids)) == len(ids)
    assert all(row["detail"] for row in dropped)


# --- order and other records


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_of_records_gives_the_same_result(data: DataRoot, seed: int) -> None:
    records = mixture(seed)
    first = contents(clean(data, records, SETTINGS))
    for shuffle in range(2):
        shuffled = random.Random(shuffle).sample(records, len(records))
        assert contents(clean(data, shuffled, SETTINGS)) == first


@pytest.mark.parametrize("difference", ["topic", "language", "model", "problem"])
def test_equal_answers_that_differ_in_their_labels_do_not_hang_on_order(data: DataRoot, difference: str) -> None:
    answers = [replace(RawRecord(GENERATED, story(4000)), **{difference: f"{difference} {i}"}) for i in range(4)]
    forth = clean(data, stories(30) + answers, SETTINGS)
    back = clean(data, answers[::-1] + stories(30), SETTINGS)
    assert contents(back) == contents(forth)


def test_the_same_result_is_not_written_again(data: DataRoot) -> None:
    first = clean(data, stories(40), SETTINGS)
    written = (first.folder / "examples.parquet").stat().st_mtime_ns
    again = clean(data, stories(40)[::-1], SETTINGS)
    assert (first.reused, again.reused) == (False, True)
    assert (again.folder / "examples.parquet").stat().st_mtime_ns == written


def test_another_result_has_another_fingerprint_and_becomes_current(data: DataRoot) -> None:
    first = clean(data, stories(40), SETTINGS)
    second = clean(data, stories(41), SETTINGS)
    assert first.fingerprint != second.fingerprint
    assert current(data) == second
    assert len(examples(first)) == 40, "a reader of the former result still finds it"


def test_a_record_never_changes_side_when_others_come_or_go(data: DataRoot) -> None:
    records = stories(80) + [RawRecord("mine.jsonl", story(i, topic=f"mood/{i % 20}")) for i in range(500, 540)]
    whole = sides(clean(data, records, SETTINGS))
    assert set(whole.values()) == {"train", "eval"}
    for seed in range(2):
        some = sides(clean(data, random.Random(seed).sample(records, 50), SETTINGS))
        assert some.items() <= whole.items()
    more = sides(clean(data, records + stories(40, first=10_000), SETTINGS))
    assert whole.items() <= more.items()


def test_the_share_of_eval_is_about_what_is_configured_in_each_language(data: DataRoot) -> None:
    for share in (0.2, 0.5):
        result = clean(data, stories(600), Cleaning(eval_share=share))
        for language in ("ko", "en"):
            mine = [row["split"] == "eval" for row in examples(result) if row["language"] == language]
            assert len(mine) == 300
            assert abs(sum(mine) / 300 - share) < 3 * (share * (1 - share) / 300) ** 0.5, "three standard errors"


def test_another_seed_makes_another_split_of_the_same_records(data: DataRoot) -> None:
    one, other = (sides(clean(data, stories(100), Cleaning(split_seed=seed))) for seed in (1, 2))
    assert one.keys() == other.keys()
    assert one != other


def test_records_of_one_topic_cell_stay_on_one_side(data: DataRoot) -> None:
    records = [RawRecord("mine.jsonl", story(i, topic=f"mood/{i % 25}")) for i in range(200)]
    seen: dict[str, set[str]] = {}
    for row in examples(clean(data, records, SETTINGS)):
        seen.setdefault(row["topic"], set()).add(row["split"])
    assert len(seen) == 25
    assert all(len(split) == 1 for split in seen.values())
    assert {side for split in seen.values() for side in split} == {"train", "eval"}


def test_answers_to_one_question_stay_on_one_side(data: DataRoot) -> None:
    records = [RawRecord("mine.jsonl", {**story(i), "instruction": f"Question number {i % 25}?"}) for i in range(200)]
    pairs = {(row["instruction"], row["split"]) for row in examples(clean(data, records, SETTINGS))}
    assert len(pairs) == 25


def test_generated_records_are_never_evaluated_on(data: DataRoot) -> None:
    generated = [RawRecord(GENERATED, story(i), topic=f"mood/{i % 30}") for i in range(1000, 1150)]
    result = clean(data, stories(60) + generated, SETTINGS)
    split = Counter((row["source"], row["split"]) for row in examples(result))
    assert split[GENERATED, "train"] == 150
    assert split[GENERATED, "eval"] == 0
    assert split[CORPUS, "eval"] > 0


# --- no record left


@pytest.mark.parametrize(
    ("records", "message"),
    [
        pytest.param([], "kept 0 train and 0 eval of 0 records", id="none"),
        pytest.param([RawRecord("x", {"a": 1})] * 3, "kept 0 train and 0 eval of 3 records", id="only rejects"),
        pytest.param(stories(50, source=GENERATED), "kept 50 train and 0 eval of 50 records", id="only generated"),
    ],
)
def test_with_nothing_left_the_last_good_result_stays_current(
    data: DataRoot, records: Sequence[RawRecord], message: str
) -> None:
    good = clean(data, stories(40), SETTINGS)
    with pytest.raises(WorkError, match=message):
        clean(data, list(records), SETTINGS)
    assert current(data) == good
    assert len(examples(good)) == 40


def test_nothing_is_current_before_the_first_result(data: DataRoot) -> None:
    assert current(data) is None
    with pytest.raises(WorkError):
        clean(data, [], SETTINGS)
    assert current(data) is None


# --- hostile text


def with_text(field: str, text: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": "Which book?"}, {"role": "assistant", "content": text}]
    return {**GOOD, field: turns if field == "messages" else text}


@pytest.mark.parametrize("bad", ["\0", "\ud800", "\udfff"], ids=["NUL", "high", "low"])
def test_nul_and_lone_surrogates_are_rejected_wherever_they_stand(data: DataRoot, bad: str) -> None:
    fields = ["instruction", "input", "output", "topic", "language", "messages"]
    broken = [with_text(field, f"a text that is long enough {bad} and goes on") for field in fields]
    outcomes = verdicts(data, *broken, with_text("output", "a text that is long enough 😀 and goes on"))
    assert dict(zip([*fields, "good"], outcomes, strict=True)) == {
        **dict.fromkeys(fields, "encoding"),
        "good": "accepted",
    }


def test_a_record_and_its_broken_twin_do_not_hang_on_order(data: DataRoot) -> None:
    twins = [RawRecord("mine.jsonl", {**GOOD, "output": GOOD["output"] + end}) for end in ("?", "\ud800")]
    forth = clean(data, stories(30) + twins, SETTINGS)
    assert forth.reasons == {"encoding": 1}
    assert contents(clean(data, twins[::-1] + stories(30), SETTINGS)) == contents(forth)


def test_a_file_name_that_is_not_utf8_is_no_obstacle(data: DataRoot, tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.jsonl"
    path.write_bytes(json.dumps(story(1)).encode() + b"\n")
    assert clean(data, [*stories(30, first=10), *records_of(path)], SETTINGS).accepted == 31


def test_a_huge_text_is_too_long_and_nothing_worse(data: DataRoot) -> None:
    fields = ["instruction", "input", "output", "messages"]
    outcomes = verdicts(data, *(with_text(field, "아주 긴 글 " * 100_000) for field in fields))
    assert dict(zip(fields, outcomes, strict=True)) == dict.fromkeys(fields, "too_long")


def cleaned_deeper(frames: int, data: DataRoot, records: list[RawRecord]) -> CleaningResult:
    """Clean with less stack left than reading had."""
    return cleaned_deeper(frames - 1, data, records) if frames else clean(data, records, SETTINGS)


def test_a_record_nested_as_deep_as_json_can_be_costs_itself_only(data: DataRoot, tmp_path: Path) -> None:
    lines = ['{"instruction": ' + "[" * depth + "]" * depth + "}" for depth in range(800, 1000)]
    path = tmp_path / "deep.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    records = list(records_of(path))
    assert {record.problem is None for record in records} == {True, False}, "some could be read, some could not"
    result = cleaned_deeper(40, data, stories(30) + records)
    assert (result.accepted, result.reasons) == (30, {"schema": 200})


def test_quotes_and_markup_are_only_text(data: DataRoot) -> None:
    text = "'); DROP TABLE records; -- {braces} %s $1 <script>alert(1)</script> \\ \x1b[31m"
    value = {
        "instruction": text,
        "input": f"What is {text}?",
        "output": f"It is only text, however it looks: {text[::-1]}",
    }
    result = clean(data, [*stories(30), RawRecord("mine's.jsonl", value)], SETTINGS)
    (row,) = [row for row in examples(result) if row["source"] == "mine's.jsonl"]
    assert {name: row[name] for name in value} == value
