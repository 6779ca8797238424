"""The comparison as text: a terminal table, Markdown for a pull request, JSON and CSV.
Model-written text stays text."""

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from wcwidth import width as cells

from pipelines.compare import covers, outside, rates
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.columns.configured import BENCHMARKS, METRICS, comparison_of, shares_of
from pipelines.compare.disturbed import MARK, is_marked, note
from pipelines.compare.terminal import columns_that_fit, wrapped
from pipelines.lake.schema import Column
from pipelines.records.foreign_text import one_line

Row = dict[str, Any]
Format = Literal["text", "markdown", "json", "csv"]
Columns = Sequence[Column]

SHOWN = COMPARISON.pick(
    "model", "method", "status", "eval_bits_per_byte", "base_bits_per_byte", "delta_base", "delta_base_low", "delta_base_high",
    "rates", "chrf", "peak_memory_gb", "estimated_memory_gb", "memory_vs_full", "train_seconds", "speedup_vs_full",
    "tokens_per_second", "trainable_params", "artifact_mb", "p50_latency_ms", "is_stale", "is_pareto",
)  # fmt: skip
# The columns that a narrow terminal shows, the most important first. Each group is shown completely
# or not at all.
BY_IMPORTANCE = (
    ("model", "method", "status", "eval_bits_per_byte"),
    ("peak_memory_gb",),
    ("train_seconds",),
    ("delta_base",),
    ("is_stale",),
    ("tokens_per_second",),
    ("memory_vs_full",),
    ("artifact_mb",),
    ("delta_base_low", "delta_base_high"),
    ("speedup_vs_full",),
    ("rates",),
    ("base_bits_per_byte",),
    ("chrf",),
    ("p50_latency_ms",),
    ("estimated_memory_gb",),
    ("is_pareto",),
    ("trainable_params",),
)
# Stands for a value that was not measured.
NOTHING = "–"
# A spreadsheet may evaluate a text that begins with one of these.
COMPUTED = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def cell_text(value: Any, digits: int | None, limit: int = 80) -> str:
    """A value formatted for people; a text is cut at `limit` characters."""
    match value:
        case None:
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case int() | float() if digits is not None:
            return f"{value:,.{digits}f}"
        case _:
            return one_line(str(value), limit)


def row_text(row: Row, column: Column, limit: int = 80) -> str:
    """A row's value formatted for people.

    A value that depends on a disturbed speed has a mark (`19 *`), and so has the status of a cell
    outside the profile (`ok, outside profile`).
    """
    mark = f" {MARK}" if is_marked(row, column.name) else ""
    if column.name == "status" and outside.is_outside(row):
        mark = f", {outside.MARK}"
    return cell_text(row[column.name], column.digits, limit) + mark


def full_name(row: Row) -> str:
    return f"{row['model']} × {row['method']}"


def render(rows: Sequence[Row], form: Format, picks: Sequence[Row] = (), room: int | None = None) -> str:
    """The comparison; text and Markdown have the picks above it.

    Text keeps to lines of `room` terminal cells. Columns that do not fit are left out and named
    below.
    """
    if form == "json":
        return as_json(rows)
    if form == "csv":
        return as_csv(rows)
    # An older publication lacks some columns.
    columns: Columns = [column for column in SHOWN if not rows or column.name in rows[0]]
    if rows:
        columns = [*columns, *shares_of(rows[0], METRICS), *shares_of(rows[0], BENCHMARKS)]
    room = room if form == "text" else None
    left_out: list[str] = []
    if room:
        columns, left_out = fitting(rows, columns, room, _ranked(columns), "`featherweight table --wide`")
    table = tabulate(rows, columns, [*left_out, *_notes(rows)], form, room)
    return "\n".join([*(wrapped(_pick_line(pick, form), room) for pick in picks), "", table]) if picks else table


def fitting(
    rows: Sequence[Row], columns: Columns, room: int, by_importance: Sequence[Sequence[str]], elsewhere: str
) -> tuple[Columns, list[str]]:
    """The columns that fit into `room` terminal cells, and a note on the others.

    `elsewhere` says where to see them. `by_importance` lists groups of column names, the most
    important first. A group is shown completely or not at all. Columns without a value are dropped
    first.
    """
    texts = [[column.heading, *(row_text(row, column) for row in rows)] for column in columns]
    widths = [max(map(cells, values)) for values in texts]
    groups = _places_of(columns, by_importance)
    empty = {place for place, (_, *values) in enumerate(texts) if set(values) <= {NOTHING}}
    first, *others = groups
    chosen = columns_that_fit(widths, [first, *sorted(others, key=lambda group: empty.issuperset(group))], room)
    omitted = [column.heading for place, column in enumerate(columns) if place not in chosen]
    message = f"left out to fit {room} columns: {', '.join(omitted)}; {elsewhere} shows every column"
    return [columns[place] for place in chosen], [message] if omitted else []


def _places_of(columns: Columns, named: Sequence[Sequence[str]]) -> list[list[int]]:
    """The places of the named columns, group by group; empty groups are left out."""
    places = {column.name: place for place, column in enumerate(columns)}
    groups = ([places[name] for name in group if name in places] for group in named)
    return [group for group in groups if group]


def _ranked(columns: Columns) -> list[Sequence[str]]:
    """`BY_IMPORTANCE` with the columns of configured metrics and benchmarks near the top."""
    known = [name for group in BY_IMPORTANCE for name in group]
    own = [(column.name,) for column in columns if column.name not in known]
    return [*BY_IMPORTANCE[:4], *own, *BY_IMPORTANCE[4:]]


