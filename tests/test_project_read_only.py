"""A folder that became read-only: the command that needs it names it and the remedy, and the
contents stay complete.

The folder is mounted read-only where only the command sees it, since file modes do not bind root.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.compare import compare as comparing
from pipelines.compare.compare import compare, published_rows
from pipelines.runs import cells
from tests.fakes import planted
from tests.fakes.planted import Lake

MOUNTED = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
CLI = ("-m", "pipelines.cli")
IN_DAGSTER = """
import sys
import dagster as dg
from assets.cleaning import sft_examples
done = dg.materialize([sft_examples], raise_on_error=False)
for event in done.all_events:
    if event.is_step_failure:
        error = event.step_failure_data.error
        print((error.cause or error).message, file=sys.stderr)
sys.exit(not done.success)
"""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake with two cells and a publication, unchanged and complete after each test."""
    made = planted.lake(tmp_path_factory.mktemp("read-only"))
    for method in ("base", "full"):
        made.cell(method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "keep_predictions", lambda _stage: None)
        compare(made.project)
    return made


def run_with_read_only(folder: Path, *arguments: str, data: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(
        ["unshare", "-rm", "sh", "-c", MOUNTED, folder, "true"], check=False, capture_output=True
    ).returncode:
        pytest.skip("this machine does not let a test mount a folder read-only")
    environment = {
        **os.environ,
        "FEATHERWEIGHT_DATA": str(data),
        "FEATHERWEIGHT_EXPERIMENTS": str(data / "experiments.yaml"),
        "FEATHERWEIGHT_PROFILE": "local",
        "DAGSTER_HOME": str(data / "dagster"),
        "HF_HUB_OFFLINE": "1",
    }
    command = ["unshare", "-rm", "sh", "-c", MOUNTED, str(folder), sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("folder", "command", "message"),
    [
        (".", (*CLI, "compare"), "lake/locks a writable folder"),
        ("lake", (*CLI, "generate"), "lake/locks a writable folder"),
        ("lake", ("-c", IN_DAGSTER), "lake/locks a writable folder"),
        ("lake/clean", (*CLI, "clean"), "cannot put the examples into {root}/lake/clean"),
        ("lake/cells", (*CLI, "train", "tiny", "lora-r8"), "lake/cells/tiny/lora-r8/1 a writable folder"),
        ("warehouse", (*CLI, "compare"), "The last publication is untouched"),
        ("report", (*CLI, "compare"), "cannot write {root}/report/index.html"),
        ("dagster", ("-m", "assets.run"), "DAGSTER_HOME: cannot write in {root}/dagster"),
        ("dagster", ("-m", "assets.ui"), "DAGSTER_HOME: cannot write in {root}/dagster"),
    ],
    ids=[
        "root",
        "lake",
        "lake in Dagster",
        "clean",
        "cells",
        "warehouse",
        "report",
        "DAGSTER_HOME",
        "DAGSTER_HOME of the UI",
    ],
)
def test_a_read_only_folder_is_named_and_nothing_is_lost(
    lake: Lake, folder: str, command: tuple[str, ...], message: str
) -> None:
    root = lake.data.root
    rows, page = published_rows(lake.data), lake.data.report.read_bytes()
    done = run_with_read_only(root / folder, *command, data=root)
    assert done.returncode == 1, done.stderr[-2000:]
    assert message.format(root=root) in done.stderr and "writable" in done.stderr and "Traceback" not in done.stderr
    assert published_rows(lake.data) == rows and lake.data.report.read_bytes() == page
    assert {attempt.key.method: attempt.status for attempt in cells.all_attempts(lake.data)} == {
        "base": "ok",
        "full": "ok",
    }
    assert not list(root.rglob("*.partial"))
