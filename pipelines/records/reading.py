"""Records: their common shape, the readers of users' files, and the built-in corpus."""

import codecs
import glob
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TextIO

import pyarrow.parquet as parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import UsageError
from pipelines.lake.files import announce
from pipelines.records import delimited, globbing, json_stream, parquet_values, text_encoding
from pipelines.records.delimited import SEPARATORS
from pipelines.records.expected import NO_VALUE, what_is_wrong
from pipelines.records.shapes.mapping import SHAPES, map_fields

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".tsv")
MAX_LINE_BYTES = 128 << 20
COLUMNS_HINT = (
    "Or say which is what: columns: {instruction: …, output: …} in sources, or --columns instruction=…,output=…."
)
# Length of the beginning of an overlong line that is kept.
SHOWN_CHARS = 1000
Side = Literal["train", "eval"]
# The file's name of a field, by the project's name.
Columns = Mapping[Any, str] | None
Say = Callable[[str], None]


class Message(BaseModel):
    """A turn. `train: false` marks an answer that is context only.

    Tool calls and their results exist only if `cleaning.tool_calls` keeps them.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    role: str
    content: str
    train: bool | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class Record(BaseModel):
    """One example. `input` may be empty.

    `messages` (several turns, system prompt) replaces instruction, input and output.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    instruction: str
    input: str = ""
    output: str
    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    language: str | None = None
    topic: str | None = None


@dataclass(frozen=True)
class RawRecord:
    """A record before mapping: `value` is the source's own value, `problem` says why it could not
    be read.

    `call_key` is the journal's key of the request that produced it; only records written by a model
    have one. `damaged` means that its bytes are not valid text. `side` is the side of the split
    that its source is fixed to; None if the record's own hash decides.
    """

    source: str
    value: Any
    provider: str | None = None
    model: str | None = None
    topic: str | None = None
    language: str | None = None
    problem: str | None = None
    call_key: str | None = None
    damaged: bool = False
    side: Side | None = None
    columns: Columns = None


def explain(error: ValidationError) -> str:
    """The validation error in one line: each field with its problem and its value."""
    parts = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"] if part != "[key]") or "record"
        value = "" if item["type"] in NO_VALUE else f" (got {item['input']!r:.60})"
        parts.append(f"{place}: {what_is_wrong(item)}{value}")
    return "; ".join(parts)


def read_corpus(path: Path) -> list[dict[str, Any]]:
    """The records of corpus.json, read strictly. The file is part of the project, so a mistake in
    it is an error.

    Raises:
        UsageError: the file is missing, is not JSON, is not a list of records, or has a record with
            a wrong field.
    """
    values = read_json_list(path)
    for i, value in enumerate(values):
        try:
            Record.model_validate(value)
        except ValidationError as error:
            raise UsageError(
                f"{path}: record {i} (counted from 0): {explain(error)}; expected an object with the texts "
                "instruction, input and output. Mend that record."
            ) from None
    if not values:
        raise UsageError(f"{path}: holds no records; expected a list of instruction/input/output objects.")
    return values


def read_json_list(path: Path, encoding: str = "utf-8") -> list[Any]:
    text = _read_text(path, encoding)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        raise UsageError(
            f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg} near {line.strip()[:60]!r}; "
            "expected a list of records. Mend the file, or name it .jsonl if it holds one record a line."
        ) from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply; expected a list of records.") from None
    # An integer with thousands of digits.
    except ValueError as error:
        raise UsageError(f"{path}: not JSON that can be read: {error}; expected a list of records.") from None
    if not isinstance(values, list):
        raise UsageError(f"{path}: holds {str(values)[:40]!r}, which is no list; expected a list of records.")
    return values


def _read_text(path: Path, encoding: str) -> str:
    with _open_file(path) as handle:
        try:
            return handle.read().decode(_codec(encoding))
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{path}: byte {error.start} is not {encoding.upper()}; save the file as UTF-8, or declare its encoding."
            ) from None


def expand(patterns: list[str], folder: Path = Path(), *, say: Say = announce) -> list[Path]:
    """The files that paths and globs name. A relative pattern is relative to `folder`; `~` is the
    home folder.

    A plain path may be a link to anywhere. A glob stays within its folder, and `say` gets a line
    for each linked folder that `**` does not enter.

    Raises:
        UsageError: a pattern matches nothing, a folder, something that is not a regular file, or a
            file of an unknown kind; or a glob matches a link that leads out of its folder.
    """
    files: list[Path] = []
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)
        absolute = os.path.join(glob.escape(str(folder)), expanded)
        paths = sorted(globbing.files_of(absolute, say)) or [folder / expanded]
        for path in paths:
            if path.is_dir():
                raise UsageError(f"{path}: is a folder; name its files, such as {path}/*.jsonl.")
            if not path.is_file():
                raise UsageError(f"{path}: {_no_file(path)}.")
            if path.suffix.lower() not in SUFFIXES:
                raise UsageError(f"{path}: unknown kind {path.suffix!r}; expected one of {', '.join(SUFFIXES)}.")
            if glob.has_magic(expanded) and (base := globbing.leads_out(absolute, path)) is not None:
                raise UsageError(
                    f"{path}: is a link that leads out of {base} to {path.resolve()}; to use that file, name it "
                    "directly, without * in its path."
                )
        files += paths
    return list(dict.fromkeys(files))


