"""Cleaning: every record is accepted or rejected for a named reason, and nothing hangs on order or on who else is there."""

import json
import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from pipelines.clean.clean import CleaningResult, clean, current, examples, rejects
from pipelines.clean.near_duplicates import clusters, near_duplicate_pairs
from pipelines.clean.read import CORPUS, GENERATED, file_records
from pipelines.clean.rules import REASONS
from pipelines.errors import WorkError
from pipelines.experiments import Cleaning
from pipelines.paths import DataRoot
from pipelines.records import RawRecord

SETTINGS = Cleaning()
GOOD = {
    "instruction": "What should I read on the night bus home?",
    "input": "",
    "output": "Stoner by John Williams: quiet, short chapters, nobody shouts.",
}


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot(tmp_path)


def words(rng: random.Random, count: int, *, korean: bool = False) -> str:
    """Random words; two such texts share next to no shingles."""
    letters = [chr(ord("가") + 7 * i) for i in range(1500)] if korean else list("abcdefghijklmnopqrstuvwxyz")
    return " ".join("".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(count))


def story(number: int, *, korean: bool = False, **more: Any) -> dict[str, Any]:
    rng = random.Random(f"{number} {korean}")
    record = {"instruction": words(rng, 6, korean=korean), "input": "", "output": words(rng, 25, korean=korean)}
    return record | more


def stories(count: int, *, source: str = CORPUS, first: int = 0) -> list[RawRecord]:
    """So many records, half of them Korean, unlike each other."""
    return [RawRecord(source=source, value=story(i, korean=i % 2 == 1)) for i in range(first, first + count)]


def verdicts(data: DataRoot, *values: Any, settings: Cleaning = SETTINGS) -> list[str]:
    """What became of each value among thirty good records: `accepted` or the reason."""
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
    """The text of a record as near-duplicates are judged by."""
    text = "\n".join((record["instruction"], record["input"], record["output"]))
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


# --- each reason: one record just inside, one just outside


@pytest.mark.parametrize(
    ("reason", "inside", "outside"),
    [
        pytest.param("schema", GOOD, {k: v for k, v in GOOD.items() if k != "output"}, id="no output"),
        pytest.param(
            "schema", {k: v for k, v in GOOD.items() if k != "input"}, {**GOOD, "input": None}, id="input null"
        ),
        pytest.param("schema", {**GOOD, "rating": 5}, {**GOOD, "output": 5}, id="a number"),
        pytest.param("schema", {**GOOD, "messages": None}, {**GOOD, "messages": "hello"}, id="messages"),
        pytest.param("schema", GOOD, [GOOD], id="a list"),
        pytest.param(
            "empty", {**GOOD, "instruction": "?", "input": "1234567"}, {**GOOD, "instruction": " "}, id="blank"
        ),
        pytest.param("empty", {**GOOD, "output": "\n" + "x" * 20}, {**GOOD, "output": "\n" * 20}, id="line breaks"),
        pytest.param("empty", {**GOOD, "output": "\t" + "x" * 20}, {**GOOD, "output": "\t" * 20}, id="tabs"),
        pytest.param("empty", {**GOOD, "output": "글" * 20}, {**GOOD, "output": "\u3000\xa0" * 20}, id="wide spaces"),
        pytest.param("too_short", {**GOOD, "instruction": "12345678"}, {**GOOD, "instruction": "1234567"}, id="prompt"),
        pytest.param(
            "too_short",
            {**GOOD, "instruction": "1234", "input": "5678"},
            {**GOOD, "instruction": "1234", "input": "567"},
            id="prompt with input",
        ),
        pytest.param("too_short", {**GOOD, "output": "x" * 20}, {**GOOD, "output": "x" * 19}, id="output"),
        pytest.param("too_short", {**GOOD, "output": "글" * 20}, {**GOOD, "output": "글" * 19}, id="Korean output"),
        pytest.param("too_short", {**GOOD, "output": "x" * 20}, {**GOOD, "output": f"  {'x' * 18}\n\n"}, id="padded"),
        pytest.param("too_long", {**GOOD, "output": "x" * 8000}, {**GOOD, "output": "x" * 8001}, id="output long"),
        pytest.param("too_long", {**GOOD, "output": "글" * 8000}, {**GOOD, "output": "글" * 8001}, id="Korean long"),
        pytest.param("too_long", {**GOOD, "instruction": "x" * 8000}, {**GOOD, "instruction": "x" * 8001}, id="asked"),
        pytest.param("too_long", {**GOOD, "input": "x" * 8000}, {**GOOD, "input": "x" * 8001}, id="input long"),
    ],
)
def test_the_threshold_of_a_rule_on_one_record(data: DataRoot, reason: str, inside: Any, outside: Any) -> None:
    assert verdicts(data, inside, outside) == ["accepted", reason]


