"""The registry as a page of the documentation: docs/columns.md."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipelines.compare.columns.configured import benchmark_columns, metric_columns, passes
from pipelines.compare.columns.registry import TABLES, VIEWS
from pipelines.lake.paths import PROJECT
from pipelines.lake.schema import Column, Source, Table
from pipelines.settings.page import wrapped

PATH = PROJECT / "docs" / "columns.md"
COMMAND = "python -m pipelines.compare.columns"
SOURCES: dict[Source, str] = {
    "configuration": "experiments.yaml at the time of publication",
    "spec": "the specification of the run, written before it started",
    "result": "how the run ended, as its parent process recorded it",
    "training": "measured by the training process",
    "evaluation": "measured by the evaluating process",
    "export": "measured by the process that runs one bit width",
    "estimate": "predicted without training",
    "comparison": "computed from other numbers when the table is published",
    "judge": "verdicts of the language model that judges answers",
    "vote": "votes of people on answers side by side",
    "cleaning": "decided when the records were cleaned",
    "journal": "the journal of calls to language models",
    "night": "the record of a night in the lake",
}
ADDED = {
    "comparison": (*metric_columns("NAME"), *benchmark_columns("TASK")),
    "evaluation_answers": (passes("NAME"),),
}
SETTINGS_ADD = (
    "They exist while the published profile's `evaluation` names such a metric or benchmark, after all other columns. NAME and "
    "TASK stand for its name in lower case, with `_` for every character except letters and digits."
)
INTRODUCTION = f"""\
# Columns of the published tables

`data/warehouse.duckdb` holds these tables and views. The same sentences are comments in the file:

```sql
SELECT column_name, data_type, comment FROM duckdb_columns() WHERE table_name = 'comparison';
```

NULL means that a value was not measured. GB are 1e9 bytes, MB 1e6 bytes. Better says which
direction is better.

Times are points in time (`TIMESTAMP WITH TIME ZONE`), stored in UTC. DuckDB and its clients show
them in the time zone of the machine; `SET TimeZone = 'UTC'` in a connection shows them as stored.
Examples for DuckDB, pandas, polars and Node are in [operating.md](operating.md#reading-the-table).

This page is generated: `{COMMAND}` writes it."""


def page() -> str:
    """The page as Markdown."""
    return "\n".join(map(wrapped, _lines()))


def _lines() -> Iterator[str]:
    yield from (INTRODUCTION, "", "| source | where a column's values come from |", "| :--- | :--- |")
    yield from (f"| {name} | {meaning} |" for name, meaning in SOURCES.items())
    yield ""
    yield from (f"- [{one.name}](#{one.name}): {one.meaning}" for one in (*TABLES, *VIEWS))
    for table in TABLES:
        yield from _table(table)
        yield from _added(table)
    for view in VIEWS:
        shown = ", ".join(f"`{column.name}`" for column in view.columns)
        yield from ("", f"## {view.name}", "", view.meaning, "")
        yield f"A view of [{view.table.name}](#{view.table.name}): {shown}."
    yield ""


def _table(table: Table) -> Iterator[str]:
    yield from ("", f"## {table.name}", "", table.meaning)
    for name, columns in table.groups().items():
        yield from _group(name, columns)


def _added(table: Table) -> Iterator[str]:
    """The columns that settings add to a table, with patterns for names."""
    columns = ADDED.get(table.name)
    if columns:
        yield from ("", f"### Columns that settings add to {table.name}", "", SETTINGS_ADD)
        for name, members in Table(table.name, table.meaning, columns).groups().items():
            yield from _group(
                name, [replace(one, name=_pattern(one.name), meaning=_pattern(one.meaning)) for one in members]
            )


def _pattern(text: str) -> str:
    """Replace the example names by patterns, such as `metric_NAME`."""
    return text.replace("metric_name", "metric_NAME").replace("benchmark_task", "benchmark_TASK")


def _group(name: str, columns: Sequence[Column]) -> Iterator[str]:
    yield from ("", f"**{name.capitalize()}**", "", "| column | type | meaning | unit | better | source |")
    yield "| :--- | :--- | :--- | :--- | :--- | :--- |"
    yield from map(_line, columns)


def _line(column: Column) -> str:
    cells = (
        f"`{column.name}`",
        column.type,
        column.meaning,
        column.unit or ("UTC" if column.type == "TIMESTAMPTZ" else ""),
        column.better or "",
        column.source or "",
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