def _no_file(path: Path) -> str:
    if os.path.exists(path):
        return "not a file; a pipe or a device holds no records"
    return f"no such file, only a link to {path.readlink()}" if path.is_symlink() else "no such file"


def read_file(
    path: Path,
    *,
    encoding: str = "utf-8",
    side: Side | None = None,
    columns: Columns = None,
    say: Say = announce,
) -> Iterator[RawRecord]:
    """The raw records of a user's file, read in pieces. A broken line of JSONL or CSV costs only
    that line.

    `say` gets a line for a CSV file that is not UTF-8 with commas: its encoding and separator.

    Raises:
        UsageError: the file cannot be read, does not match its suffix, or is a CSV file with mostly
            broken rows. The message names the place.
    """
    readers = {".json": _read_json, ".jsonl": _read_lines, ".parquet": _read_parquet}
    suffix = path.suffix.lower()
    _check_not_packed(path)
    rows = readers[suffix](path, encoding, columns) if suffix in readers else _read_csv(path, encoding, columns, say)
    for value, problem, damaged in rows:
        yield RawRecord(path.name, value, problem=problem, damaged=damaged, side=side, columns=columns)


# A record's value, its problem, and whether its bytes are not valid text.
Read = Iterator[tuple[Any, str | None, bool]]


@contextmanager
def _open_file(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as handle:
            yield handle
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}; expected a file with records.") from None


def _text(handle: IO[bytes], encoding: str, errors: str) -> TextIO:
    return io.TextIOWrapper(handle, _codec(encoding), errors=errors, newline="")


def _codec(encoding: str) -> str:
    return "utf-8-sig" if encoding == "utf-8" else encoding


def _read_json(path: Path, encoding: str, _: Columns) -> Read:
    with _open_file(path) as handle:
        try:
            for value, problem in json_stream.list_items(_text(handle, encoding, "strict")):
                yield value, problem, False
            return
        except (ValueError, RecursionError):
            # Reading the complete file below gives a better message.
            pass
    read_json_list(path, encoding)
    raise UsageError(f"{path}: not a JSON list that can be read piece by piece; expected a list of records.")


