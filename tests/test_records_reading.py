"""Reading records: the corpus strictly, users' files tolerantly; every refusal names the file and
the place."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from pipelines.errors import UsageError
from pipelines.records.reading import RawRecord, expand, read_corpus, read_file

ONE = {"instruction": "What do I read tonight?", "input": "", "output": "Something short."}
TWO = {"instruction": "오늘 밤 뭘 읽을까요?", "input": "피곤해요", "output": "짧은 것, 『어린이라는 세계』 한 꼭지."}
BOM = b"\xef\xbb\xbf"


def json_bytes(records: list[Any]) -> bytes:
    return json.dumps(records, ensure_ascii=False, indent=1).encode()


def jsonl_bytes(records: list[Any]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def saved(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path) -> list[Any]:
    return [record.value for record in read_file(path)]


def write_csv(path: Path, records: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return path


# --- the corpus


def test_a_good_corpus_is_read_as_it_stands(tmp_path: Path) -> None:
    assert read_corpus(saved(tmp_path, "corpus.json", json_bytes([ONE, TWO]))) == [ONE, TWO]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"instruction": "x", "input": ""}, "output: is missing"),
        ({"input": "", "output": "y"}, "instruction: is missing"),
        ({**ONE, "output": 7}, "output: expected a text (got 7)"),
        ({**ONE, "instruction": None}, "instruction: expected a text (got None)"),
        ({**ONE, "input": ["a"]}, "input: expected a text (got ['a'])"),
        ({**ONE, "messages": [{"role": "user"}]}, "messages.0.content: is missing"),
        ("just a text", "got 'just a text'"),
        (None, "got None"),
    ],
)
def test_a_broken_record_of_the_corpus_names_file_record_and_value(tmp_path: Path, broken: Any, message: str) -> None:
    path = saved(tmp_path, "corpus.json", json_bytes([ONE, TWO, broken, ONE]))
    with pytest.raises(UsageError) as raised:
        read_corpus(path)
    assert str(raised.value).startswith(f"{path}: record 2 (counted from 0): ")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ":1:1: not JSON"),
        ("[]", "holds no records"),
        ('{"instruction": "x"}', "which is no list"),
        ('"text"', "holds 'text', which is no list"),
        ("[{}\n {}]", ":2:2: not JSON: Expecting ',' delimiter near '{}]'"),
        ('[{"instruction": "a"},\n', ":2:1: not JSON"),
        ('{"a": 1}\n{"a": 2}\n', "name it .jsonl if it holds one record a line"),
        ("[" * 100_000, "nested too deeply"),
        (f"[{'1' * 5000}]", "not JSON"),
        (b"\xff\xfe[]", "byte 0 is not UTF-8"),
    ],
)
def test_a_corpus_that_is_no_list_of_records_says_what_and_where(
    tmp_path: Path, content: bytes | str, message: str
) -> None:
    path = saved(tmp_path, "corpus.json", content)
    with pytest.raises(UsageError) as raised:
        read_corpus(path)
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)


# --- people's files, each kind


def test_every_kind_of_file_gives_the_same_records(tmp_path: Path) -> None:
    files = [
        saved(tmp_path, "a.json", json_bytes([ONE, TWO])),
        saved(tmp_path, "a.jsonl", jsonl_bytes([ONE, TWO])),
        write_csv(tmp_path / "a.csv", [ONE, TWO]),
        tmp_path / "a.parquet",
    ]
    parquet.write_table(pa.Table.from_pylist([ONE, TWO]), files[-1])
    for path in files:
        assert list(read_file(path)) == [RawRecord(source=path.name, value=value) for value in (ONE, TWO)]


def test_the_suffix_may_be_upper_case(tmp_path: Path) -> None:
    assert values(saved(tmp_path, "A.JSONL", jsonl_bytes([ONE]))) == [ONE]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path: Path, name: str) -> None:
    plain = {
        "a.json": json_bytes([TWO]),
        "a.jsonl": jsonl_bytes([TWO]),
        "a.csv": write_csv(tmp_path / "plain.csv", [TWO]).read_bytes(),
    }
    assert values(saved(tmp_path, name, BOM + plain[name])) == [TWO]


def test_records_are_not_judged_while_they_are_read(tmp_path: Path) -> None:
    odd = [{"question": "?"}, 7, None, [1], "text"]
    assert values(saved(tmp_path, "odd.json", json_bytes(odd))) == odd
    assert values(saved(tmp_path, "odd.jsonl", jsonl_bytes(odd))) == odd


# --- JSONL: a broken line costs that line only


@pytest.mark.parametrize(
    "broken",
    [b"{oops", b'{"instruction": "x"', b'"\xff\xfe"', b"[" * 100_000, b"1" * 5000, b'{"a": 1} {"a": 2}'],
    ids=["no JSON", "cut", "not UTF-8", "deep", "long number", "two in one"],
)
def test_a_broken_line_costs_that_line_only(tmp_path: Path, broken: bytes) -> None:
    path = saved(tmp_path, "a.jsonl", jsonl_bytes([ONE]) + broken + b"\n" + jsonl_bytes([TWO]))
    first, bad, last = read_file(path)
    assert (first.value, first.problem, last.value, last.problem) == (ONE, None, TWO, None)
    assert bad.problem is not None
    assert bad.problem.startswith("line 2: ")
    assert bad.value == broken.decode(errors="replace"), "what the line held stays visible"


def test_blank_lines_and_windows_line_ends_are_no_records(tmp_path: Path) -> None:
    content = b"\r\n" + jsonl_bytes([ONE]).replace(b"\n", b"\r\n") + b"  \n\n" + jsonl_bytes([TWO]).rstrip()
    assert values(saved(tmp_path, "a.jsonl", content)) == [ONE, TWO]


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    record = {**ONE, "output": "one\u2028two\x85three"}
    assert values(saved(tmp_path, "a.jsonl", jsonl_bytes([record, TWO]))) == [record, TWO]


# --- CSV


def test_csv_texts_keep_their_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    record = {**ONE, "output": 'He said "no",\nthen\r\nleft.'}
    assert values(write_csv(tmp_path / "a.csv", [record, TWO])) == [record, TWO]


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0c", "\x1c"])
def test_only_a_line_break_ends_a_csv_row(tmp_path: Path, odd: str) -> None:
    path = saved(tmp_path, "a.csv", f"instruction,input,output\nread{odd}what,,this one\n")
    assert values(path) == [{"instruction": f"read{odd}what", "input": "", "output": "this one"}]


def test_csv_may_lack_the_input_column_and_have_others(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.csv", "rating,output,instruction\n5,this,that\n")
    assert values(path) == [{"rating": "5", "output": "this", "instruction": "that"}]


def test_a_csv_row_with_too_few_cells_lacks_those_fields(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.csv", "instruction,input,output\nonly this\na,b,c\n")
    assert values(path) == [{"instruction": "only this"}, {"instruction": "a", "input": "b", "output": "c"}]


def test_a_csv_without_the_columns_says_which_it_has(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.csv", "titel,text\nx,y\n")
    with pytest.raises(UsageError, match=r"a\.csv: its columns are titel, text; expected instruction, input, output"):
        values(path)
    with pytest.raises(UsageError, match="its columns are none"):
        values(saved(tmp_path, "empty.csv", ""))


def test_a_very_long_csv_cell_is_read(tmp_path: Path) -> None:
    record = {**ONE, "output": "long " * 100_000}
    assert values(write_csv(tmp_path / "a.csv", [record])) == [record]


# --- missing, empty, not what they are called


@pytest.mark.parametrize("name", ["gone.json", "gone.jsonl", "gone.csv", "gone.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=name.replace(".", r"\.")):
        values(tmp_path / name)
    with pytest.raises(UsageError, match=rf"{name}: no such file"):
        expand([str(tmp_path / name)])


@pytest.mark.parametrize("name", ["folder", "folder.json", "folder.parquet"])
def test_a_folder_is_named_as_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=rf"{name}: is a folder; name its files"):
        expand([str(tmp_path / name)])


@pytest.mark.parametrize("name", ["folder.json", "folder.jsonl", "folder.csv"])
def test_reading_a_folder_is_refused_too(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=f"{name}: cannot be read"):
        values(tmp_path / name)


@pytest.mark.parametrize("name", ["notes.txt", "records", "records.json.gz"])
def test_an_unknown_suffix_says_which_are_known(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, name, "x")
    with pytest.raises(UsageError, match=r"unknown kind .*expected one of \.json, \.jsonl, \.csv, \.parquet"):
        expand([str(path)])


@pytest.mark.parametrize("content", [b"", b"PAR1", json_bytes([ONE])])
def test_a_parquet_file_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    path = saved(tmp_path, "a.parquet", content)
    with pytest.raises(UsageError, match=r"a\.parquet: not a Parquet file"):
        values(path)


def test_empty_files_hold_no_records(tmp_path: Path) -> None:
    assert values(saved(tmp_path, "a.jsonl", "")) == []
    assert values(saved(tmp_path, "b.jsonl", "\n\n")) == []
    assert values(saved(tmp_path, "a.json", "[]")) == []
    assert values(saved(tmp_path, "a.csv", "instruction,input,output\n")) == []
    with pytest.raises(UsageError, match=r"b\.json:1:1: not JSON"):
        values(saved(tmp_path, "b.json", ""))


# --- globs


def test_globs_name_each_file_once_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "d.csv"):
        saved(tmp_path, name, "")
    patterns = [f"{tmp_path}/*.jsonl", f"{tmp_path}/a.jsonl", f"{tmp_path}/**/*.jsonl"]
    assert [str(path.relative_to(tmp_path)) for path in expand(patterns)] == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    path = saved(tmp_path, "data[1].jsonl", "")
    assert expand([str(path)]) == [path]


def test_a_glob_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\*\.csv: no such file"):
        expand([f"{tmp_path}/*.csv"])


def test_a_glob_stays_within_its_folder(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    saved(outside, "far.jsonl", "")
    own = saved(inside, "a.jsonl", "")
    (inside / "b.jsonl").symlink_to("a.jsonl")
    assert expand([f"{inside}/*.jsonl"]) == [own, inside / "b.jsonl"], "a link that stays within is a file"
    (inside / "c.jsonl").symlink_to(outside / "far.jsonl")
    for pattern in (f"{inside}/*.jsonl", f"{inside}/**/*.jsonl", f"{inside}/[c].jsonl"):
        with pytest.raises(UsageError, match=r"c\.jsonl: is a link that leads out of .*inside to .*outside/far\.jsonl"):
            expand([pattern])
    assert expand([f"{inside}/c.jsonl"]) == [inside / "c.jsonl"], "named by itself it is meant"
    (inside / "c.jsonl").unlink()
    (inside / "folder").symlink_to(outside)
    with pytest.raises(UsageError, match=r"folder/far\.jsonl: is a link that leads out"):
        expand([f"{inside}/*/*.jsonl"])


def test_no_glob_goes_round_in_circles(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    own = saved(tmp_path / "deep", "a.jsonl", "")
    saved(tmp_path, ".hidden.jsonl", "")
    for name in ("one", "two"):
        (tmp_path / "deep" / name).symlink_to(tmp_path)
    lines: list[str] = []
    assert expand([f"{tmp_path}/**/*.jsonl"], say=lines.append) == [own]
    detail = f"is a link to the folder {tmp_path}, which ** does not enter; name it if it is meant"
    assert lines == [f"{tmp_path}/deep/one: {detail}", f"{tmp_path}/deep/two: {detail}"]
    assert expand([f"{tmp_path}/**/deep/**/*.jsonl"], say=lines.append) == [own]


def test_what_a_glob_finds_that_is_no_file_is_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match=r"a\.jsonl: not a file; a pipe or a device holds no records"):
        expand([f"{tmp_path}/*.jsonl"])
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "b.jsonl").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"b\.jsonl: not a file; a pipe or a device holds no records"):
        expand([f"{tmp_path}/*.jsonl"])
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "c.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(UsageError, match=r"c\.jsonl: no such file, only a link to gone\.jsonl"):
        expand([f"{tmp_path}/**"])


# --- Parquet holds more than Python


def test_values_beyond_python_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    far = pa.array([300_000_000_000], pa.int64())
    columns = {
        "instruction": pa.array(["What is far?"]),
        "output": pa.array(["The year 11476."]),
        "at": far.cast(pa.timestamp("s")),
        "day": pa.array([4_000_000], pa.int32()).cast(pa.date32()),
        "took": pa.array([10**15], pa.int64()).cast(pa.duration("s")),
        "exact": pa.array([1], pa.int64()).cast(pa.timestamp("ns")),
        "nowhere": pa.array([1], pa.int64()).cast(pa.timestamp("s", tz="Nowhere/X")),
        "deep": pa.StructArray.from_arrays([pa.ListArray.from_arrays([0, 1], far.cast(pa.timestamp("s")))], ["at"]),
    }
    parquet.write_table(pa.table(columns), path)
    (record,) = read_file(path)
    assert (record.problem, record.value["output"]) == (None, "The year 11476.")
    assert record.value["at"] == "11476-08-15 05:20:00.000" and record.value["deep"] == {
        "at": ["11476-08-15 05:20:00.000"]
    }
    assert (record.value["day"], record.value["took"]) == ("12921-08-18", "1000000000000000")
    assert str(record.value["exact"]) == "1970-01-01 00:00:00.000000001"
    assert record.value["nowhere"] == "timestamp[ms, tz=Nowhere/X]: a value that cannot be shown"


def test_a_parquet_text_that_is_no_utf8_costs_its_record_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = pa.array([b"good", b"bad \xff"], pa.binary()).cast(pa.string(), safe=False)
    parquet.write_table(pa.table({"instruction": ["a", "b"], "output": texts}), path)
    assert values(path) == [{"instruction": "a", "output": "good"}, {"instruction": "b", "output": "bad \udcff"}]


def test_a_parquet_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    twice = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], ["instruction", "output", "output"]
    )
    parquet.write_table(twice, path)
    with pytest.raises(UsageError, match=r"a\.parquet: the column 'output' stands twice"):
        values(path)