@pytest.mark.parametrize(
    ("settings", "reason", "inside", "outside"),
    [
        (
            Cleaning(min_prompt_chars=12),
            "too_short",
            {**GOOD, "instruction": "x" * 12},
            {**GOOD, "instruction": "x" * 11},
        ),
        (Cleaning(min_output_chars=62), "too_short", GOOD, {**GOOD, "output": GOOD["output"][1:]}),
        (Cleaning(max_chars=300), "too_long", {**GOOD, "input": "y" * 300}, {**GOOD, "input": "y" * 301}),
    ],
)
def test_thresholds_come_from_the_configuration(
    data: DataRoot, settings: Cleaning, reason: str, inside: Any, outside: Any
) -> None:
    assert verdicts(data, inside, outside, settings=settings) == ["accepted", reason]


def test_an_exact_duplicate_differs_in_case_and_space_at_most(data: DataRoot) -> None:
    same = [
        {**GOOD, "output": GOOD["output"].upper()},
        {**GOOD, "output": GOOD["output"].replace(" ", "\n  ")},
        {**GOOD, "output": f" {GOOD['output']} "},
        {**GOOD, "rating": 5},
    ]
    assert sorted(verdicts(data, GOOD, *same)) == ["accepted"] + ["exact_duplicate"] * 4


def test_one_other_letter_is_no_exact_duplicate(data: DataRoot) -> None:
    assert sorted(verdicts(data, GOOD, {**GOOD, "output": GOOD["output"] + "!"})) == ["accepted", "near_duplicate"]


def test_korean_in_either_unicode_form_is_the_same(data: DataRoot) -> None:
    composed = story(1000, korean=True)
    decomposed = {name: unicodedata.normalize("NFD", text) for name, text in composed.items()}
    assert composed != decomposed
    assert sorted(verdicts(data, composed, decomposed)) == ["accepted", "exact_duplicate"]


def with_new_end(record: dict[str, str], count: int, *, korean: bool) -> dict[str, str]:
    """The record with its last `count` characters of output replaced."""
    fresh = words(random.Random("another end"), count, korean=korean)[:count]
    return {**record, "output": record["output"][:-count] + fresh}


@pytest.mark.parametrize("korean", [False, True])
def test_the_threshold_of_near_duplicates(data: DataRoot, korean: bool) -> None:
    first = story(2000, korean=korean)
    likeness = [jaccard(compared(first), compared(with_new_end(first, n, korean=korean))) for n in range(1, 40)]
    last_inside = max(n for n, value in enumerate(likeness, start=1) if value >= 0.85)
    first_outside = next(n for n, value in enumerate(likeness, start=1) if n > last_inside and value < 0.85)
    assert 0.82 < likeness[first_outside - 1] < 0.85 <= likeness[last_inside - 1] < 0.88, (
        "both are close to the threshold"
    )
    near, apart = (with_new_end(first, n, korean=korean) for n in (last_inside, first_outside))
    assert sorted(verdicts(data, first, near)) == ["accepted", "near_duplicate"]
    assert verdicts(data, first, apart) == ["accepted", "accepted"]


def test_a_near_duplicate_names_what_it_is_like_and_how_much(data: DataRoot) -> None:
    first = story(2000)
    near = {**first, "output": first["output"][:-1]}
    result = clean(data, [*stories(30), RawRecord("first", first), RawRecord("near", near)], SETTINGS)
    (rejected,) = rejects(result)
    kept = next(row["record_id"] for row in examples(result) if row["source"] == "first")
    assert (rejected["source"], rejected["reason"]) == ("near", "near_duplicate")
    assert rejected["detail"] == f"like {kept} (Jaccard {jaccard(compared(first), compared(near)):.3f})"


def test_the_first_rule_that_holds_is_the_reason(data: DataRoot) -> None:
    blank_and_long = {**GOOD, "instruction": " ", "output": "x" * 9000}
    short_twice = {**GOOD, "output": "short"}
    assert verdicts(data, blank_and_long, short_twice, short_twice) == ["empty", "too_short", "too_short"]


