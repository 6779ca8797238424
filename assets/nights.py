"""The page of all nights: their work, cost and runs. The sensor that ends a night adds it to the
page."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import dagster as dg

from assets.described import ROWS
from assets.metadata import table_of
from pipelines.compare.columns.nights import NIGHTS
from pipelines.compare.nights import night_rows
from pipelines.compare.show import escape_markdown, row_text
from pipelines.compare.stamp import moment
from pipelines.lake.paths import DataRoot, data_root
from pipelines.records.foreign_text import plain

# Number of nights on the page, the newest first.
SHOWN = 30
# Number of runs shown per night.
RUNS_SHOWN = 12
# Characters of a run id, as on Dagster's own pages.
SHORT = 8
Row = dict[str, Any]
HEADINGS = ("night", "began", "minutes", "dollars", "cells", "outcome", "why it ended", "runs")


@dg.asset(group_name="compare", kinds={"json"})
def nights() -> dg.MaterializeResult:
    """One row is one night: its time, its cost, the number of its cells that ended ok, and why it
    ended.

    Each night adds itself at its end. Materializing the asset reads data/lake/nights/ again.
    """
    return dg.MaterializeResult(metadata=nights_metadata(data_root()))


def report_nights(instance: dg.DagsterInstance, data: DataRoot) -> None:
    """Report the current nights without a run."""
    instance.report_runless_asset_event(dg.AssetMaterialization(nights.key, metadata=nights_metadata(data)))


def nights_metadata(data: DataRoot) -> dict[str, Any]:
    """The newest nights as a table with links to their runs, and numbers to plot over the
    nights."""
    rows = night_rows(data)
    newest = rows[-1] if rows else {}
    plotted = {"minutes": "minutes", "dollars": "spent_usd", "cells not ok": "cells_not_ok"}
    return {
        ROWS: len(rows),
        # The newest night fits inline; the table of all nights is behind a click.
        "newest night": dg.MetadataValue.md(
            _table([["", ""], *zip(HEADINGS, _values(newest), strict=True)] if newest else [])
        ),
        "nights": dg.MetadataValue.md(_table([HEADINGS, *map(_values, rows[: -SHOWN - 1 : -1])] if rows else [])),
        **{label: float(newest[name]) for label, name in plotted.items() if newest.get(name) is not None},
    }


def _table(lines: Sequence[Sequence[str]]) -> str:
    return table_of(lines[0], lines[1:]) if lines else "No night has started yet."


def _values(row: Row) -> list[str]:
    """The night's values, in the order of HEADINGS, as Markdown."""
    began = row["started_at"] and moment(datetime.fromisoformat(row["started_at"]))
    good = "" if row["cells_ok"] is None else f", {row['cells_ok']} ok"
    cells = None if row["cells"] is None else f"{row['cells']}{good}"
    numbers = (row_text(row, column) for column in NIGHTS.pick("minutes", "spent_usd"))
    texts = (row["night"], began, *numbers, cells, row["outcome"], row["reason"])
    return [*(_escaped(text or "–") for text in texts), _links(row["run_ids"])]


def _links(run_ids: str | None) -> str:
    """The night's runs, each a link to its page."""
    runs = json.loads(run_ids or "[]")
    links = [f"[{_escaped(run[:SHORT])}](/runs/{quote(run, safe='')})" for run in runs[:RUNS_SHOWN]]
    more = [f"and {len(runs) - RUNS_SHOWN} more"] if len(runs) > RUNS_SHOWN else []
    return " ".join([*links, *more]) or "–"


def _escaped(text: str) -> str:
    return escape_markdown(plain(text, 200))
