"""Records: the shape that everything else trusts, the readers of files that people bring, and the built-in corpus."""

import csv
import glob
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import UsageError

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    role: str
    content: str


class Record(BaseModel):
    """One example as data: `input` may be empty; `messages` (multi-turn, system prompt) takes the place of all three."""

    model_config = ConfigDict(extra="ignore", strict=True)

    instruction: str
    input: str = ""
    output: str
    messages: list[Message] | None = None
    language: str | None = None
    topic: str | None = None


@dataclass(frozen=True)
class RawRecord:
    """A record as it came: `value` is whatever the source held, `problem` why it could not even be read.

    `call_key` is the journal's key of the request that made it; only records that a model wrote have one.
    """

    source: str
    value: Any
    provider: str | None = None
    model: str | None = None
    topic: str | None = None
    language: str | None = None
    problem: str | None = None
    call_key: str | None = None


def explain(error: ValidationError) -> str:
    """The validation error in one line: each field, what was wrong, what was found."""
    parts = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "record"
        found = "" if item["type"] == "missing" else f" (got {item['input']!r:.60})"
        parts.append(f"{place}: {item['msg']}{found}")
    return "; ".join(parts)


def read_corpus(path: Path) -> list[dict[str, Any]]:
    """The records of corpus.json, strictly: this file is tracked, so a mistake in it is named, not dropped.

    Raises:
        UsageError: not there, not JSON, not a list of records, or a record with a wrong field.
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


def read_json_list(path: Path) -> list[Any]:
    text = _read_text(path)
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
    except ValueError as error:  # a whole number of thousands of digits
        raise UsageError(f"{path}: not JSON that can be read: {error}; expected a list of records.") from None
    if not isinstance(values, list):
        raise UsageError(f"{path}: holds {type(values).__name__} {str(values)[:40]!r}; expected a list of records.")
    return values


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; expected a file with records.") from None


def expand(patterns: list[str]) -> list[Path]:
    """The files that paths and globs name.

    Raises:
        UsageError: a pattern that names nothing, a folder, or a file of an unknown kind.
    """
    files: list[Path] = []
    for pattern in patterns:
        found = sorted(Path(name) for name in glob.glob(pattern, recursive=True)) or [Path(pattern)]
        for path in found:
            if path.is_dir():
                raise UsageError(f"{path}: is a folder; name its files, such as {path}/*.jsonl.")
            if not path.exists():
                raise UsageError(f"{path}: no such file.")
            if path.suffix.lower() not in SUFFIXES:
                raise UsageError(f"{path}: unknown kind {path.suffix!r}; expected one of {', '.join(SUFFIXES)}.")
        files += found
    return list(dict.fromkeys(files))


def read_file(path: Path) -> Iterator[RawRecord]:
    """The raw records of a user's file. A broken line of JSONL costs that line only."""
    source = path.name
    suffix = path.suffix.lower()
    if suffix == ".json":
        yield from (RawRecord(source=source, value=value) for value in read_json_list(path))
    elif suffix == ".jsonl":
        yield from _read_lines(path)
    elif suffix == ".csv":
        yield from _read_csv(path)
    else:
        try:
            rows = parquet.read_table(path).to_pylist()
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: not a Parquet file: {error}") from None
        yield from (RawRecord(source=source, value=row) for row in rows)


def _read_lines(path: Path) -> Iterator[RawRecord]:
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from None
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield RawRecord(source=path.name, value=json.loads(line.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            shown = line.decode("utf-8", errors="replace")
            yield RawRecord(source=path.name, value=shown, problem=f"line {number}: {type(error).__name__}: {error}")


def _read_csv(path: Path) -> Iterator[RawRecord]:
    text = _read_text(path)
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    needed = {"instruction", "output"}
    if not needed <= set(reader.fieldnames or []):
        raise UsageError(
            f"{path}: its columns are {', '.join(reader.fieldnames or []) or 'none'}; expected instruction, input, output."
        )
    try:
        for row in reader:
            value = {key: cell for key, cell in row.items() if key is not None and cell is not None}
            yield RawRecord(source=path.name, value=value)
    except csv.Error as error:
        raise UsageError(f"{path}: line {reader.line_num}: not CSV: {error}") from None