@pytest.mark.parametrize("near", [False, True])
def test_of_equal_records_the_corpus_is_kept_then_files_then_generated_ones(data: DataRoot, near: bool) -> None:
    value = story(3000)
    records = [
        RawRecord(source=source, value={**value, "output": value["output"] + ("!" * i if near else "")})
        for i, source in enumerate((CORPUS, "mine.jsonl", GENERATED))
    ]

    def kept(*those: RawRecord) -> set[str]:
        result = clean(data, [*stories(30, source="other.csv"), *those], SETTINGS)
        assert result.rejected == len(those) - 1
        return {row["source"] for row in examples(result)} - {"other.csv"}

    assert kept(*records) == {CORPUS}
    assert kept(*records[::-1]) == {CORPUS}
    assert kept(*records[1:]) == {"mine.jsonl"}


def test_rejects_keep_the_record_as_it_came(data: DataRoot) -> None:
    value = {"instruction": "책 추천", "output": ["목록"], "extra": {"deep": None}}
    result = clean(data, [*stories(30), RawRecord("mine.jsonl", value, provider="someone")], SETTINGS)
    (row,) = rejects(result)
    assert json.loads(row["record"]) == value
    assert (row["source"], row["provider"], row["reason"]) == ("mine.jsonl", "someone", "schema")
    assert "output: Input should be a valid string (got ['목록'])" in row["detail"]


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
    result = clean(data, records, SETTINGS)
    kept, dropped = examples(result), rejects(result)
    assert len(kept) == result.accepted == result.train + result.eval
    assert len(dropped) == result.rejected == sum(result.reasons.values())
    assert result.accepted + result.rejected == result.read == len(records)
    assert result.reasons == Counter(row["reason"] for row in dropped)
    assert set(result.reasons) == set(REASONS)
    ids = [row["record_id"] for row in kept + dropped]
    assert len(set(ids)) == len(ids)
    assert all(row["detail"] for row in dropped)


# --- order and company


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


def test_the_share_of_eval_is_about_what_is_configured(data: DataRoot) -> None:
    for share in (0.2, 0.5):
        result = clean(data, stories(200), Cleaning(eval_share=share))
        assert abs(result.eval / 200 - share) < 0.08


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


def test_the_language_is_what_the_record_says_else_what_it_is_written_in(data: DataRoot) -> None:
    records = [
        RawRecord("korean", story(101, korean=True)),
        RawRecord("english", story(102)),
        RawRecord("labelled", story(103, language="fr")),
        RawRecord("given", story(104), language="de"),
    ]
    found = {row["source"]: row["language"] for row in examples(clean(data, stories(30) + records, SETTINGS))}
    assert {name: found[name] for name in found if name != CORPUS} == {
        "korean": "ko", "english": "en", "labelled": "fr", "given": "de",
    }  # fmt: skip


# --- nothing left


@pytest.mark.parametrize(
    ("records", "said"),
    [
        pytest.param([], "kept 0 train and 0 eval of 0 records", id="none"),
        pytest.param([RawRecord("x", {"a": 1})] * 3, "kept 0 train and 0 eval of 3 records", id="only rejects"),
        pytest.param(stories(50, source=GENERATED), "kept 50 train and 0 eval of 50 records", id="only generated"),
    ],
)
def test_with_nothing_left_the_last_good_result_stays_current(
    data: DataRoot, records: Sequence[RawRecord], said: str
) -> None:
    good = clean(data, stories(40), SETTINGS)
    with pytest.raises(WorkError, match=said):
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
    return {**GOOD, field: [{"role": "user", "content": text}] if field == "messages" else text}


@pytest.mark.parametrize("bad", ["\0", "\ud800", "\udfff"], ids=["NUL", "high", "low"])
def test_nul_and_lone_surrogates_are_rejected_wherever_they_stand(data: DataRoot, bad: str) -> None:
    fields = ["instruction", "input", "output", "topic", "language", "messages"]
    broken = [with_text(field, f"a text that is long enough {bad} and goes on") for field in fields]
    found = verdicts(data, *broken, with_text("output", "a text that is long enough 😀 and goes on"))
    assert dict(zip([*fields, "good"], found, strict=True)) == {**dict.fromkeys(fields, "schema"), "good": "accepted"}


def test_a_record_and_its_broken_twin_do_not_hang_on_order(data: DataRoot) -> None:
    twins = [RawRecord("mine.jsonl", {**GOOD, "output": GOOD["output"] + end}) for end in ("?", "\ud800")]
    forth = clean(data, stories(30) + twins, SETTINGS)
    assert forth.reasons == {"schema": 1}
    assert contents(clean(data, twins[::-1] + stories(30), SETTINGS)) == contents(forth)