def wide(rows: Sequence[Row], form: Format) -> str:
    """Every column of the comparison that the rows have, a table for each row; JSON and CSV hold
    all columns anyway."""
    if form in ("json", "csv"):
        return render(rows, form)
    return "\n\n".join(f"{_title(row, form)}\n\n{_every_column(row, form)}" for row in rows)


def _title(row: Row, form: Format) -> str:
    title = one_line(full_name(row), 200)
    return f"**{escape_markdown(title)}**" if form == "markdown" else title


def _every_column(row: Row, form: Format) -> str:
    lines = [["group", "column", "unit", "value"]]
    for name, columns in comparison_of(row).groups().items():
        # An older publication lacks some columns.
        known = [column for column in columns if column.name in row]
        for place, column in enumerate(known):
            lines.append(["" if place else name, column.name, column.unit or "", row_text(row, column, 300)])
    return _drawn(lines, [False] * 4, _marks([row]), form)


def pick_answer(pick: Row) -> str:
    """The pick, or that there is none.

    Examples: `smollm2-135m × lora-r8`, `no clear winner among full, lora-r8`, or
    `no clear winner yet (full leads)` if one leads but another may still win.
    """
    if pick["method"]:
        return full_name(pick)
    if not pick["candidates"]:
        return pick["verdict"]
    if ", " in pick["candidates"]:
        return f"{pick['verdict']} among {pick['candidates']}"
    return f"{pick['verdict']} yet ({pick['candidates']} leads)"


def _pick_line(pick: Row, form: Format) -> str:
    answer, reason = one_line(pick_answer(pick), 200), one_line(pick["reason"], 1000)
    if form == "markdown":
        return f"- **{escape_markdown(pick['pick'])}**: {escape_markdown(answer)} ({escape_markdown(reason)})"
    return f"{pick['pick']:<13} {answer}: {reason}"


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=1, default=str)


def as_csv(rows: Sequence[Row]) -> str:
    """`rows` as CSV. A text that a spreadsheet would evaluate (`=`, `+`, `-`, `@` in front) gets
    a leading apostrophe."""
    out = io.StringIO()
    # Before Python 3.13, csv does not quote a value because of a lone carriage return.
    returns = any(isinstance(value, str) and "\r" in value for row in rows for value in row.values())
    quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(out, list(rows[0]) if rows else ["model"], lineterminator="\n", quoting=quoting)
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in row.items()} for row in rows)
    return out.getvalue().rstrip("\n")


def _inert(value: Any) -> Any:
    # As OWASP's page on CSV injection advises: these cells may hold texts of errors and models.
    return f"'{value}" if isinstance(value, str) and value.startswith(COMPUTED) else value


def tabulate(rows: Sequence[Row], columns: Columns, notes: Sequence[str], form: Format, room: int | None = None) -> str:
    """`rows` as a terminal or Markdown table of `columns`, followed by the meaning of its marks and
    `notes`.

    In a terminal the lines below the table are wrapped at `room` cells.
    """
    headings = [column.heading for column in columns]
    body = [[row_text(row, column) for column in columns] for row in rows]
    numbers = [column.digits is not None for column in columns]
    lines = [wrapped(one, room) if form == "text" else one for one in (*_marks(rows), *notes)]
    return _drawn([headings, *body], numbers, lines, form)


def _marks(rows: Sequence[Row]) -> list[str]:
    legend = note(rows, full_name)
    return [one_line(legend, 600)] if legend else []


def _drawn(lines: Sequence[list[str]], numbers: Sequence[bool], notes: Sequence[str], form: Format) -> str:
    return (_markdown if form == "markdown" else _text)(lines, numbers, notes)


def _text(lines: Sequence[list[str]], numbers: Sequence[bool], notes: Sequence[str]) -> str:
    widths = [max(cells(line[i]) for line in lines) for i in range(len(numbers))]
    first, *rest = (_line(line, widths, numbers) for line in lines)
    return "\n".join([first, "  ".join("─" * width for width in widths), *rest, "", *notes]).rstrip()


def _line(values: list[str], widths: list[int], numbers: Sequence[bool]) -> str:
    padded = [
        " " * (width - cells(value)) + value if number else value + " " * (width - cells(value))
        for value, width, number in zip(values, widths, numbers, strict=True)
    ]
    return "  ".join(padded).rstrip()


def _markdown(lines: Sequence[list[str]], numbers: Sequence[bool], notes: Sequence[str]) -> str:
    table = ["| " + " | ".join(escape_markdown(value) for value in line) + " |" for line in lines]
    table.insert(1, "| " + " | ".join("---:" if number else ":---" for number in numbers) + " |")
    return "\n".join([*table, "", *(f"- {escape_markdown(note)}" for note in notes)]).rstrip()


def escape_markdown(text: str) -> str:
    """Escape model-written text: it cannot produce an image, link, HTML or table cell."""
    return re.sub(r"([\\`*_~\[\]<>|!#&])", r"\\\1", text.replace("\n", " "))


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [
        *rates.notes(rows),
        *(f"{full_name(row)}: {one_line(row['advice'], 500)}" for row in rows if row["advice"]),
    ]
    for row in rows:
        if row["status"] not in ("ok", "missing") and row["status_detail"]:
            notes.append(f"{full_name(row)} is {row['status']}: {one_line(row['status_detail'], 300)}")
        if row["stale_because"]:
            notes.append(f"{full_name(row)} is stale: {row['stale_because']} changed")
    about = dict.fromkeys(f"{row['model']}: {row['model_note']}" for row in rows if row.get("model_note"))
    marked = f"{outside.MARK}: {meaning}" if (meaning := outside.note(rows)) else None
    return [*notes, *about, *filter(None, [marked, covers.note(rows)])]
