"""CSV of many programs: separators and encodings are detected and reported, and an unclear row
costs only itself."""

import io
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UsageError
from pipelines.records import delimited, text_encoding
from pipelines.records.delimited import SEPARATORS
from pipelines.records.reading import RawRecord, read_file

GOOD = '"q1","a1"\n"q2","a2"\n"q3","a3"\n"q4","a4"\n'
FRENCH = "Où est le café près de la mairie ?;Là-bas, à côté de l’église.\nÇa va ?;Très bien, merci, c’est gentil."
POLISH = (
    "Gdzie jest najbliższa księgarnia?;Za rogiem, obok sklepu z zegarami.\nCo robi żółw?;Śpi, a źdźbło trawy rośnie."
)
KOREAN = "오늘 밤 뭘 읽을까요?;짧은 것을 읽으세요.\n책을 추천해 주세요;『어린이라는 세계』를 추천합니다."
JAPANESE = "図書館はどこですか。;駅の近くにあります。\nこの本は何の話ですか。;静かな町で暮らす老人と少女の友情です。"
CHINESE = "图书馆在哪里?;在市场旁边。\n这本书讲什么?;讲一个老人和一个女孩的友谊。"
RUSSIAN = (
    "Где находится ближайшая библиотека?;Она рядом с рынком.\nО чём эта книга?;О человеке, который вернулся домой."
)


def read(folder: Path, content: str | bytes, name: str = "a.csv", **options: Any) -> tuple[list[RawRecord], list[str]]:
    """The records of such a file, and the messages."""
    path, lines = folder / name, []
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_file(path, say=lines.append, **options)), lines


def pairs(records: list[RawRecord]) -> list[tuple[str, str]]:
    return [(one.value["instruction"], one.value["output"]) for one in records if one.problem is None]


def problems(records: list[RawRecord]) -> list[str]:
    return [one.problem for one in records if one.problem is not None]


# --- unclear rows


