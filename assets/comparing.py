"""The comparison table and its publication."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import dagster as dg
from pydantic import Field

from assets.described import ROWS
from assets.grid import grid_of
from assets.judging import judged_answers
from assets.launchpad import night_of
from assets.metadata import picture, table
from assets.project import ProfileConfig, project_now
from assets.providers import provider_comparison
from assets.shown import experiments_now, grid
from assets.training import evaluation, trained_model
from pipelines.compare import plots
from pipelines.compare.compare import Publication, compare, lake_version, published_rows
from pipelines.compare.figures import curves_of
from pipelines.compare.history import history_rows
from pipelines.compare.outside import of_profile
from pipelines.compare.show import SHOWN, pick_answer
from pipelines.compare.table import comparison_rows
from pipelines.compare.trade_off import trade_off
from pipelines.errors import InUseError
from pipelines.lake.warehouse import connect
from pipelines.nightly.night import note_runs
from pipelines.project import Project
from pipelines.runs import devices
from pipelines.runs.cells import all_attempts
from pipelines.settings.judging import TEACHER, is_teacher

# Metadata of a publication that later ones look up.
LAKE, PROFILE = "version of the lake", "profile"
# The leading columns of each table by subject, and the number of columns beside them.
CELL, COLUMNS_BESIDE_CELL = ("model", "method"), 6
# Column headings, shorter than the names.
HEADINGS = {column.name: column.heading for column in SHOWN}
# Few enough columns that the UI shows the table inline.
SHORT_COLUMNS = (
    "model",
    "method",
    "status",
    "eval_bits_per_byte",
    "base_bits_per_byte",
    "peak_memory_gb",
    "train_seconds",
)

EVERY_CELL_IS_OK = "every_cell_is_ok"
Row = dict[str, Any]
# Seconds that a publication waits for a free device. The device is free for a moment between the
# steps of a cell and between two cells.
PATIENCE = 1800.0


class PublishingConfig(ProfileConfig):
    """Options of one publication."""

    waits_for_device: bool = Field(
        False,
        description="Publish only while no cell uses this machine's device, and let new cells wait; if the device is not free "
        "within half an hour, publish nothing now. The sensor that follows the lake sets this.",
    )


@dg.asset(
    group_name="compare",
    kinds={"duckdb"},
    deps=[trained_model, evaluation, judged_answers, provider_comparison],
    check_specs=[
        dg.AssetCheckSpec(
            EVERY_CELL_IS_OK,
            asset="comparison",
            description="Every cell of the profile ended ok; lists the others.",
        )
    ],
    pool="publisher",
    output_required=False,
    freshness_policy=dg.FreshnessPolicy.time_window(
        fail_window=timedelta(hours=grid().nightly.alarm_after_hours),
        warn_window=timedelta(hours=grid().nightly.alarm_after_hours * 0.75),
    ),
)
def comparison(
    context: dg.AssetExecutionContext, config: PublishingConfig
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """One row is one cell of the profile (one model × one method): its quality, memory, speed and
    cost.

    [Each publication](/assets/comparison?view=events) has the grid of all cells, the picks and the
    pictures. The table is in `data/warehouse.duckdb`, which can be read at any time, and in
    `data/report/index.html`.
    """
    project = project_now(config.profile)
    if night := night_of(context.run):
        # The published table of nights then includes this run.
        note_runs(project.data, night, [context.run.run_id])
    with ExitStack() as held:
        try:
            if config.waits_for_device:
                paths = devices.watched_locks(project.settings.devices)
                held.enter_context(devices.held(paths, "the publication", seconds=PATIENCE, say=context.log.info))
        except InUseError as error:
            context.log.info(f"not published now; the next try follows when the device is free: {error}")
            yield _every_cell_is_ok(comparison_rows(project.resolve()))
            return
        # The version is taken before reading: changes during the publication belong to the next
        # one.
        version = lake_version(project.data)
        result = _published(context, project, compare(project), version)
    yield result


def _published(
    context: dg.AssetExecutionContext, project: Project, publication: Publication, version: str
) -> dg.MaterializeResult:
    """The materialization of a publication, with its metadata."""
    rows = publication.rows
    named = _profile_rows(rows)
    counts = {status: sum(row["status"] == status for row in rows) for status in {row["status"] for row in rows}}
    context.log.info(f"published {len(rows)} rows: {', '.join(f'{count} {name}' for name, count in counts.items())}")
    return dg.MaterializeResult(
        check_results=[_every_cell_is_ok(rows)],
        metadata={
            ROWS: len(rows),
            **{label: dg.MetadataValue.text(text) for label, text in publication.stamp.items() if label != PROFILE},
            **grid_of(rows),
            "stale": dg.MetadataValue.text(f"{sum(bool(row['is_stale']) for row in named)} of {len(named)} cells"),
            **_best(rows),
            "picks": table(
                [{**pick, "answer": pick_answer(pick)} for pick in publication.picks], ["pick", "answer", "reason"]
            ),
            "comparison": table(rows, SHORT_COLUMNS, headings=HEADINGS),
            **_by_subject(rows),
            "advice": table(rows, ["model", "method", "advice", "status_detail"]),
            **picture(trade_off(rows, "png"), "memory, quality, time"),
            **picture(plots.loss_curves(curves_of(project, rows), "png"), "loss curves"),
            "warehouse": dg.MetadataValue.path(publication.warehouse),
            "report": dg.MetadataValue.path(publication.report),
            LAKE: version,
            PROFILE: project.profile,
        },
    )


def _profile_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of the profile's cells, without other cells and providers."""
    return [row for row in of_profile(rows) if not is_teacher(row["method"])]


