"""Raw records, one after another → the table `staged`: checked fields, normalized text, and the record as it came.

The table holds one row a record, numbered `n` as they arrived; nothing that is decided later hangs on that number.
"""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from pipelines.clean.shingles import repeated_share
from pipelines.clean.work import Work
from pipelines.records import RawRecord, Record, explain
from pipelines.shapes import map_fields

COLUMNS = pa.schema(
    [
        ("n", pa.int64()), ("content_hash", pa.string()), ("source", pa.string()), ("provider", pa.string()),
        ("model", pa.string()), ("topic", pa.string()), ("language", pa.string()), ("call_key", pa.string()),
        ("fixed_side", pa.string()), ("instruction", pa.string()), ("input", pa.string()), ("output", pa.string()),
        ("messages", pa.string()), ("asked", pa.string()), ("normalized", pa.string()), ("repeated_share", pa.float64()),
        ("problem", pa.string()), ("damaged", pa.bool_()), ("record", pa.string()),
    ]
)  # fmt: skip
BATCH_RECORDS = 4000
BATCH_CHARS = 8_000_000
TEXTS = ("instruction", "input", "output")
LABELS = ("provider", "model", "topic", "language", "call_key")
AS_IT_CAME = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=str)
Row = dict[str, Any]


@dataclass
class Staged:
    """What was read: records in all, and per source how many came in which shape and how many turns were dropped."""

    read: int = 0
    shapes: dict[str, Counter[str]] = field(default_factory=dict)
    dropped_turns: Counter[str] = field(default_factory=Counter)


def stage(work: Work, records: Iterable[RawRecord]) -> Staged:
    """Fill the table `staged`; a batch at a time, so that records may come from a stream of any length."""
    work.db.register("batch", COLUMNS.empty_table())
    work.db.execute("CREATE TABLE staged AS SELECT * FROM batch")
    staged = Staged()
    written: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:  # one batch is written while the next is read
        for rows in _batches(records, staged):
            if written:
                written.result()
            written = writer.submit(_insert, work, rows, first=staged.read)
            staged.read += len(rows)
        if written:
            written.result()
    return staged


def _batches(records: Iterable[RawRecord], staged: Staged) -> Iterator[list[Row]]:
    rows, chars = [], 0
    for raw in records:
        row = _row(raw, staged)
        rows.append(row)
        chars += len(row["record"]) + len(row["normalized"])
        if len(rows) >= BATCH_RECORDS or chars > BATCH_CHARS:
            yield rows
            rows, chars = [], 0
    if rows:
        yield rows


def _insert(work: Work, rows: list[Row], *, first: int) -> None:
    shares = repeated_share([row["output"] for row in rows])
    columns = {name: [row[name] for row in rows] for name in COLUMNS.names if name not in ("n", "repeated_share")}
    columns |= {"n": range(first, first + len(rows)), "repeated_share": shares}
    arrays = [pa.array(columns[name], type=COLUMNS.field(name).type) for name in COLUMNS.names]
    work.db.register("batch", pa.Table.from_arrays(arrays, schema=COLUMNS))
    work.db.execute("INSERT INTO staged SELECT * FROM batch")


def _row(raw: RawRecord, staged: Staged) -> Row:
    fields, shape, dropped = _checked(raw)
    source = storable(raw.source)
    staged.shapes.setdefault(source, Counter())[shape] += 1
    staged.dropped_turns[source] += dropped
    labels = {name: label and storable(label) for name in LABELS for label in (getattr(raw, name),)}
    row: Row = {
        "source": source, **labels, "fixed_side": raw.side, "instruction": "", "input": "", "output": "", "messages": None,
        "asked": "", "normalized": "", "problem": None, "damaged": False, **fields,
    }  # fmt: skip
    row["record"] = _as_it_came(raw.value)
    # over every column, so that records of equal hash differ in nothing and their order cannot show
    content = "\x1f".join(["\x1e" if value is None else str(value) for value in row.values()])
    row["content_hash"] = hashlib.sha256(content.encode()).hexdigest()[:16]
    return row


def _checked(raw: RawRecord) -> tuple[Row, str, int]:
    """The fields of a record or the problem it has, the shape it came in, and how many of its turns were dropped."""
    if raw.problem is not None:
        return {"problem": storable(raw.problem), "damaged": raw.damaged}, "unread", 0
    try:
        mapped = map_fields(raw.value)
        fields = {"problem": storable(mapped.problem)} if mapped.problem else _validated(mapped.fields)
        return fields, mapped.shape, mapped.dropped_turns
    except RecursionError:
        return {"problem": "nested too deeply to be read"}, "unread", 0


def _validated(fields: Any) -> Row:
    try:
        return _fields(Record.model_validate(fields))
    except ValidationError as error:
        return {"problem": storable(explain(error))}


def _fields(record: Record) -> Row:
    texts = {name: getattr(record, name) for name in TEXTS}
    named = {name: found for name in ("topic", "language") if (found := getattr(record, name))}
    turns = [(message.role, message.content) for message in record.messages or []]
    if turns and not any(role == "assistant" for role, _ in turns):
        return {"problem": "messages: no turn of the role assistant, so there is nothing to learn"}
    for name, text in {**texts, **named, "messages": "\n".join(part for turn in turns for part in turn)}.items():
        if storable(text) != text:
            return {"problem": f"{name} holds a lone surrogate or a NUL character", "damaged": True}
    texts = {name: unicodedata.normalize("NFC", text) for name, text in texts.items()}
    asked = normalized(f"{texts['instruction']}\n{texts['input']}")
    said = "\n".join(text for _, text in turns) if turns else texts["output"]
    messages = [{"role": role, "content": text} for role, text in turns]
    return {
        **texts,
        **named,
        "messages": json.dumps(messages, ensure_ascii=False) if messages else None,
        "asked": asked,
        "normalized": f"{asked} {normalized(said)}".strip(),
    }


def normalized(text: str) -> str:
    """`text` as duplicates are judged by: Unicode NFC, lower case, any white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def storable(text: str) -> str:
    """`text` without what UTF-8 or DuckDB cannot hold: lone surrogates and NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-8", errors="replace").decode("utf-8")
    return text.replace("\0", "\ufffd")


def _as_it_came(value: Any) -> str:
    try:
        return storable(AS_IT_CAME.encode(value))
    except (RecursionError, TypeError, ValueError):  # too deep, or keys that do not sort
        return ""