@pytest.mark.parametrize(
    ("rows", "good", "message"),
    [
        ("q5,one, two\n", "1234", 'line 6: 3 cells, the header has 2; quote cells that hold commas'),
        ("q5\n", "1234", "line 6: 1 cell, the header has 2; a row has as many cells as the header"),
        ('"q5","a5\n"q6","a6"\n', "12346", 'line 6: a quotation mark is never closed, or one inside a quoted cell is not'),
        ('q5,"a5\nq6,a6\nq7,a7\n', "123467", "line 6: a quotation mark is never closed"),
        ('"q5","He said "no" to me"\n"q6","a6"\n', "12346", "line 6: a quotation mark inside a quoted cell is not doubled"),
        ('"q5","Say "no".\nWell, yes.\nThe end."\n"q6","a6"\n', "12346", "lines 6 to 8: a quotation mark inside a quoted cell"),
        ('"q5","two\nlines",more\nq6,a6\n', "12346", "lines 6 to 7: 3 cells, the header has 2"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_clear_costs_itself_only(tmp_path: Path, rows: str, good: str, message: str) -> None:
    records, _ = read(tmp_path, f"instruction,output\n{GOOD}{rows}")
    assert pairs(records) == [(f"q{number}", f"a{number}") for number in good]
    (problem,) = problems(records)
    assert problem.startswith(message)


def test_rows_stay_unsure_only_so_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_UNSURE", 3)
    plain = "".join(f"q{number},a{number}\n" for number in range(3, 9))
    records, _ = read(tmp_path, f'instruction,output\nq1,a1\nq2,"a2\n{plain}x,5" long\n')
    assert problems(records) == ["line 3: " + delimited.NOT_DOUBLED]
    assert len(pairs(records)) == 8, "a mark of inches so much later ends no cell"


def test_a_line_without_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_CHARS", 2000)
    records, _ = read(tmp_path, f"instruction,output\n{GOOD}q5,{'x' * 9000}\nq6,a6\n")
    assert problems(records) == ["line 6: longer than 2,000 characters, only its start is kept"]
    assert pairs(records)[-1] == ("q6", "a6")


def test_a_file_of_mostly_broken_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        read(tmp_path, "instruction,output\n" + "q,one, two\n" * 5 + GOOD)
    detail = "5 of its 9 rows cannot be read as CSV; the first: line 2: 3 cells, the header has 2; quote cells that hold commas"
    assert str(raised.value) == f"{tmp_path / 'a.csv'}: {detail}. Mend the file, or save it as JSONL."
    records, _ = read(tmp_path, "instruction,output\n" + "q,one, two\n" * 4 + GOOD)
    assert len(problems(records)) == len(pairs(records)) == 4


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_header_that_is_not_clear_is_refused(tmp_path: Path, name: str) -> None:
    sign = "\t" if name.endswith("tsv") else ","
    for header, message in (
        ('instruction,"output', "line 1: a quotation mark is never closed; expected the names of the columns"),
        ("instruction,output,output", "the column 'output' stands twice"),
        ("What is it?,A book.", "its columns are What is it?, A book.; expected instruction"),
    ):
        with pytest.raises(UsageError, match=r".*") as raised:
            read(tmp_path, (header + "\nq,a,b\n").replace(",", sign), name)
        assert message in str(raised.value)


def test_columns_without_a_name_must_be_empty_at_the_end(tmp_path: Path) -> None:
    records, _ = read(tmp_path, ",instruction,output,,\n0,q1,a1,,\n1,q2,a2,,\n2,q3,cut, here,\n")
    assert pairs(records) == [("q1", "a1"), ("q2", "a2")]
    assert problems(records) == ["line 4: 5 cells, the header names 3; quote cells that hold commas"]


def test_cells_that_a_spreadsheet_would_compute_are_texts(tmp_path: Path) -> None:
    cells = ["=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("http://x","y")', "=cmd|' /C calc'!A0"]
    rows = "".join(f'q,"{cell.replace(chr(34), chr(34) * 2)}"\n' for cell in cells)
    records, _ = read(tmp_path, f"instruction,output\n{rows}")
    assert [answer for _, answer in pairs(records)] == cells


# --- separators and encodings


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_separator_is_the_header_s_and_is_said(tmp_path: Path, separator: str, name: str) -> None:
    question = "".join(sign for sign in SEPARATORS if sign != separator)
    records, lines = read(tmp_path, f"\ninstruction{separator}output\n{question}{separator}That.\n", name)
    assert pairs(records) == [(question, "That.")]
    line = f"{tmp_path / name}: read as UTF-8, its cells separated by {SEPARATORS[separator]}s"
    assert lines == ([] if separator == "," else [line])


@pytest.mark.parametrize(
    ("text", "codec", "shown"),
    [
        (FRENCH, "utf-8", "UTF-8"), (FRENCH, "utf-8-sig", "UTF-8"), (FRENCH, "utf-16", "UTF-16"),
        (FRENCH, "utf-16-le", "UTF-16-LE"), (FRENCH, "utf-16-be", "UTF-16-BE"), (KOREAN, "utf-32", "UTF-32"),
        (FRENCH, "cp1252", "cp1252"), (POLISH, "cp1250", "cp1250"), (RUSSIAN, "cp1251", "cp1251"), (RUSSIAN, "koi8_r", "koi8_r"),
        (KOREAN, "cp949", "cp949"), (JAPANESE, "cp932", "cp932"), (CHINESE, "gb18030", "gb18030"), (KOREAN, "utf-8", "UTF-8"),
    ],
)  # fmt: skip
def test_an_encoding_is_found_out_and_said(tmp_path: Path, text: str, codec: str, shown: str) -> None:
    records, lines = read(tmp_path, f"instruction;output\n{text}\n".encode(codec))
    assert pairs(records) == [tuple(line.split(";")) for line in text.split("\n")]
    assert lines == [f"{tmp_path / 'a.csv'}: read as {shown}, its cells separated by semicolons"]


def test_damage_in_utf8_is_no_other_encoding(tmp_path: Path) -> None:
    rows = f"instruction;output\n{FRENCH}\n".encode() + b"Which\xff?;That.\n"
    records, _ = read(tmp_path, rows)
    assert len(pairs(records)) == 2
    assert problems(records) == ["line 4: not UTF-8; save the file as UTF-8, or declare its encoding"]
    assert records[-1].damaged


@pytest.mark.parametrize("codec", ["cp949", "cp932", "gb18030"])
def test_too_little_text_says_no_encoding(codec: str) -> None:
    word = {"cp949": "무슨 책?", "cp932": "本", "gb18030": "书"}[codec]
    assert text_encoding.detect(io.BytesIO(f"instruction,output\n{word},\n".encode(codec))) == "utf-8-sig"


def test_a_single_odd_byte_says_no_encoding() -> None:
    assert text_encoding.detect(io.BytesIO(b"instruction,output\nWhich\x81?,That.\n" * 3)) == "utf-8-sig"
    assert text_encoding.detect(io.BytesIO(b"")) == text_encoding.detect(io.BytesIO(b"\0" * 50)) == "utf-8-sig"


def test_what_is_far_behind_ascii_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoding, "PIECE_BYTES", 64)
    handle = io.BytesIO(b"plain,ascii\n" * 1000 + FRENCH.encode("cp1252"))
    assert text_encoding.detect(handle) == "cp1252" and handle.tell() == 0


def test_a_declared_encoding_is_not_doubted(tmp_path: Path) -> None:
    content = f"instruction;output\n{FRENCH}\n".encode("cp1252")
    records, lines = read(tmp_path, content, encoding="mac_roman")
    assert pairs(records)[0][0] == content.split(b"\n")[1].split(b";")[0].decode("mac_roman")
    assert lines == [f"{tmp_path / 'a.csv'}: read as mac_roman, its cells separated by semicolons"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.tsv", "a.parquet"])
def test_a_packed_file_says_that_it_is_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: is packed with gzip; unpack it first"):
        read(tmp_path, b"\x1f\x8b\x08\x00rest", name)
    with pytest.raises(UsageError, match=f"{name}: is a zip archive, as Excel's workbooks are"):
        read(tmp_path, b"PK\x03\x04rest", name)