def _best(rows: Sequence[Row]) -> dict[str, Any]:
    """Key numbers of the profile's cells. Dagster plots each number over the publications."""
    good = [row for row in _profile_rows(rows) if row["status"] == "ok"]
    quality = [row["eval_bits_per_byte"] for row in good if row["eval_bits_per_byte"] is not None]
    memory = [row["peak_memory_gb"] for row in good if row["peak_memory_gb"] is not None]
    return {
        "cells ok": len(good),
        **({"best bits per byte": float(min(quality))} if quality else {}),
        **({"least peak memory, GB": float(min(memory))} if memory else {}),
    }


def _by_subject(rows: Sequence[Row]) -> dict[str, dg.MetadataValue]:
    """The columns of the terminal table, split into tables that fit a page of 1,440 pixels."""
    subjects: dict[str, list[str]] = {}
    for column in SHOWN:
        if column.name not in CELL:
            subjects.setdefault(column.group, []).append(column.name)
    tables = {}
    for subject, names in subjects.items():
        parts = [names[start : start + COLUMNS_BESIDE_CELL] for start in range(0, len(names), COLUMNS_BESIDE_CELL)]
        for number, part in enumerate(parts, 1):
            tables[f"comparison, {subject}{f' ({number})' if len(parts) > 1 else ''}"] = table(
                rows, [*CELL, *part], headings=HEADINGS
            )
    return tables


def _every_cell_is_ok(rows: list[dict[str, Any]]) -> dg.AssetCheckResult:
    """A warning with a line for each cell of the profile that is not ok, from any run."""
    rows = of_profile(rows)
    bad = [row for row in rows if row["status"] != "ok"]
    shown = ["model", "method", "status", "phase", "status_detail", "advice"]
    return dg.AssetCheckResult(
        check_name=EVERY_CELL_IS_OK,
        passed=not bad,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"ok": len(rows) - len(bad), "not ok": len(bad), "cells": table(bad, shown)},
    )


@dg.asset_check(asset=comparison, description="No cell's newest run is significantly worse than its earlier runs.")
def no_cell_got_worse() -> dg.AssetCheckResult:
    """Check the rows of table `history`: quality by its paired interval, time and memory by the
    spread of equal runs."""
    rows = history_rows(list(all_attempts(project_now().data)))
    worse = [row for row in rows if row["worse"]]
    return dg.AssetCheckResult(
        passed=not worse,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "cells with a past": sum(bool(row["is_newest"] and row["delta_previous"] is not None) for row in rows),
            **({"worse": table(worse, ["model", "method", "seed", "worse", "changed", "run_id"])} if worse else {}),
        },
    )


@dg.asset_check(asset=comparison, description="The published tables hold every configured cell once and every attempt.")
def every_cell_and_attempt_is_published(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    shown = last_published(context.instance, PROFILE)
    project = project_now(shown if shown in experiments_now().profiles else None)
    profile = project.settings
    configured = sorted((model, method) for model in profile.models for method in profile.methods)
    known = {attempt.run_id for attempt in all_attempts(project.data)}
    rows = [row for row in of_profile(published_rows(project.data)) if row["method"].partition("+")[0] != TEACHER]
    cells = sorted((row["model"], row["method"]) for row in rows)
    with connect(project.data) as db:
        runs = [run for (run,) in db.execute("SELECT run_id FROM training_runs").fetchall()]
    # Attempts since the publication belong to the next one.
    later = known - set(runs)
    return dg.AssetCheckResult(
        passed=cells == configured and len(runs) == len(set(runs)) and set(runs) <= known,
        metadata={"cells": len(cells), "configured": len(configured), "attempts": len(runs), "made since": len(later)},
    )


def last_published(instance: dg.DagsterInstance, name: str) -> str | None:
    """A metadata entry of the newest publication, as text."""
    event = instance.get_latest_materialization_event(comparison.key)
    entry = event.asset_materialization.metadata.get(name) if event and event.asset_materialization else None
    return str(entry.value) if entry else None


def published_profile(instance: dg.DagsterInstance) -> str:
    """The profile to publish for: that of the newest publication if it is the nights' profile, else
    `auto`."""
    nights = experiments_now().nightly.profile
    return nights if last_published(instance, PROFILE) == nights else "auto"