def _read_lines(path: Path, encoding: str, _: Columns) -> Read:
    with _open_file(path) as handle:
        for number, (line, complete) in enumerate(_lines(handle), start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UsageError(f"{path}: is UTF-16; save the file as UTF-8.")
            if line.strip():
                yield _parse_line(line, number, encoding) if complete else _too_long(line, number)


def _lines(handle: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each line, and whether it is complete. Of an overlong line only the beginning is read."""
    while line := handle.readline(MAX_LINE_BYTES):
        first = rest = line
        while len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = handle.readline(MAX_LINE_BYTES)
        yield line, rest is first


def _parse_line(line: bytes, number: int, encoding: str) -> tuple[Any, str | None, bool]:
    try:
        value = json_stream.loads(line.decode(encoding).strip())
        is_list = isinstance(value, list)
        return value, f"line {number} holds a list, not a record: name the file .json" if is_list else None, False
    except UnicodeDecodeError as error:
        problem = f"line {number}: byte {error.start} is not {encoding.upper()}; save the file as UTF-8, or declare its encoding"
        return line.decode(encoding, errors="replace").rstrip("\n"), problem, True
    except (ValueError, RecursionError) as error:
        text = line.decode(encoding).rstrip("\n")
        hint = "; a .jsonl file holds one whole record a line" if text.strip() in ("{", "[", "}", "},", "]") else ""
        reason = error if isinstance(error, ValueError) else "nested too deeply"
        return text, f"line {number}: not JSON that can be read: {reason}{hint}", False


def _too_long(line: bytes, number: int) -> tuple[Any, str | None, bool]:
    shown = line[:SHOWN_CHARS].decode("utf-8", errors="replace")
    return shown, f"line {number}: longer than {MAX_LINE_BYTES >> 20} MiB, only its start is kept", False


def _check_not_packed(path: Path) -> None:
    with _open_file(path) as handle:
        head = handle.read(4)
    if head.startswith(b"\x1f\x8b"):
        raise UsageError(f"{path}: is packed with gzip; unpack it first: gunzip.")
    if head.startswith(b"PK\x03\x04"):
        raise UsageError(
            f"{path}: is a zip archive, as Excel's workbooks are; unpack it, or save the sheet as CSV (UTF-8)."
        )


def _read_csv(path: Path, encoding: str, columns: Columns, say: Say) -> Read:
    with _open_file(path) as handle:
        codec = text_encoding.detect(handle) if encoding == "utf-8" else encoding
        is_utf8 = codec == "utf-8-sig"
        # Invalid bytes cost only their own record.
        text = _text(handle, codec, "surrogateescape" if is_utf8 else "replace")
        separator = _separator(path, text, columns)
        rows = delimited.rows(text, separator)
        header = next(rows, None)
        if header and header.problem:
            raise UsageError(f"{path}: {header.place}: {header.problem}; expected the names of the columns.")
        names = header.cells if header else []
        _check_header(path, names, columns)
        if not is_utf8 or separator != ",":
            say(f"{path}: read as {text_encoding.display_name(codec)}, its cells separated by {SEPARATORS[separator]}s")
        records = (_csv_record(row, names, codec, SEPARATORS[separator]) for row in rows)
        yield from _unless_most_are_broken(path, records)


def _separator(path: Path, text: TextIO, columns: Columns) -> str:
    """The separator that gives the first line known columns, else the most cells."""
    while (line := text.readline(delimited.MAX_CHARS)) and not line.strip():
        pass
    text.seek(0)
    candidates = sorted(SEPARATORS, key=lambda sign: path.suffix.lower() == ".tsv" and sign != "\t")
    names_by_sign = {sign: delimited.cells_of(line.rstrip("\r\n"), sign) for sign in candidates}
    matches = (sign for sign, names in names_by_sign.items() if _are_known(names, columns))
    return next(matches, None) or max(candidates, key=lambda sign: len(names_by_sign[sign]) or line.count(sign) + 1)


def _are_known(names: list[str], columns: Columns) -> bool:
    if columns:
        return set(columns.values()) <= set(names)
    return map_fields(dict.fromkeys(names, "x")).shape != "unknown"


def _unless_most_are_broken(path: Path, records: Read) -> Read:
    """The same records.

    Raises:
        UsageError: more than half of them are broken; the message has the first problem.
    """
    total, broken, first = 0, 0, ""
    for value, problem, damaged in records:
        total += 1
        if problem:
            broken, first = broken + 1, first or problem
        yield value, problem, damaged
    if 2 * broken > total:
        raise UsageError(
            f"{path}: {broken} of its {total} rows cannot be read as CSV; the first: {first}. Mend the file, or save it as JSONL."
        )


def _csv_record(row: delimited.Row, names: list[str], codec: str, separator: str) -> tuple[Any, str | None, bool]:
    if row.problem:
        return row.text, f"{row.place}: {row.problem}", False
    value = dict(zip(names, row.cells, strict=False))
    width, cells = len(names), len(row.cells)
    # The last columns may have no name.
    named_width = next((at for at in range(width, 0, -1) if names[at - 1]), 0)
    if _is_damaged(row.cells, codec):
        encoding = text_encoding.display_name(codec)
        return value, f"{row.place}: not {encoding}; save the file as UTF-8, or declare its encoding", True
    if cells > width or any(map(str.strip, row.cells[named_width:])):
        header = f"the header has {width}" if cells > width else f"the header names {named_width}"
        return value, f"{row.place}: {cells} cells, {header}; quote cells that hold {separator}s", False
    if cells < width:
        count = "1 cell" if cells == 1 else f"{cells} cells"
        return value, f"{row.place}: {count}, the header has {width}; a row has as many cells as the header", False
    return value, None, False


def _is_damaged(cells: list[str], codec: str) -> bool:
    """Whether some bytes were invalid in this encoding; `_read_csv` chooses what replaces them."""
    text = "".join(cells)
    return not text.isascii() and (_readable(text) != text if codec == "utf-8-sig" else "\ufffd" in text)


def _readable(text: str) -> str:
    """`text` with a question mark for every invalid byte."""
    return text.encode("utf-8", errors="replace").decode()


def _check_header(path: Path, names: list[str], columns: Columns) -> None:
    names = [_readable(name) for name in names]
    _check_columns(path, names, columns)
    if not columns and map_fields(dict.fromkeys(names, "x")).shape == "unknown":
        raise UsageError(
            f"{path}: its columns are {_name_list(names)}; expected {SHAPES}. {COLUMNS_HINT} The first line must name the columns."
        )


def _check_columns(path: Path, names: list[str], columns: Columns) -> None:
    if repeated := next((name for at, name in enumerate(names) if name and name in names[:at]), None):
        raise UsageError(f"{path}: the column {repeated!r} stands twice; rename one of the two.")
    if missing := [f"{theirs!r} ({ours})" for ours, theirs in (columns or {}).items() if theirs not in names]:
        raise UsageError(f"{path}: has no column {', '.join(missing)}; its columns are {_name_list(names)}.")


def _name_list(names: list[str]) -> str:
    shown = ", ".join(name if len(name) <= 60 else f"{name[:60]}…" for name in names[:20])
    return (shown + (", …" if len(names) > 20 else "")) or "none"


def _read_parquet(path: Path, _: str, columns: Columns) -> Read:
    with _open_file(path) as handle:
        try:
            file = parquet.ParquetFile(handle)
            _check_columns(path, file.schema_arrow.names, columns)
            for batch in file.iter_batches(batch_size=2000):
                yield from ((value, None, False) for value in parquet_values.rows(batch))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: not a Parquet file: {error}") from None
