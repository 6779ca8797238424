"""The Dagster instance of this project: its home under data/dagster, its settings, and what a killed run left behind."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from assets.project import cell_pool, own_profile
from pipelines.errors import UsageError, WorkError
from pipelines.hardware.machine import is_alive, own_identity
from pipelines.lake.files import announce, write_text
from pipelines.lake.paths import PROJECT, data_root
from pipelines.runs.launchers.chosen import launcher_for

SETTINGS = "dagster.yaml"
HASH_FILE = ".dagster.yaml.sha256"  # of the settings as we wrote them: a file that still has it was not edited
# of what was shipped before that was noted
SHIPPED_BEFORE = (
    "4fbe5ec0268dfb93959acd2a0b6cc62102b7f3e748aa9a36bcd15ad13464cda0",
    "dba6256053120c0268b18c81ca9e7d57d5f1a0cb553e8532d2ab0b28802f3abe",
)

OWNER = ".dagster/featherweight_owner"  # the prefix keeps it out of the UI's list of tags
TEMPORARY = ".tmp_dagster_home_"  # how the folders begin that Dagster makes where DAGSTER_HOME is not set
NEEDS_HOME = "Does nothing while DAGSTER_HOME is not set (`make ui` sets it)."
UNFINISHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def prepare_home() -> Path:
    """DAGSTER_HOME (default data/dagster, always absolute) with the project's dagster.yaml in it.

    One that is there is brought up to date where nobody has edited it; of an edited one is said which settings it lacks.

    Raises:
        UsageError: its dagster.yaml is not YAML.
        WorkError: the folder cannot be written.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or data_root().root / "dagster").resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass  # Dagster's own word on a folder that it cannot write is a page of database errors
    except OSError as error:
        raise WorkError(
            f"DAGSTER_HOME: cannot write in {home}: {error.strerror or error}. Nothing was started; free disk space, make the "
            "folder writable, or set DAGSTER_HOME to another one."
        ) from error
    _bring_up_to_date(home)
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def _bring_up_to_date(home: Path) -> None:
    path, note, ours = home / SETTINGS, home / HASH_FILE, (PROJECT / SETTINGS).read_text(encoding="utf-8")
    text = path.read_text(encoding="utf-8") if path.exists() else None
    stored_hash = note.read_text(encoding="utf-8") if note.exists() else None
    if text is not None and text != ours and _sha256(text) not in (stored_hash, *SHIPPED_BEFORE):
        if missing := _missing_settings(yaml.safe_load(ours), _parsed(path, text)):
            lines = yaml.safe_dump(missing, default_flow_style=None, sort_keys=False, width=200)
            announce(f"{path} was edited and stays as it is; it lacks these settings of {PROJECT / SETTINGS}:\n{lines}")
        return
    if text != ours:
        write_text(path, ours)
        if text is not None:
            announce(f"{path}: brought up to date; nobody had edited it")
    if stored_hash != _sha256(ours):
        write_text(note, _sha256(ours))


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {error}; mend it, or remove it to have it written anew.") from None


def _missing_settings(ours: dict[str, Any], settings: Any) -> dict[str, Any]:
    """The settings of `ours` that `found` does not name; what it sets otherwise is its own business."""
    if not isinstance(settings, dict):
        return {}
    missing = {}
    for name, value in ours.items():
        if name not in settings:
            missing[name] = value
        elif isinstance(value, dict) and (nested := _missing_settings(value, settings[name])):
            missing[name] = nested
    return missing


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def why_homeless(instance: dg.DagsterInstance) -> str | None:
    """Why nothing is started by itself on an instance that is gone when its server ends: another one of the same kind would know
    nothing of it, and do it again. None for one that stays."""
    if instance.is_ephemeral or not Path(instance.root_directory).name.startswith(TEMPORARY):
        return None
    return f"DAGSTER_HOME is not set: nothing is run or published by itself. export DAGSTER_HOME={data_root().root / 'dagster'}"


def owner_tags() -> dict[str, str]:
    """The tag that says which process executes a run, so that a later one can tell whether it still lives."""
    return {OWNER: json.dumps(own_identity())}


def owner_of(run: dg.DagsterRun) -> dict[str, Any] | None:
    """Which process executes a run that `owner_tags` names; earlier versions wrote PID@START."""
    tag = run.tags.get(OWNER)
    if not tag:
        return None
    if tag.startswith("{"):
        return json.loads(tag)
    pid, _, started = tag.partition("@")
    return {"pid": int(pid), "pid_started": float(started)}


def end_orphaned_runs(instance: dg.DagsterInstance) -> int:
    """Runs whose executing process is gone are marked failed and give their place in the pool back. Returns how many."""
    ended = 0
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        owner = owner_of(run)
        if owner is None or is_alive(owner):
            continue
        instance.report_run_failed(run, message="The process that executed this run was killed.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended += 1
    return ended


def size_pool(instance: dg.DagsterInstance) -> None:
    """Give the cells' pool as many places as the profile keeps cells under way; dagster.yaml can only size all pools alike."""
    launcher = launcher_for(own_profile())
    if not launcher.holds_device:
        instance.event_log_storage.set_concurrency_slots(cell_pool(), launcher.at_once)
