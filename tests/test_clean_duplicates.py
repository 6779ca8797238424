"""Duplicates and leaks: similar records are found, the best one stays, and no training record is
close to an eval record."""

import random
import unicodedata
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from pipelines.clean.clean import clean, examples, rejects
from pipelines.clean.comparable import comparable, comparable_in_sql
from pipelines.clean.index import TextIndex
from pipelines.clean.near_duplicates import join, near_duplicates, too_close
from pipelines.clean.read import GENERATED
from pipelines.clean.stage import normalized
from pipelines.lake.paths import DataRoot
from pipelines.records.reading import RawRecord
from tests.sft_records import GOOD, SETTINGS, compared, jaccard, stories, story, verdicts, words

Pairs = dict[tuple[int, int], float]


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot(tmp_path)


def indexed(folder: Path, texts: list[str], *, threshold: float = 0.85, threads: int = 2) -> TextIndex:
    index = TextIndex(folder, texts=len(texts), jaccard=threshold, threads=threads)
    index.fill(
        [
            (np.arange(start, min(start + 70, len(texts))), texts[start : start + 70])
            for start in range(0, len(texts), 70)
        ]
    )
    return index


# --- equal records


def test_an_exact_duplicate_differs_in_case_and_space_at_most(data: DataRoot) -> None:
    same = [
        {**GOOD, "output": GOOD["output"].upper()},
        {**GOOD, "output": GOOD["output"].replace(" ", "\n  ")},
        {**GOOD, "output": GOOD["output"].replace(" ", "\u3000")},
        {**GOOD, "output": f" {GOOD['output']} "},
        {**GOOD, "rating": 5},
    ]
    assert sorted(verdicts(data, GOOD, *same)) == ["accepted"] + ["exact_duplicate"] * 5


def test_one_other_letter_is_no_exact_duplicate(data: DataRoot) -> None:
    assert sorted(verdicts(data, GOOD, {**GOOD, "output": GOOD["output"] + "!"})) == ["accepted", "near_duplicate"]


def test_korean_in_either_unicode_form_is_the_same(data: DataRoot) -> None:
    composed = story(1000, korean=True)
    decomposed = {name: unicodedata.normalize("NFD", text) for name, text in composed.items()}
    assert composed != decomposed
    assert sorted(verdicts(data, composed, decomposed)) == ["accepted", "exact_duplicate"]


UNSEEN = (
    "\u200b\u200c\u200d\u2060\ufeff\xad\ufe0f\ufe0e\u200e\u200f\u202e\u2066\u2069\u061c\u034f\u115f\u3164\uffa0"
    "\U000e0041\U000e0100\x7f"
)


def hidden_in(text: str, sign: str) -> str:
    return f"{sign}{text[:7]}{sign * 2}{text[7:]} {sign} "


def test_what_nobody_sees_makes_no_other_record(data: DataRoot) -> None:
    twins = [{name: hidden_in(text, sign) if text else "" for name, text in GOOD.items()} for sign in UNSEEN]
    assert Counter(verdicts(data, GOOD, *twins)) == {"accepted": 1, "exact_duplicate": len(UNSEEN)}


def test_width_and_spaces_make_no_other_record(data: DataRoot) -> None:
    wide = str.maketrans({chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)} | {" ": "\u3000"})
    twins = [
        {name: text.translate(wide) for name, text in GOOD.items()},
        {**GOOD, "output": GOOD["output"].replace(" ", "\xa0")},
    ]
    katakana = {**GOOD, "instruction": "ガイドブックはどこ？"}
    half = {**katakana, "instruction": "ｶﾞｲﾄﾞﾌﾞｯｸはどこ?"}
    loose = SETTINGS.model_copy(update={"languages": None})
    outcomes = verdicts(data, GOOD, *twins, katakana, half, settings=loose)
    # A record's side depends on its exact text, so two widths may lie on different sides.
    for kind in (outcomes[:3], outcomes[3:]):
        assert kind.count("accepted") == 1 and set(kind) <= {"accepted", "exact_duplicate", "contamination"}


@pytest.mark.parametrize(("one", "other"), [("2² is four", "22 is four"), ("ㅋㅋ", "ᄏᄏ"), ("x ① y", "x 1 y")])
def test_what_looks_different_is_different(one: str, other: str) -> None:
    assert comparable(normalized(one)) != comparable(normalized(other))


