"""Code shared by sweeps: making their cells current, and a table of their rows with notes on
doubtful ones."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pipelines.compare.show import Format, as_csv, as_json, tabulate
from pipelines.evaluate.cell import evaluate, evaluate_base
from pipelines.lake.schema import Column
from pipelines.project import Resolved
from pipelines.records.foreign_text import one_line
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train

Row = dict[str, Any]
Name = Callable[[Row], str]


def make_current(
    resolved: Resolved, model: str, methods: Iterable[str], *, hooks: RunHooks, tell: Callable[[str], None]
) -> None:
    """Train and evaluate the model's cells that are not current, the untouched model first.

    A cell that does not end ok is not evaluated; the others continue.
    """
    evaluate_base(resolved, model, hooks=hooks)
    for key in [key for method in methods for key in resolved.cell(model, method).keys]:
        attempt, reused = train(resolved, key, hooks=hooks)
        tell(f"{key}: {attempt.status}{' (current, reused)' if reused else ''}")
        if attempt.status == "ok":
            evaluate(resolved, key, hooks=hooks)


def table_of(rows: Sequence[Row], columns: Sequence[Column], notes: Sequence[str], form: Format) -> str:
    """The rows with these columns in the given form; a text or Markdown table has the notes
    below it."""
    if form in ("text", "markdown"):
        return tabulate(rows, columns, notes, form)
    shown = [{column.name: row[column.name] for column in columns} for row in rows]
    return as_json(shown) if form == "json" else as_csv(shown)


def doubts(rows: Sequence[Row], name: Name, times: str) -> Iterator[str]:
    """Notes on rows whose `times` other programs disturbed, and on those that did not end ok."""
    if disturbed := [name(row) for row in rows if row["speed_disturbed"]]:
        yield f"{', '.join(disturbed)}: other programs used the processors, so {times} are in doubt"
    for row in rows:
        if row["status"] != "ok":
            detail, advice = (one_line(row[column] or "", 300) for column in ("status_detail", "advice"))
            yield f"{name(row)} is {row['status']}: {detail}. {advice}"
