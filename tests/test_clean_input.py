"""Any input file: a clear message or a reject with its reason, and the last good result
untouched."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from pipelines.clean.clean import CleaningResult, clean, current, examples, rejects
from pipelines.clean.read import file_records, hub_records, named_files, raw_records
from pipelines.clean.results import queried, summary
from pipelines.cli import main
from pipelines.errors import UsageError, WorkError
from pipelines.lake.paths import DataRoot
from pipelines.records import reading
from pipelines.records.reading import RawRecord, read_file
from pipelines.settings.cleaning import Cleaning
from pipelines.settings.sources import FileSource, HubSource
from tests.project import TinyProject
from tests.sft_records import SETTINGS, contents, prose, stories, story

GOOD_LINES = [json.dumps(story(i, korean=i % 2 == 1), ensure_ascii=False) for i in range(40)]


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot(tmp_path / "data")


def saved(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def cleaned(data: DataRoot, *paths: Path, encoding: Any = "utf-8", settings: Cleaning = SETTINGS) -> CleaningResult:
    named = named_files([FileSource(path=str(path), encoding=encoding) for path in paths])
    return clean(data, file_records(named), settings)


def among_good(data: DataRoot, folder: Path, *lines: bytes) -> dict[str, int]:
    """The reject reasons of these lines in a file with forty good ones."""
    path = saved(folder, "mine.jsonl", "\n".join(GOOD_LINES).encode() + b"\n" + b"\n".join(lines) + b"\n")
    result = cleaned(data, path)
    assert result.read == 40 + len(lines) and result.accepted == result.read - sum(result.reasons.values())
    assert all(row["record"] for row in rejects(result))
    return result.reasons


# --- unusable files: exit code 2, and the last result stays


def folder_named(path: Path) -> None:
    path.mkdir()


def looping_link(path: Path) -> None:
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def holding(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("gone.jsonl", lambda path: None, "no such file"),
        ("folder.jsonl", folder_named, "is a folder; name its files"),
        ("loop.jsonl", looping_link, "no such file"),
        ("pipe.jsonl", pipe, "not a file"),
        ("empty.json", holding(b""), "not JSON"),
        ("empty.csv", holding(b""), "its columns are none"),
        ("empty.parquet", holding(b""), "not a Parquet file"),
        ("cut.json", holding(json.dumps([story(1), story(2)]).encode()[:-20]), "not JSON"),
        ("binary.json", holding(bytes(range(256))), "byte 128 is not UTF-8"),
        ("latin.json", holding('[{"instruction": "café"}]'.encode("latin-1")), "is not UTF-8; save the file as UTF-8, or"),
        ("object.json", holding(b'{"instruction": "x"}'), "expected a list of records"),
        ("after.json", holding(b"[{}] [{}]"), "not JSON"),
        ("other.csv", holding(b"title;text\nx;y\n"), "its columns are title, text; expected instruction"),
        ("wide.jsonl", holding(json.dumps(story(1)).encode("utf-16")), "is UTF-16; save the file as UTF-8"),
        ("cut.parquet", holding(b"PAR1" + bytes(200) + b"PAR1"), "not a Parquet file"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_exits_2_names_itself_and_leaves_the_last_result(
    project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, make: Any, message: str
) -> None:
    good = saved(tmp_path, "good.jsonl", "\n".join(GOOD_LINES))
    assert main(["clean", "--input", str(good)]) == 0
    before = current(project.data)
    capsys.readouterr()
    make(tmp_path / name)
    assert main(["clean", "--input", str(good), "--input", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert str(tmp_path / name) in captured.err and message in captured.err
    assert "Traceback" not in captured.err and not captured.out
    assert before is not None and current(project.data) == before and len(examples(before)) == before.accepted
    assert not (project.data.lake / "work" / "clean").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"\x00\x00\x00\n", b"[]\n{}\n"], ids=["none", "blank", "NUL", "no fields"]
)
def test_a_file_without_a_good_record_exits_1_and_leaves_the_last_result(
    project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    good = saved(tmp_path, "good.jsonl", "\n".join(GOOD_LINES))
    assert main(["clean", "--input", str(good)]) == 0
    before = current(project.data)
    assert main(["clean", "--input", str(saved(tmp_path, "bad.jsonl", content))]) == 1
    assert "kept 0 train and 0 eval" in capsys.readouterr().err
    assert current(project.data) == before


# --- unusable lines: a reject each


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param(b'{"instruction": "x', "schema", id="cut"),
        pytest.param(b"\x00" * 50, "schema", id="NUL"),
        pytest.param(b"\xff\xfe\xfa", "encoding", id="no UTF-8"),
        pytest.param("{\"instruction\": \"책 추천\"}".encode("cp949"), "encoding", id="CP949"),
        pytest.param(b'{"instruction": "a", "output": "b", "output": "c"}', "schema", id="a key twice"),
        pytest.param(b'{"instruction": 7, "output": 8}', "schema", id="numbers"),
        pytest.param(b'{"instruction": {"a": ["b"]}, "output": [[["c"]]]}', "schema", id="nested"),
        pytest.param(b"[" * 5000 + b"]" * 5000, "schema", id="deep"),
        pytest.param(b"NaN", "schema", id="NaN"),
        pytest.param(b"1e999", "schema", id="infinity"),
        pytest.param(b"9" * 5000, "schema", id="digits"),
        pytest.param(json.dumps({**story(1), "output": "\ud83d" + story(1)["output"]}).encode(), "encoding", id="half an emoji"),
        pytest.param(json.dumps({**story(1), "output": "a\0b" + story(1)["output"]}).encode(), "encoding", id="NUL inside"),
        pytest.param(json.dumps({**story(1), "output": "five " * 30}).encode(), "repetition", id="one word over and over"),
    ],
)  # fmt: skip
def test_a_broken_line_is_a_reject(data: DataRoot, tmp_path: Path, line: bytes, reason: str) -> None:
    assert among_good(data, tmp_path, line) == {reason: 1}


def test_a_key_that_stands_twice_is_named(data: DataRoot, tmp_path: Path) -> None:
    twice = '{"instruction": "a", "output": "b", "output": "c"}'
    one, two = saved(tmp_path, "a.jsonl", twice), saved(tmp_path, "a.json", f"[{GOOD_LINES[0]}, {twice}]")
    (line,) = read_file(one)
    _, element = read_file(two)
    assert "the key 'output' stands twice" in str(line.problem) and line.problem != element.problem
    assert element.problem == "the key 'output' stands twice in one object"


@pytest.mark.parametrize(
    "text", ["كتاب قصير عن البحر والليل الطويل في المدينة القديمة", "ספר קצר על הים ועל הלילה הארוך בעיר העתיקה"]
)
def test_right_to_left_text_is_text_in_another_language(data: DataRoot, tmp_path: Path, text: str) -> None:
    line = json.dumps({**story(1), "output": text}, ensure_ascii=False).encode()
    assert among_good(data, tmp_path, line) == {"wrong_language": 1}


def test_emoji_and_joined_signs_are_kept_as_they_are(data: DataRoot, tmp_path: Path) -> None:
    text = story(1)["output"] + " 👩‍👩‍👧‍👦 🇰🇷 ‏"
    among_good(data, tmp_path, json.dumps({**story(1000), "output": text}, ensure_ascii=False).encode())
    result = current(data)
    assert result is not None and text in {row["output"] for row in examples(result)}


@pytest.mark.slow
def test_a_record_of_fifty_megabytes_is_too_long_and_kept_whole(data: DataRoot, tmp_path: Path) -> None:
    huge = {**story(1), "output": "책 한 권 " * 4_200_000}
    among_good(data, tmp_path, json.dumps(huge, ensure_ascii=False).encode())
    result = current(data)
    assert result is not None and result.reasons == {"too_long": 1}
    assert json.loads(rejects(result)[0]["record"]) == huge


def test_a_line_longer_than_is_read_at_once_costs_itself_only(
    data: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 5000)

    def line(length: int) -> bytes:
        bare = json.dumps({**story(1), "output": ""}).encode()
        return bare.replace(b'""}', b'"' + b"x" * (length - len(bare)) + b'"}')

    path = saved(tmp_path, "a.jsonl", b"\n".join([line(4999), line(5000), line(17_000), GOOD_LINES[0].encode()]))
    records = list(read_file(path))
    assert [record.problem is None for record in records] == [True, False, False, True]
    assert records[2].problem == "line 3: longer than 0 MiB, only its start is kept" and len(records[2].value) == 1000


@pytest.mark.slow
def test_a_million_identical_records_are_one(data: DataRoot) -> None:
    same = (RawRecord("mine", story(10_000)) for _ in range(1_000_000))
    result = clean(data, [*stories(30), *same], SETTINGS)
    assert (result.accepted, result.reasons) == (31, {"exact_duplicate": 999_999})


# --- encodings


def test_a_declared_encoding_is_read(data: DataRoot, tmp_path: Path) -> None:
    korean = [story(i, korean=True) for i in range(30)]
    korean = [{k: v.encode("cp949", "ignore").decode("cp949") for k, v in r.items()} for r in korean]
    lines = "\n".join(json.dumps(r, ensure_ascii=False) for r in korean)
    for name, content in (("a.jsonl", lines), ("a.json", f"[{lines.replace(chr(10), ',')}]")):
        path = saved(tmp_path, name, content.encode("cp949"))
        assert [record.value for record in read_file(path, encoding="cp949")] == korean
    rows = "instruction,input,output\n" + "".join(f'"{r["instruction"]}",,"{r["output"]}"\n' for r in korean)
    plain = [r for r in korean if '"' not in r["instruction"] + r["output"]]
    values = [record.value for record in read_file(saved(tmp_path, "a.csv", rows.encode("cp949")), encoding="cp949")]
    assert [r for r in values if r in plain] == plain
    assert cleaned(data, tmp_path / "a.jsonl", encoding="cp949").rejected == 0
    undeclared = saved(tmp_path, "b.jsonl", "\n".join(GOOD_LINES).encode() + b"\n" + lines.encode("cp949"))
    assert cleaned(data, undeclared).reasons["encoding"] == 30


def test_the_command_takes_an_encoding(project: TinyProject, tmp_path: Path) -> None:
    lines = "\n".join(line for line in GOOD_LINES if line.encode("cp949", "ignore").decode("cp949") == line)
    path = saved(tmp_path, "a.jsonl", lines.encode("cp949"))
    assert main(["clean", "--input", str(path), "--encoding", "cp949"]) == 0
    result = current(project.data)
    assert result is not None and result.rejected == 0 and result.read >= 20


def test_bytes_that_are_no_text_cost_their_csv_row_only(data: DataRoot, tmp_path: Path) -> None:
    rows = [
        f'"{r["instruction"]}","{r["output"]}"'.encode()
        for r in (story(i) for i in range(40))
        if '"' not in r["instruction"] + r["output"]
    ]
    path = saved(
        tmp_path, "a.csv", b"instruction,output\n" + b"\n".join(rows) + b'\nWhich book\xff is it?,"It is a book."\n'
    )
    result = cleaned(data, path)
    assert result.reasons == {"encoding": 1} and result.accepted == len(rows)


# --- pieces


def test_a_json_list_is_read_in_pieces_wherever_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    values = [story(1), 12345, -1.5e-7, '글자\\"]', [[], {}], None, True, {"a": {"b": "]},["}}, story(2, korean=True)]
    path = tmp_path / "a.json"
    for _ in range(40):
        rng.shuffle(values)
        path.write_text(
            json.dumps(values, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])), encoding="utf-8"
        )
        monkeypatch.setattr("pipelines.records.json_stream.PIECE", rng.randint(1, 40))
        assert [record.value for record in read_file(path)] == values


def test_only_a_part_of_a_large_file_is_held(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.json", "[" + ",".join(GOOD_LINES * 500) + "]")
    first = next(iter(read_file(path)))
    assert first.value == json.loads(GOOD_LINES[0])
    broken = saved(tmp_path, "b.json", "[" + ",".join(GOOD_LINES * 500))
    read = read_file(broken)
    assert next(read).value == json.loads(GOOD_LINES[0]), "the first record arrives before the end is read"
    with pytest.raises(UsageError, match=r"b\.json:1:\d+: not JSON"):
        list(read)


# --- sources


def test_only_sources_that_may_serve_evaluation_do(tmp_path: Path) -> None:
    kinds = {"may": True, "only-trains": False}
    for name in kinds:
        saved(
            tmp_path,
            f"{name}.jsonl",
            "\n".join(json.dumps(story(i)) for i in range(len(name) * 100, len(name) * 100 + 60)),
        )
    files = [FileSource(path=str(tmp_path / f"{name}.jsonl"), evaluate=evaluate) for name, evaluate in kinds.items()]
    result = clean(DataRoot(tmp_path / "data"), file_records(named_files(files)), SETTINGS)
    counts = {
        (r["source"], r["split"]): r["n"]
        for r in queried(result, "SELECT source, split, count(*) AS n FROM examples GROUP BY ALL")
    }
    assert counts.keys() == {("may.jsonl", "train"), ("may.jsonl", "eval"), ("only-trains.jsonl", "train")}


def test_a_fixed_eval_file_is_all_that_is_evaluated_on(project: TinyProject, tmp_path: Path) -> None:
    held_out = [story(i) for i in range(20)]
    leaked = {**held_out[0], "output": held_out[0]["output"] + "!"}
    saved(tmp_path, "eval.jsonl", "\n".join(map(json.dumps, held_out)))
    saved(tmp_path, "mine.jsonl", "\n".join(map(json.dumps, [*(story(i) for i in range(100, 150)), leaked])))
    project.change(sources={"files": [str(tmp_path / "mine.jsonl")], "eval_files": [str(tmp_path / "eval.jsonl")]})
    stage = project.now()
    result = clean(stage.data, raw_records(stage.data, stage.experiments), stage.experiments.cleaning)
    assert (result.train, result.eval, result.reasons) == (50, 20, {"contamination": 1})
    assert {r["source"] for r in examples(result) if r["split"] == "eval"} == {"eval.jsonl"}


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.jsonl", GOOD_LINES[0])
    named = named_files([FileSource(path=str(path), evaluate=False), FileSource(path=f"{tmp_path}/*.jsonl")])
    (record,) = file_records(named)
    assert record.side == "train", "as the first that names it says"


def test_a_dataset_is_read_through_datasets_with_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    saved(tmp_path / "set", "train.jsonl", "\n".join(GOOD_LINES))
    half = list(hub_records(HubSource(dataset=str(tmp_path / "set"), split="train[:50%]", evaluate=False)))
    assert [record.value for record in half] == [json.loads(line) for line in GOOD_LINES[:20]]
    assert {record.side for record in half} == {"train"}
    with pytest.raises(UsageError, match="split 'tset'"):
        list(hub_records(HubSource(dataset=str(tmp_path / "set"), split="tset")))


def test_a_dataset_may_hold_dates_beyond_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    times = pa.array([1, 300_000_000_000, 2], pa.int64()).cast(pa.timestamp("s"))
    numbers = pa.array(["one", "two", "three"])
    table = pa.table({"instruction": numbers, "output": numbers, "at": times})
    parquet.write_table(table, tmp_path / "set" / "train.parquet")
    rows = [record.value for record in hub_records(HubSource(dataset=str(tmp_path / "set")))]
    assert [row["instruction"] for row in rows] == ["one", "two", "three"]
    assert [str(row["at"])[:10] for row in rows] == ["1970-01-01", "11476-08-1", "1970-01-01"]


# --- one result or the other, nothing in between


def test_threads_and_memory_change_nothing(data: DataRoot) -> None:
    records = [*stories(300), *stories(100, source="mine.jsonl", first=50)]
    first = contents(clean(data, records, Cleaning(threads=1)))
    assert contents(clean(data, records[::-1], Cleaning(threads=4, memory_limit_gb=0.25))) == first


def test_the_summary_adds_up_to_what_was_read(data: DataRoot) -> None:
    records = [*stories(40), *(RawRecord("mine", {"a": i}, provider="p") for i in range(7)), *stories(3, source="mine")]
    result = clean(data, records, SETTINGS)
    rows = summary(result)
    assert sum(row["records"] for row in rows) == result.read == 50
    assert {(r["source"], r["provider"], r["reason"]): r["records"] for r in rows} == {
        ("corpus", None, "accepted"): 40, ("mine", "p", "schema"): 7, ("mine", None, "exact_duplicate"): 3,
    }  # fmt: skip
    assert sum(row["share"] for row in rows) == pytest.approx(3.0), "shares are of a source and provider"


def test_call_keys_go_with_examples_and_rejects(data: DataRoot) -> None:
    records = [
        RawRecord("providers", story(500), call_key="kept"),
        RawRecord("providers", {"a": 1}, call_key="dropped"),
    ]
    result = clean(data, stories(30) + records, SETTINGS)
    assert {row["call_key"] for row in examples(result)} == {None, "kept"}
    assert [row["call_key"] for row in rejects(result)] == ["dropped"]


def test_a_full_disk_is_named_and_the_last_result_stays(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    good = clean(data, stories(40), SETTINGS)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.clean.results.os.fsync", full)
    with pytest.raises(WorkError, match=r"No space left on device.*The last result is untouched; free disk space"):
        clean(data, stories(41), SETTINGS)
    assert current(data) == good and len(examples(good)) == 40
    assert not (data.lake / "work" / "clean").exists()


@pytest.mark.slow
def test_too_little_memory_is_named(data: DataRoot) -> None:
    good = clean(data, stories(40), SETTINGS)
    huge = RawRecord("mine", {**story(1), "output": "책 한 권 " * 9_000_000})
    with pytest.raises(WorkError, match=r"more than its 0\.25 GB.*raise cleaning\.memory_limit_gb"):
        clean(data, [*stories(30), huge], Cleaning(memory_limit_gb=0.25))
    assert current(data) == good


CLEAN_LOOP = """
import sys
from pathlib import Path
from pipelines.clean.clean import clean
from pipelines.settings.cleaning import Cleaning
from pipelines.lake.paths import DataRoot
from tests.sft_records import stories
print("started", flush=True)
for count in range(100, 1000):
    clean(DataRoot(Path(sys.argv[1])), stories(count), Cleaning())
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_result(data: DataRoot) -> None:
    clean(data, stories(40), SETTINGS)
    rng = random.Random(8)
    for _ in range(50):
        with subprocess.Popen(
            [sys.executable, "-c", CLEAN_LOOP, str(data.root)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None and child.stdout.readline() == "started\n"
            time.sleep(rng.uniform(0, 1.5))
            child.send_signal(signal.SIGKILL)
        result = current(data)
        assert result is not None
        assert len(examples(result)) == result.accepted and len(rejects(result)) == result.rejected
        assert sum(row["records"] for row in summary(result)) == result.read
    after = clean(data, stories(45), SETTINGS)
    assert current(data) == after and not (data.lake / "work" / "clean").exists()


def test_long_texts_are_judged_like_short_ones(data: DataRoot) -> None:
    long = {**story(1), "output": prose(7000)}
    near = {**long, "output": prose(7000)[:-40]}
    result = clean(data, [*stories(30), RawRecord("a", long), RawRecord("b", near)], SETTINGS)
    assert result.reasons == {"near_duplicate": 1}


def test_a_trial_shows_everything_and_changes_nothing(
    data: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(data.root))
    good, other = (
        saved(tmp_path, "good.jsonl", "\n".join(GOOD_LINES)),
        saved(tmp_path, "other.jsonl", "\n".join(GOOD_LINES[5:])),
    )
    assert main(["clean", "--try", "--input", str(other)]) == 0 and current(data) is None
    assert main(["clean", "--input", str(good)]) == 0
    first = current(data)
    assert first and "until the next `clean` without --input" in capsys.readouterr().out
    assert main(["clean", "--try", "--input", str(other)]) == 0
    shown = capsys.readouterr().out
    assert "35 records read = 35 accepted" in shown and f'sources: {{files: ["{other}"]}}' in shown
    assert "tried only" in shown and "stale" not in shown
    assert current(data) == first
    assert main(["clean", "--input", str(other)]) == 0
    assert "rows that were trained or evaluated on others are stale" in capsys.readouterr().out
    assert current(data) != first