def test_a_question_with_hidden_signs_stands_on_its_twin_s_side(data: DataRoot) -> None:
    rng = random.Random(14)
    questions = [story(number)["instruction"] for number in range(7000, 7040)]
    plain = [{"instruction": text, "output": story(rng.randrange(10**6))["output"]} for text in questions]
    twins = [
        {"instruction": hidden_in(text, rng.choice(UNSEEN)), "output": story(rng.randrange(10**6))["output"]}
        for text in questions
    ]
    result = clean(data, [RawRecord("mine", value) for value in plain + twins], SETTINGS)
    sides_by_text: dict[str, set[str]] = {comparable(normalized(text)): set() for text in questions}
    for row in examples(result):
        sides_by_text[comparable(normalized(row["instruction"]))].add(row["split"])
        assert row["instruction"] in {one["instruction"] for one in plain + twins}, (
            "the text keeps its invisible characters"
        )
    assert result.reasons == {} and Counter(map(len, sides_by_text.values())) == {1: 40}
    assert len({side for sides in sides_by_text.values() for side in sides}) == 2


def test_python_and_sql_compare_alike() -> None:
    rng = random.Random(3)
    codes = [code for code in range(0x20, 0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    odd = [code for code in codes if unicodedata.category(chr(code)) in ("Cf", "Mn") or 0xFF00 <= code <= 0xFFEF]
    texts = [
        normalized("".join(chr(rng.choice(odd if rng.random() < 0.4 else codes)) for _ in range(30)))
        for _ in range(3000)
    ]
    with duckdb.connect() as db:
        db.register("texts", pa.table({"place": range(len(texts)), "text": texts}))
        rows = db.execute(f"SELECT {comparable_in_sql('text')} FROM texts ORDER BY place").fetchall()
    assert [text for (text,) in rows] == [comparable(text) for text in texts]
    assert sum(comparable(text) != text for text in texts) > 2000
    assert not any(unicodedata.category(sign) == "Cf" for text in texts for sign in comparable(text))


def test_an_exact_duplicate_names_its_twin(data: DataRoot) -> None:
    result = clean(data, [*stories(30), RawRecord("one", GOOD), RawRecord("two", GOOD)], SETTINGS)
    (row,) = rejects(result)
    original_id = next(r["record_id"] for r in examples(result) if r["instruction"] == GOOD["instruction"])
    assert (row["twin"], row["similarity"], row["detail"]) == (original_id, 1.0, f"same as {original_id}")


# --- similar records


def with_new_end(record: dict[str, Any], count: int, *, korean: bool) -> dict[str, Any]:
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
    original_id = next(row["record_id"] for row in examples(result) if row["source"] == "first")
    likeness = jaccard(compared(first), compared(near))
    assert (rejected["source"], rejected["reason"], rejected["twin"]) == ("near", "near_duplicate", original_id)
    assert rejected["detail"] == f"like {original_id} (Jaccard {likeness:.3f})"
    assert rejected["similarity"] == pytest.approx(likeness, abs=1e-12)


def test_the_longest_of_a_cluster_stays_and_what_hangs_on_it_through_others_goes(data: DataRoot) -> None:
    steps = [story(2000)]
    for _ in range(6):
        steps.append({**steps[-1], "output": steps[-1]["output"][16:]})
    likeness = jaccard(compared(steps[0]), compared(steps[-1]))
    assert likeness < 0.85 <= min(jaccard(compared(a), compared(b)) for a, b in pairwise(steps))
    result = clean(data, [*stories(30), *(RawRecord(f"step {i}", step) for i, step in enumerate(steps))], SETTINGS)
    dropped = {row["source"]: row for row in rejects(result)}
    assert set(dropped) == {f"step {i}" for i in range(1, 7)}
    assert dropped["step 6"]["detail"].endswith(f"through others of its cluster (Jaccard {likeness:.3f})")


# --- train records too close to eval records


def on_side(data: DataRoot, side: str) -> dict[str, Any]:
    """A record whose hash puts it on this side."""
    for number in range(5000, 5100):
        value = story(number)
        result = clean(data, [*stories(30), RawRecord("probe", value)], SETTINGS)
        if next(row["split"] for row in examples(result) if row["source"] == "probe") == side:
            return value
    raise AssertionError


def test_a_train_record_close_to_an_eval_record_is_contamination(data: DataRoot) -> None:
    held_out = on_side(data, "eval")
    # An equal question would be a leak by itself.
    asking = {**held_out, "instruction": held_out["instruction"] + " now"}
    likeness = [jaccard(compared(held_out), compared(with_new_end(asking, n, korean=False))) for n in range(1, 60)]
    last_inside = max(n for n, value in enumerate(likeness, start=1) if value >= 0.85)
    inside, outside = (with_new_end(asking, n, korean=False) for n in (last_inside, last_inside + 1))
    assert 0.83 < likeness[last_inside] < 0.85
    alone = clean(data, [*stories(30), RawRecord("held out", held_out), RawRecord(GENERATED, outside)], SETTINGS)
    assert alone.rejected == 0
    records = [RawRecord("held out", held_out), RawRecord(GENERATED, inside)]
    result = clean(data, stories(30) + records, SETTINGS)
    (row,) = rejects(result)
    held_out_id = next(r["record_id"] for r in examples(result) if r["source"] == "held out")
    assert (row["source"], row["reason"], row["twin"]) == (GENERATED, "contamination", held_out_id)
    assert row["similarity"] >= 0.85 and f"like eval record {held_out_id} (Jaccard 0.8" in row["detail"]


def test_a_train_record_that_asks_what_an_eval_record_asks_is_contamination(data: DataRoot) -> None:
    held_out = on_side(data, "eval")
    same = {**story(1), "instruction": held_out["instruction"].upper() + " "}
    other = {**story(2), "instruction": held_out["instruction"] + " x"}
    records = [RawRecord("held out", held_out), RawRecord(GENERATED, same), RawRecord("providers", other)]
    result = clean(data, stories(30, first=100) + records, SETTINGS)
    (row,) = rejects(result)
    assert (row["source"], row["reason"]) == (GENERATED, "contamination")
    assert row["detail"].startswith("asks what eval record ")


def test_an_equal_record_of_a_generator_leaves_the_eval_record_alone(data: DataRoot) -> None:
    held_out = on_side(data, "eval")
    before = clean(data, [*stories(30), RawRecord("mine", held_out)], SETTINGS)
    after = clean(data, [*stories(30), RawRecord("mine", held_out), RawRecord("providers", held_out)], SETTINGS)
    assert after.reasons == {"contamination": 1}
    assert [r for r in examples(after) if r["split"] == "eval"] == [r for r in examples(before) if r["split"] == "eval"]


def test_no_kept_train_record_is_close_to_a_kept_eval_record(data: DataRoot) -> None:
    rng = random.Random(5)
    base = [story(i, korean=i % 2 == 1) for i in range(40)]
    records = [RawRecord("mine", value) for value in base]
    for _ in range(200):
        value = rng.choice(base)
        cut = rng.randint(1, 60)
        changed = {**value, "instruction": value["instruction"] + rng.choice(" .!?"), "output": value["output"][:-cut]}
        records.append(RawRecord(rng.choice(["mine", GENERATED]), changed))
    result = clean(data, records, SETTINGS)
    assert result.reasons["contamination"] > 5 and result.reasons["near_duplicate"] > 5
    texts = {side: [compared(r) for r in examples(result) if r["split"] == side] for side in ("train", "eval")}
    assert min(map(len, texts.values())) >= 5
    assert max(jaccard(one, other) for one in texts["train"] for other in texts["eval"]) < 0.85
    assert all(
        r["similarity"] is None or r["similarity"] >= 0.85 for r in rejects(result) if r["reason"] == "contamination"
    )


# --- against brute force


def changed_a_little(rng: random.Random, text: str, *, korean: bool) -> str:
    """`text` with one stretch replaced, removed or doubled."""
    start = rng.randrange(len(text))
    end = start + rng.randint(1, max(2, len(text) // 6))
    kind = rng.choice(["replace", "drop", "double"])
    middle = {"replace": words(rng, 3, korean=korean), "drop": "", "double": text[start:end] * 2}[kind]
    return text[:start] + middle + text[end:]


@pytest.fixture(scope="module")
def planted() -> tuple[list[str], Pairs]:
    """Texts of 20 to 400 characters, half Korean, mostly changed copies of earlier ones, and the
    exact Jaccard of all pairs."""
    rng = random.Random(11)
    texts: dict[bool, list[str]] = {False: [], True: []}
    for i in range(200):
        mine = texts[korean := i % 2 == 1]
        fresh = len(mine) < 20 or rng.random() < 0.1
        text = words(rng, rng.randint(5, 60), korean=korean) if fresh else rng.choice(mine)
        mine.append(text if fresh else changed_a_little(rng, text, korean=korean))
    texts[False].append(texts[False][0])
    every = texts[False] + texts[True]
    return every, {(i, j): jaccard(every[i], every[j]) for i, j in combinations(range(len(every)), 2)}


@pytest.mark.parametrize("threshold", [0.51, 0.6, 0.7, 0.85, 0.95, 1.0])
def test_clusters_are_those_of_brute_force(planted: tuple[list[str], Pairs], threshold: float, tmp_path: Path) -> None:
    texts, exact = planted
    close = [pair for pair, value in exact.items() if value >= threshold]
    assert len(close) >= (20 if threshold < 1 else 1)
    labels = np.arange(len(texts))
    join(labels, *np.array(close).T)
    with indexed(tmp_path, texts, threshold=threshold) as index:
        duplicates = near_duplicates(index, np.arange(len(texts)))
    expected = {i: int(best) for i, best in enumerate(labels) if best != i}
    assert dict(zip(duplicates.place.tolist(), duplicates.twin.tolist(), strict=True)) == expected
    assert duplicates.jaccard == pytest.approx([exact[twin, place] for place, twin in expected.items()], abs=1e-12)


@pytest.mark.parametrize("threshold", [0.6, 0.85, 0.95])
def test_leaks_are_those_of_brute_force(planted: tuple[list[str], Pairs], threshold: float, tmp_path: Path) -> None:
    texts, exact = planted
    held_out, places = np.arange(0, len(texts), 4), np.delete(np.arange(len(texts)), np.s_[::4])
    likeness = {p: max(exact[min(p, h), max(p, h)] for h in held_out.tolist()) for p in places.tolist()}
    with indexed(tmp_path, texts, threshold=threshold) as index:
        leaks = too_close(index, places, held_out)
    assert set(leaks.place.tolist()) == {place for place, value in likeness.items() if value >= threshold}
    assert np.isin(leaks.twin, held_out).all()
    assert leaks.jaccard == pytest.approx(
        [exact[min(p, t), max(p, t)] for p, t in zip(leaks.place.tolist(), leaks.twin.tolist(), strict=True)], abs=1e-12
    )


def test_neither_threads_nor_ranges_change_what_is_found(planted: tuple[list[str], Pairs], tmp_path: Path) -> None:
    texts, _ = planted
    results = []
    for threads in (1, 3):
        (folder := tmp_path / str(threads)).mkdir()
        with indexed(folder, texts, threads=threads) as index:
            twins = near_duplicates(index, np.arange(len(texts)))
            results.append([twins.place.tolist(), twins.twin.tolist(), twins.jaccard.tolist()])
    assert results[0] == results[1]


def test_a_huge_bucket_costs_in_proportion_to_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    before, after = words(rng, 25), words(rng, 25)
    texts = [f"{before} {''.join(rng.choices('abcdefghijklmnop', k=7))} {after}" for _ in range(3000)]
    compared_pairs = []
    measured = TextIndex.jaccards

    def counted(self: TextIndex, one: Any, other: Any) -> Any:
        compared_pairs.append(len(one))
        return measured(self, one, other)

    monkeypatch.setattr(TextIndex, "jaccards", counted)
    with indexed(tmp_path, texts) as index:
        duplicates = near_duplicates(index, np.arange(len(texts)))
    assert duplicates.place.tolist() == list(range(1, 3000)) and set(duplicates.twin.tolist()) == {0}
    assert sum(compared_pairs) < 8 * len(texts), "all pairs would be 4.5 million"


def test_texts_alike_but_not_enough_are_given_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    frame = words(rng, 40).split()
    texts = []
    for _ in range(1500):
        own = frame.copy()
        for at in rng.sample(range(40), 4):
            own[at] = "".join(rng.choices("abcdefghijklmnop", k=7))
        texts.append(" ".join(own))
    compared_pairs = []
    measured = TextIndex.jaccards

    def counted(self: TextIndex, one: Any, other: Any) -> Any:
        compared_pairs.append(len(one))
        return measured(self, one, other)

    monkeypatch.setattr(TextIndex, "jaccards", counted)
    with indexed(tmp_path, texts) as index:
        near_duplicates(index, np.arange(len(texts)))
    assert 0 < sum(compared_pairs) < 25 * len(texts), "all pairs would be 1.1 million"


def test_clusters_join_what_is_alike_through_others() -> None:
    labels = np.arange(7)
    join(labels, np.array([1, 5, 0]), np.array([2, 4, 1]))
    assert labels.tolist() == [0, 0, 0, 3, 4, 4, 6]
    join(labels, np.array([6, 6]), np.array([5, 2]))
    assert labels.tolist() == [0, 0, 0, 3, 0, 0, 0]


@pytest.mark.parametrize("texts", [[], ["only one"], ["a", "a"], ["", "b"]])
def test_few_and_tiny_texts(texts: list[str], tmp_path: Path) -> None:
    with indexed(tmp_path, texts) as index:
        duplicates = near_duplicates(index, np.arange(len(texts)))
        assert len(too_close(index, np.arange(len(texts)), np.arange(0)).place) == 0
    assert duplicates.place.tolist() == ([1] if texts == ["a", "a"] else [])
