"""Commands on a disk with few bytes left: `unshare -rm python -m tests.full_disk PRISTINE MOUNT
BYTES,… COMMAND…`.

A tmpfs is mounted at MOUNT where only this process sees it. Before each command it holds a copy of
PRISTINE/data and is filled up. Each case prints one line of JSON: how the command ended, its
messages, the status of the cells afterwards, and how the same command ends once there is room
again. Children run in this process, so that torch is imported only once.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

SIZE = "48M"


def main(pristine: Path, mount: Path, levels: list[int], commands: list[str]) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(mount)], check=True)
    os.environ |= {
        "FEATHERWEIGHT_DATA": str(mount / "data"), "FEATHERWEIGHT_EXPERIMENTS": str(pristine / "experiments.yaml"),
        "FEATHERWEIGHT_PROFILE": "local", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    # experiments.yaml may name files relative to the current folder.
    os.chdir(pristine)
    run_children_here()
    for level in levels:
        for command in commands:
            print(json.dumps(case(pristine, mount, level, command), ensure_ascii=False), flush=True)


def run_children_here() -> None:
    from pipelines.compare import compare as comparing
    from pipelines.runs.launchers.local import LocalLauncher
    from tests.in_process import InProcess

    # Never undone: this module has the process to itself.
    patch = pytest.MonkeyPatch()
    patch.setattr(LocalLauncher, "start", lambda _self, command: InProcess().start(command))
    patch.setattr(comparing, "keep_predictions", lambda _resolved: None)
    patch.setenv("CUDA_VISIBLE_DEVICES", "")


def case(pristine: Path, mount: Path, level: int, command: str) -> dict[str, Any]:
    for left in mount.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    shutil.copytree(pristine / "data", mount / "data", symlinks=True)
    before = statuses(mount / "data")
    filler = fill(mount, level)
    code, message = call(command)
    filler.unlink()
    outcome = {"level": level, "command": command, "code": code, "said": message, "before": before}
    outcome |= {"after": statuses(mount / "data"), "rows": published(mount / "data")}
    outcome["partial"] = [str(path) for path in (mount / "data").rglob("*.partial")]
    outcome["again"], outcome["said_again"] = call(command)
    return outcome


def fill(mount: Path, free: int) -> Path:
    """Leave `free` bytes; returns the file that takes the rest."""
    filler, there = mount / "filler", os.statvfs(mount)
    with filler.open("wb") as out:
        out.write(b"\1" * (there.f_bavail * there.f_frsize - free))
    return filler


def call(command: str) -> tuple[Any, str]:
    """The command's exit code, or `traceback`, and its stderr."""
    from pipelines import cli

    errors = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        try:
            code: Any = cli.main(command.split())
        except BaseException:
            code = "traceback"
            traceback.print_exc()
    return code, errors.getvalue()


def statuses(data: Path) -> dict[str, list[Any]]:
    """The newest attempt of each cell: status, id, whether its model exists, and how its
    evaluations ended."""
    from pipelines.lake.paths import DataRoot
    from pipelines.runs import cells

    newest = {str(attempt.key): attempt for attempt in cells.all_attempts(DataRoot(data))}
    return {
        name: [
            one.status,
            one.run_id,
            one.model_folder.exists(),
            [evaluation.result.status for evaluation in one.evaluations()],
        ]
        for name, one in newest.items()
    }


def published(data: Path) -> int:
    """Rows of the comparison, as any client reads them."""
    from pipelines.compare.compare import published_rows
    from pipelines.lake.paths import DataRoot

    return len(published_rows(DataRoot(data)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(one) for one in sys.argv[3].split(",")], sys.argv[4:])
