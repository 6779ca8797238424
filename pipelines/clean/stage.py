"""Raw records, one after another → the table `staged`: checked fields, normalized text, and the
original record.

The table has one row per record. Some columns:

- `n`: number in order of arrival; no later decision depends on it
- `said`: every learned answer of a conversation; NULL: `output` is the only one
- `normalized`: the text by which exact duplicates are judged
- `compared`: the text for near-duplicates, if it differs; it lacks the system prompt, which does
  not make records similar
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from pipelines.clean.shingles import repeated_share
from pipelines.clean.work import Work
from pipelines.records.reading import Message, RawRecord, Record, explain
from pipelines.records.shapes.labels import binary_label
from pipelines.records.shapes.mapping import Mapped, kind, map_fields
from pipelines.records.shapes.options import DEFAULT, Options

COLUMNS = pa.schema(
    [
        ("n", pa.int64()), ("content_hash", pa.string()), ("source", pa.string()), ("provider", pa.string()),
        ("model", pa.string()), ("topic", pa.string()), ("language", pa.string()), ("call_key", pa.string()),
        ("fixed_side", pa.string()), ("instruction", pa.string()), ("input", pa.string()), ("output", pa.string()),
        ("messages", pa.string()), ("tools", pa.string()), ("asked", pa.string()), ("said", pa.string()),
        ("normalized", pa.string()), ("compared", pa.string()), ("answer_chars", pa.int64()), ("longest_turn", pa.int64()),
        ("repeated_share", pa.float64()),
        ("numbered_label", pa.int8()), ("verdict", pa.string()), ("problem", pa.string()), ("damaged", pa.bool_()),
        ("record", pa.string()),
    ]
)  # fmt: skip
# All other columns follow from these, together with the names of `columns`.
HASHED = ("source", "provider", "model", "topic", "language", "call_key", "fixed_side", "problem", "damaged", "record")
BATCH_RECORDS = 4000
BATCH_CHARS = 8_000_000
TEXTS = ("instruction", "input", "output")
RECORD_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=str)
Row = dict[str, Any]


@dataclass
class Staged:
    """Counts of the records that were read.

    `read`: records in all. The others are per source: records by shape, dropped turns, ignored or
    changed features (`notes`), and the fields of its first record (`first`).
    """

    options: Options = DEFAULT
    read: int = 0
    shapes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    dropped_turns: Counter[str] = field(default_factory=Counter)
    notes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    first: dict[str, str] = field(default_factory=dict)


def stage(work: Work, records: Iterable[RawRecord], options: Options = DEFAULT) -> Staged:
    """Fill the table `staged` in batches, so that the stream of records may have any length."""
    work.db.register("batch", COLUMNS.empty_table())
    work.db.execute("CREATE TABLE staged AS SELECT * FROM batch")
    staged = Staged(options)
    pending: Future[None] | None = None
    # One batch is written while the next is read.
    with ThreadPoolExecutor(1) as writer:
        for rows in _batches(records, staged):
            if pending:
                pending.result()
            pending = writer.submit(_insert, work, rows, first=staged.read)
            staged.read += len(rows)
        if pending:
            pending.result()
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


VARIABLE = re.compile(r"\{\{ ?[A-Za-z_]\w{0,30} ?\}\}")


def _insert(work: Work, rows: list[Row], *, first: int) -> None:
    shares = repeated_share([row["said"] or row["output"] for row in rows])
    columns = {name: [row[name] for row in rows] for name in COLUMNS.names if name not in ("n", "repeated_share")}
    columns |= {"n": range(first, first + len(rows)), "repeated_share": shares}
    arrays = [pa.array(columns[name], type=COLUMNS.field(name).type) for name in COLUMNS.names]
    work.db.register("batch", pa.Table.from_arrays(arrays, schema=COLUMNS))
    work.db.execute("INSERT INTO staged SELECT * FROM batch")


def _row(raw: RawRecord, staged: Staged) -> Row:
    fields, mapped = _checked(raw, staged.options)
    source = storable(raw.source)
    staged.shapes[source][mapped.shape] += 1
    staged.dropped_turns[source] += mapped.dropped_turns
    if mapped.notes:
        counts = staged.notes[source]
        for name, count in mapped.notes.items():
            counts[name] += count
    if "{{" in (answers := fields.get("said") or fields.get("output", "")) and VARIABLE.search(answers):
        staged.notes[source]["answers with a variable such as {{name}}, to be filled in before training"] += 1
    if source not in staged.first:
        staged.first[source] = described(raw.value)
    row: Row = {
        "source": source, "provider": _label(raw.provider), "model": _label(raw.model), "topic": _label(raw.topic),
        "language": _label(raw.language), "call_key": _label(raw.call_key), "fixed_side": raw.side,
        "instruction": "", "input": "", "output": "", "messages": None,
        "tools": None, "asked": "", "said": None, "normalized": "", "compared": None, "answer_chars": 0, "longest_turn": None,
        "numbered_label": binary_label(raw.value, raw.columns), "verdict": None, "problem": None, "damaged": False, **fields,
    }  # fmt: skip
    row["record"] = _as_it_came(raw.value)
    # Records with equal hashes are equal in every column, so their order does not matter.
    content = "\x1f".join(["\x1e" if value is None else str(value) for value in map(row.get, HASHED)]) + str(
        raw.columns or ""
    )
    row["content_hash"] = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
    return row


def _label(text: str | None) -> str | None:
    return text and storable(text)


UNREAD = Mapped("unread")


def _checked(raw: RawRecord, options: Options) -> tuple[Row, Mapped]:
    """The fields of a record or its problem, and how its shape was read."""
    if raw.problem is not None:
        return {"problem": storable(raw.problem), "damaged": raw.damaged}, UNREAD
    try:
        mapped = map_fields(raw.value, options, raw.columns)
        if mapped.reason:
            verdict = None if mapped.reason == "schema" else mapped.reason
            return {"verdict": verdict, "problem": storable(mapped.problem or "")}, mapped
        return (_plain_fields(mapped.fields) if mapped.plain else _validated(mapped.fields)), mapped
    except RecursionError:
        return {"problem": "nested too deeply to be read"}, UNREAD


def _validated(fields: Any) -> Row:
    try:
        return _fields(Record.model_validate(fields))
    except ValidationError as error:
        return {"problem": storable(explain(error))}


def _plain_fields(fields: Mapping[str, Any]) -> Row:
    """The same for fields that are known to be texts, without validation. Most records take this
    path."""
    texts = {"instruction": fields["instruction"], "input": fields.get("input", ""), "output": fields["output"]}
    combined = "\n".join(texts.values())
    if storable(combined) != combined:
        return _validated(fields)
    if not combined.isascii():
        texts = {name: unicodedata.normalize("NFC", text) for name, text in texts.items()}
    return {**texts, **_derived(texts, ())}


def _fields(record: Record) -> Row:
    texts = {name: getattr(record, name) for name in TEXTS}
    labels = {name: value for name in ("topic", "language") if (value := getattr(record, name))}
    turns = record.messages or []
    messages = json.dumps([turn.model_dump(exclude_none=True) for turn in turns], ensure_ascii=False) if turns else None
    tools = json.dumps(record.tools, ensure_ascii=False) if record.tools else None
    checked = {**texts, **labels}
    if turns:
        checked["messages"] = "\n".join((*(turn.content for turn in turns), (messages or "") + (tools or "")))
    for name, text in checked.items():
        if storable(text) != text:
            return {"problem": f"{name} holds a lone surrogate or a NUL character", "damaged": True}
    texts = {name: unicodedata.normalize("NFC", text) for name, text in texts.items()}
    return {**texts, **labels, "messages": messages, "tools": tools, **_derived(texts, turns)}


def restaged(n: int, texts: dict[str, str], turns: list[dict[str, Any]]) -> Row:
    """The columns of row `n` after its texts have changed."""
    messages = [Message.model_validate(turn) for turn in turns]
    serialized = json.dumps(turns, ensure_ascii=False) if turns else None
    return {"n": n, **texts, "messages": serialized, **_NOT_A_CONVERSATION, **_derived(texts, messages)}


_NOT_A_CONVERSATION: Row = {"said": None, "compared": None, "longest_turn": None}


def _derived(texts: dict[str, str], turns: Sequence[Message]) -> Row:
    question = _folded(f"{texts['instruction']}\n{texts['input']}")
    return {"asked": question, **_compared(texts["output"], question, turns)}


def _compared(output: str, question: str, turns: Sequence[Message]) -> Row:
    """The texts by which answers and duplicates are judged. `output` and `question` are NFC
    already."""
    answer = _folded(output)
    if not turns:
        return {"normalized": f"{question} {answer}".strip(), "answer_chars": len(answer)}
    calls = [json.dumps(turn.tool_calls, ensure_ascii=False) for turn in turns if turn.tool_calls]
    spoken_text = " ".join(normalized(turn.content) for turn in turns if turn.role != "system")
    call_text = " ".join(map(normalized, calls))
    system = normalized(" ".join(turn.content for turn in turns if turn.role == "system"))
    return {
        "said": "\n\n".join(turn.content for turn in turns if turn.role == "assistant" and turn.train is not False),
        "normalized": " ".join(filter(None, (question, system, call_text, spoken_text))),
        "compared": " ".join(filter(None, (call_text, spoken_text))),
        "answer_chars": len(answer),
        "longest_turn": max(len(turn.content) for turn in turns),
    }


def described(value: Any) -> str:
    """A record's fields and their kinds, in one line: `prompt (text), score (number)`."""
    if not isinstance(value, dict):
        return f"{kind(value)}: {value!r:.60}"
    fields = ", ".join(
        f"{storable(str(name))[:40]} ({kind(field_value)})" for name, field_value in list(value.items())[:20]
    )
    return fields + (", …" if len(value) > 20 else "") or "none"


def normalized(text: str) -> str:
    """The form of `text` by which duplicates are judged: Unicode NFC, lower case, any white space
    as one space."""
    return _folded(unicodedata.normalize("NFC", text))


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def storable(text: str) -> str:
    """`text` without lone surrogates and NUL, which UTF-8 or DuckDB cannot hold."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-8", errors="replace").decode("utf-8")
    return text.replace("\0", "\ufffd")


def _as_it_came(value: Any) -> str:
    try:
        return storable(RECORD_ENCODER.encode(value))
    except (RecursionError, TypeError, ValueError):
        # Nested too deeply, or with keys that cannot be sorted.
        return ""
