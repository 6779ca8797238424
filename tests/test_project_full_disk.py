"""A disk with little or no space left: every command names the free space and the remedy, and good
results stay.

The disk is a tmpfs that only the command's process sees (`tests/full_disk.py`). No test can imitate
related faults as faithfully: a quota, a read-only folder, too many open files. They are told apart
by their error numbers.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli
from pipelines.compare import compare as comparing
from pipelines.compare.compare import compare
from pipelines.errors import WorkError
from pipelines.lake import disk
from pipelines.lake.files import locked, write_json
from pipelines.lake.paths import PROJECT
from pipelines.upkeep import doctor
from tests.fakes import planted
from tests.test_project_old_lake import unpacked

LEVELS = (0, 30_000, 100_000, 400_000, 3_000_000)
LOOKING = (
    "table",
    "decide --max-loss 0.02",
    "doctor",
    "prune",
    "fetch tiny",
    "models",
    "plan",
    "estimate tiny lora-r8",
)
WORKING = (
    "clean", "clean --input records.jsonl", "train tiny lora-r8 --seed 1 --force", "train tiny full --seed 1 --force",
    "train tiny lora-r16 --seed 1", "evaluate tiny lora-r8 --seed 1 --force",
    "export tiny lora-r8 --seed 1 --merge --gguf F16", "bit-widths tiny lora-r8 --seed 1 --format fp32 --force",
    "tune tiny lora-r4 --trials 3 --seed 1", "sweep tiny --ranks 4", "compare", "generate --estimate", "prune --yes",
)  # fmt: skip


def on_full_disk(
    pristine: Path, mount: Path, levels: tuple[int, ...], commands: tuple[str, ...]
) -> list[dict[str, Any]]:
    mount.mkdir()
    trial = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(mount)]
    if subprocess.run(trial, check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let a test mount a file system of its own")
    arguments = [str(pristine), str(mount), ",".join(map(str, levels)), *commands]
    command = ["unshare", "-rm", sys.executable, "-m", "tests.full_disk", *arguments]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, env=env, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


# complexity: one condition for each requirement on a full disk
def problems(case: dict[str, Any]) -> list[str]:
    """The faults in a command's handling of a full disk."""
    command, message = case["command"], case["said"]
    faults = []
    if "Traceback" in case["said"] + case["said_again"]:
        faults.append("a traceback")
    if case["code"] not in (0, 1, 3):
        faults.append(f"exit code {case['code']}")
    if case["code"] == 1 and not (re.search(r"[\d.,]+ MB (of disk )?(are|is) free", message) and "again" in message):
        faults.append("no word of the bytes that are free and of what to do")
    if command in ("table", "decide --max-loss 0.02", "doctor", "prune") and case["code"] not in (0, 3):
        faults.append("only looks, and could not")
    for cell, (status, run_id, has_model, evaluations) in case["before"].items():
        now, run_id_now, has_model_now, evaluations_now = case["after"][cell]
        if status == "ok" and (now != "ok" or (has_model and not has_model_now)):
            faults.append(f"{cell} was ok and is {now}")
        if run_id == run_id_now and evaluations_now[: len(evaluations)] != evaluations:
            faults.append(f"{cell}: evaluations {evaluations} became {evaluations_now}")
    if {"lost", "queued", "running"} & {case["after"][cell][0] for cell in set(case["after"]) - set(case["before"])}:
        faults.append("an attempt was begun and has no end")
    if case["partial"] or not case["rows"]:
        faults.append(f"left behind: {case['partial']}, {case['rows']} rows published")
    if case["again"] not in (0, 3):
        faults.append(f"with room again: exit code {case['again']}")
    return faults


def complaints(cases: list[dict[str, Any]]) -> str:
    """The faults of the cases, one paragraph each; empty where all is well."""
    return "\n\n".join(
        f"{case['level']} bytes, {case['command']}: {wrong}\nsaid: {case['said'][-900:]}\nwith room: {case['said_again'][-600:]}"
        for case in cases
        if (wrong := problems(case))
    )


def test_a_good_row_and_the_last_examples_outlive_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "pristine" / "data").mkdir(parents=True)
    lake = planted.lake(tmp_path / "pristine" / "data")
    attempt = lake.cell("full")
    (attempt.model_folder).mkdir()
    (attempt.model_folder / "model.safetensors").write_bytes(b"\1" * 500_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "keep_predictions", lambda _stage: None)
        compare(lake.project)
    shutil.copy(lake.data.root / "experiments.yaml", tmp_path / "pristine")
    cases = on_full_disk(
        tmp_path / "pristine", tmp_path / "mount", (30_000, 1_500_000), ("train tiny full --force", "clean")
    )
    assert len(cases) == 4 and not complaints(cases)
    small, other = cases[0], cases[2]
    assert small["code"] == other["code"] == 1
    assert "2 MB are needed" in small["said"] and "stays as it is" in other["said"]
    assert small["after"] == small["before"] and other["after"] == other["before"]
    assert cases[1]["code"] == 1 and "The last result is untouched" in cases[1]["said"]


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_every_command_takes_a_full_disk(level: int, tmp_path: Path) -> None:
    with unpacked(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        # Predictions are made once here, not by each case.
        for command in ("models", "plan", "compare"):
            assert cli.main([command]) in (0, 3)
    cases = on_full_disk(tmp_path, tmp_path / "mount", (level,), (*LOOKING, *WORKING))
    assert len(cases) == len(LOOKING) + len(WORKING)
    assert not complaints(cases), complaints(cases)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "make it writable"),
        (errno.EACCES, "make it writable"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "ulimit -n"),
        (errno.EBADF, None),
    ],
    ids=["full", "quota", "read-only", "no right", "open files", "open files of all", "a fault of ours"],
)
def test_what_the_machine_refuses_is_a_sentence_and_a_fault_of_ours_is_not(
    number: int,
    message: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(tmp_path))

    def refused(*_: object) -> list[str]:
        raise OSError(number, os.strerror(number), str(tmp_path / "file"))

    monkeypatch.setattr(doctor, "examine", refused)
    if message is None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            cli.main(["doctor"])
        return
    assert cli.main(["doctor"]) == 1
    errors = capsys.readouterr().err
    assert (message in errors and "again" in errors and str(tmp_path) in errors) or "open files" in errors
    assert number not in (errno.ENOSPC, errno.EDQUOT) or "MB are free" in errors


def test_a_quota_counts_as_a_full_disk_when_files_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "file.json", "old")

    def full(_: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("pipelines.lake.files.os.fsync", full)
    with pytest.raises(
        WorkError, match=r"Disk quota exceeded \([\d.,]+ MB are free, more is needed\).*untouched"
    ) as raised:
        write_json(tmp_path / "file.json", "new")
    assert disk.is_full(raised.value) and (tmp_path / "file.json").read_text(encoding="utf-8") == '"old"\n'


def test_a_lock_is_held_though_its_holders_name_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipelines.lake.files.os.write", full)
    with (
        locked(tmp_path / "a.lock", "me"),
        pytest.raises(WorkError, match="is in use by another process"),
        locked(tmp_path / "a.lock", "you", wait=False),
    ):
        pass
