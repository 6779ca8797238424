"""`python -m assets.history [--days N] [--yes]` lists and removes old runs of Dagster, with their
events and logs, so that its history does not grow forever. A run that made the newest version of
any asset or partition stays at any age.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from assets.instance import prepare_home
from pipelines.errors import UsageError, WorkError
from pipelines.lake.disk import explained
from pipelines.lake.paths import data_root
from pipelines.runs.process import print_anything

DAYS, MAX_DAYS = 30, 36500
PAGE = 1000


def old_runs(instance: dg.DagsterInstance, *, days: float) -> list[dg.RunRecord]:
    """Finished runs that ended more than `days` ago and made no newest version of anything."""
    before = datetime.now(UTC) - timedelta(days=days)
    finished = [status for status in dg.DagsterRunStatus if status.value in ("SUCCESS", "FAILURE", "CANCELED")]
    records = instance.get_run_records(dg.RunsFilter(statuses=finished, updated_before=before))
    needed = set(_newest(instance)) if records else set()
    return [record for record in records if record.dagster_run.run_id not in needed]


def _newest(instance: dg.DagsterInstance) -> Iterator[str]:
    """The runs of the newest materialization and the newest observation of every asset and
    partition.

    Observations count because a cell that did not end ok has no materialization.
    """
    for key in instance.all_asset_keys():
        for fetch in (instance.fetch_materializations, instance.fetch_observations):
            partitions: set[str | None] = set()
            cursor, more = None, True
            while more:
                page = fetch(key, limit=PAGE, cursor=cursor)
                for record in page.records:
                    if record.partition_key not in partitions:
                        partitions.add(record.partition_key)
                        yield record.event_log_entry.run_id
                cursor, more = page.cursor, page.has_more


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days <= MAX_DAYS:
        raise argparse.ArgumentTypeError(f"{text}: expected days from 0 to {MAX_DAYS}")
    return days


def forget(instance: dg.DagsterInstance, record: dg.RunRecord) -> None:
    """Remove a run, its events and the output of its steps."""
    run_id = record.dagster_run.run_id
    instance.delete_run(run_id)
    home = Path(instance.root_directory)
    for folder in (home / "storage" / run_id, home / "logs" / run_id):
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    print_anything()
    parser = argparse.ArgumentParser(prog="python -m assets.history", description=__doc__)
    parser.add_argument("--days", type=_days, default=DAYS, help=f"keep runs that ended since then; default {DAYS}")
    parser.add_argument("--yes", action="store_true", help="remove them")
    arguments = parser.parse_args()
    try:
        prepare_home()
        _forget_old(arguments)
    except (UsageError, WorkError) as error:
        print(f"featherweight: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if (message := explained(error, data_root().root)) is None:
            raise
        print(f"featherweight: {message}", file=sys.stderr)
        return WorkError.exit_code
    return 0


def _forget_old(arguments: argparse.Namespace) -> None:
    with dg.DagsterInstance.get() as instance:
        records = old_runs(instance, days=arguments.days)
        for record in records:
            run = record.dagster_run
            print(f"{record.update_timestamp:%Y-%m-%d} {run.run_id} {run.job_name} {run.status.value.lower()}")
            if arguments.yes:
                forget(instance, record)
        hint = "" if arguments.yes or not records else "; --yes removes them"
        print(f"{len(records)} runs of Dagster that ended more than {arguments.days:g} days ago{hint}")


if __name__ == "__main__":
    sys.exit(main())
