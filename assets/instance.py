"""The Dagster instance of this project: its home under data/dagster, its settings, and cleanup
after killed runs."""

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
# Hash of the settings as we wrote them: a file with this hash was not edited.
HASH_FILE = ".dagster.yaml.sha256"
# Hashes of the settings that were shipped before the hash file existed.
SHIPPED_BEFORE = (
    "4fbe5ec0268dfb93959acd2a0b6cc62102b7f3e748aa9a36bcd15ad13464cda0",
    "dba6256053120c0268b18c81ca9e7d57d5f1a0cb553e8532d2ab0b28802f3abe",
)

# The prefix hides the tag in the UI.
OWNER = ".dagster/featherweight_owner"
# Prefix of the folders that Dagster makes if DAGSTER_HOME is not set.
TEMPORARY = ".tmp_dagster_home_"
NEEDS_HOME = "Does nothing while DAGSTER_HOME is not set (`make ui` sets it)."
UNFINISHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def prepare_home() -> Path:
    """DAGSTER_HOME (default data/dagster, always absolute) with the project's dagster.yaml in it.

    An existing file is updated if nobody has edited it. For an edited file, the settings that it
    lacks are announced.

    Raises:
        UsageError: its dagster.yaml is not YAML.
        WorkError: the folder cannot be written.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or data_root().root / "dagster").resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
        # For a read-only folder Dagster itself would print a page of database errors.
        with tempfile.TemporaryFile(dir=home):
            pass
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
            announce(f"{path}: updated, since nobody had edited it")
    if stored_hash != _sha256(ours):
        write_text(note, _sha256(ours))


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {error}; correct it, or remove it to get a new one.") from None


def _missing_settings(ours: dict[str, Any], settings: Any) -> dict[str, Any]:
    """The settings of `ours` that `settings` lacks, whatever values it has for the others."""
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
    """Why schedules and sensors start nothing on a temporary instance; None for a permanent one.

    The next temporary instance would know nothing of the runs and would repeat them.
    """
    if instance.is_ephemeral or not Path(instance.root_directory).name.startswith(TEMPORARY):
        return None
    return f"DAGSTER_HOME is not set: nothing is run or published automatically. export DAGSTER_HOME={data_root().root / 'dagster'}"


def owner_tags() -> dict[str, str]:
    """The tag with the identity of the process that executes a run, to check later if it is
    alive."""
    return {OWNER: json.dumps(own_identity())}


def owner_of(run: dg.DagsterRun) -> dict[str, Any] | None:
    """The process that executes a run, from its owner tag; earlier versions wrote PID@START."""
    tag = run.tags.get(OWNER)
    if not tag:
        return None
    if tag.startswith("{"):
        return json.loads(tag)
    pid, _, started = tag.partition("@")
    return {"pid": int(pid), "pid_started": float(started)}


def end_orphaned_runs(instance: dg.DagsterInstance) -> int:
    """Mark runs whose process is gone as failed and free their pool slots. Returns their number."""
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
    """Size the cells' pool for the number of parallel cells of the profile.

    dagster.yaml can only give all pools the same size.
    """
    launcher = launcher_for(own_profile())
    if not launcher.holds_device:
        instance.event_log_storage.set_concurrency_slots(cell_pool(), launcher.at_once)