def test_a_file_name_that_is_not_utf8_is_no_obstacle(data: DataRoot, tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.jsonl"
    path.write_bytes(json.dumps(story(1)).encode() + b"\n")
    assert clean(data, stories(30, first=10) + file_records([path]), SETTINGS).accepted == 31


def test_a_huge_text_is_too_long_and_nothing_worse(data: DataRoot) -> None:
    fields = ["instruction", "input", "output", "messages"]
    found = verdicts(data, *(with_text(field, "아주 긴 글 " * 100_000) for field in fields))
    assert dict(zip(fields, found, strict=True)) == dict.fromkeys(fields, "too_long")


def cleaned_deeper(frames: int, data: DataRoot, records: list[RawRecord]) -> CleaningResult:
    """Clean with less of the stack left than there was for reading."""
    return cleaned_deeper(frames - 1, data, records) if frames else clean(data, records, SETTINGS)


def test_a_record_nested_as_deep_as_json_can_be_costs_itself_only(data: DataRoot, tmp_path: Path) -> None:
    lines = ['{"instruction": ' + "[" * depth + "]" * depth + "}" for depth in range(800, 1000)]
    path = tmp_path / "deep.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    records = file_records([path])
    assert {record.problem is None for record in records} == {True, False}, "some could be read, some could not"
    result = cleaned_deeper(40, data, stories(30) + records)
    assert (result.accepted, result.reasons) == (30, {"schema": 200})


def test_quotes_and_markup_are_only_text(data: DataRoot) -> None:
    text = "'); DROP TABLE records; -- {braces} %s $1 <script>alert(1)</script> \\ \x1b[31m"
    value = {"instruction": text, "input": text, "output": text}
    result = clean(data, [*stories(30), RawRecord("mine's.jsonl", value)], SETTINGS)
    (row,) = [row for row in examples(result) if row["source"] == "mine's.jsonl"]
    assert {name: row[name] for name in value} == value


# --- near-duplicates against brute force


def changed_a_little(rng: random.Random, text: str, *, korean: bool) -> str:
    """`text` with a stretch of it replaced, dropped or doubled."""
    start = rng.randrange(len(text))
    end = start + rng.randint(1, max(2, len(text) // 6))
    kind = rng.choice(["replace", "drop", "double"])
    middle = {"replace": words(rng, 3, korean=korean), "drop": "", "double": text[start:end] * 2}[kind]
    return text[:start] + middle + text[end:]


def planted_texts(count: int) -> dict[str, str]:
    """Texts of 20 to 400 characters, half Korean; most are changed copies of earlier ones."""
    rng = random.Random(11)
    texts: dict[bool, list[str]] = {False: [], True: []}
    for i in range(count):
        mine = texts[korean := i % 2 == 1]
        fresh = len(mine) < 20 or rng.random() < 0.1
        text = words(rng, rng.randint(5, 60), korean=korean) if fresh else rng.choice(mine)
        mine.append(text if fresh else changed_a_little(rng, text, korean=korean))
    texts[False].append(texts[False][0])
    return {f"record-{i:03}": text for i, text in enumerate(texts[False] + texts[True])}


@pytest.fixture(scope="module")
def planted() -> tuple[dict[str, str], dict[tuple[str, str], float]]:
    """The planted texts and the exact Jaccard of every pair of them."""
    texts = planted_texts(200)
    return texts, {(one, other): jaccard(texts[one], texts[other]) for one, other in combinations(texts, 2)}


@pytest.mark.parametrize("threshold", [0.51, 0.6, 0.7, 0.85, 0.95, 1.0])
def test_near_duplicates_are_those_of_brute_force(
    planted: tuple[dict[str, str], dict[tuple[str, str], float]], threshold: float
) -> None:
    texts, exact = planted
    expected = {pair: value for pair, value in exact.items() if value >= threshold}
    assert len(expected) >= (20 if threshold < 1 else 1)
    with duckdb.connect() as db:
        db.register("given", pa.table({"record_id": list(texts), "normalized": list(texts.values())}))
        found = {
            (one, other): value for one, other, value in near_duplicate_pairs(db, table="given", jaccard=threshold)
        }
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-12)


def test_clusters_join_what_is_alike_through_others() -> None:
    pairs = [("b", "c", 0.9), ("x", "y", 0.9), ("a", "b", 0.9)]
    assert clusters(pairs) == {"a": "a", "b": "a", "c": "a", "x": "x", "y": "x"}
    assert clusters([]) == {}
