"""The Dagster instance of this project: its home under data/dagster, its settings, and what a killed run left behind."""

import os
import shutil
from pathlib import Path

import dagster as dg

from assets.project import cell_pool, own_profile
from pipelines.launcher import own_identity
from pipelines.machine import process_is_alive
from pipelines.paths import PROJECT, data_root

OWNER = ".dagster/featherweight_owner"  # the prefix keeps it out of the UI's list of tags
UNFINISHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def prepare_home() -> Path:
    """DAGSTER_HOME (default data/dagster, always absolute) with the project's dagster.yaml in it, unless one is there."""
    home = Path(os.environ.get("DAGSTER_HOME") or data_root().root / "dagster").resolve()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copyfile(PROJECT / "dagster.yaml", home / "dagster.yaml")
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def owner_tags() -> dict[str, str]:
    """The tag that says which process executes a run, so that a later one can tell whether it still lives."""
    me = own_identity()
    return {OWNER: f"{me['pid']}@{me['pid_started']}"}


def end_orphaned_runs(instance: dg.DagsterInstance) -> int:
    """Runs whose executing process is gone are marked failed and give their place in the pool back. Returns how many."""
    ended = 0
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        pid, _, started = run.tags.get(OWNER, "").partition("@")
        if not pid or process_is_alive(int(pid), float(started)):
            continue
        instance.report_run_failed(run, message="The process that executed this run was killed.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended += 1
    return ended


def size_pool(instance: dg.DagsterInstance) -> None:
    """Give the cluster's pool as many places as the profile keeps cells under way; dagster.yaml can only size all pools alike."""
    if ray := own_profile().ray:
        instance.event_log_storage.set_concurrency_slots(cell_pool(), ray.at_once)
