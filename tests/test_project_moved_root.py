"""A moved or copied data root: everything is read and written under the root that is named now."""

import ctypes
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from pipelines import cli
from pipelines.cli.working import project_now
from pipelines.compare import compare as comparing
from pipelines.compare.compare import compare
from pipelines.evaluate.cell import evaluate, spec_of
from pipelines.lake.files import read_json, write_json
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.runs import cells
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.run import RunHooks
from tests.asking import KEYS
from tests.fakes import planted
from tests.fakes.plant_lake import PORT
from tests.fakes.provider import fake_provider
from tests.in_process import InProcess
from tests.test_project_old_lake import ARCHIVE

# inotify events: a file or folder is read, written, changed, moved, opened, created or deleted.
EVENTS = 0x1 | 0x2 | 0x4 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200
HEAD = struct.Struct("iIII")
CHEAP = ("table", "decide --max-loss 0.02", "doctor", "generate --estimate", "compare", "prune --yes")
# Every command except `judge` and `generate`, which follow below.
ALL = (
    "table", "decide --max-loss 0.02", "plan", "models", "estimate tiny lora-r8", "fetch tiny", "doctor",
    "generate --estimate", "prune", "train tiny lora-r8 --seed 1 --dry-run", "train tiny lora-r8 --seed 1 --force",
    "train tiny lora-r4 --seed 1", "evaluate tiny base --seed 1 --force", "evaluate tiny lora-r8 --seed 2 --force",
    "evaluate tiny qlora-r8 --seed 1 --force", "evaluate tiny full --seed 1 --force",
    "export tiny lora-r8 --seed 2 --merge --gguf F16",
    "bit-widths tiny lora-r8 --seed 2 --format fp32 --format nf4 --format gguf-f16",
    "tune tiny lora-r4 --trials 3 --seed 1", "clean", "generate", "judge", "compare", "sweep tiny --ranks 4", "prune --yes",
)  # fmt: skip


@contextmanager
def untouched(root: Path) -> Iterator[None]:
    """Fails where a process opens, reads, writes, creates or removes anything under `root`
    meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    # Listed before the watch begins, because listing is a touch, too.
    there = [folder for folder, _, _ in os.walk(root)]
    folders = {libc.inotify_add_watch(handle, os.fsencode(folder), EVENTS): folder for folder in there}
    assert handle >= 0 and -1 not in folders, os.strerror(ctypes.get_errno())
    try:
        yield
        changes = _events(handle, folders)
    finally:
        os.close(handle)
    assert changes == []


def _events(handle: int, folders: dict[int, str]) -> list[str]:
    names: set[str] = set()
    while True:
        try:
            events = os.read(handle, 1 << 16)
        except BlockingIOError:
            return sorted(names)
        while events:
            hooks, _, _, length = HEAD.unpack_from(events)
            name = events[HEAD.size : HEAD.size + length].rstrip(b"\0").decode()
            names.add(f"{folders.get(hooks, 'more than were kept')}/{name}")
            events = events[HEAD.size + length :]


def test_a_touch_is_seen(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text("x", encoding="utf-8")
    with untouched(tmp_path):
        assert (tmp_path / "deep" / "file").exists()
    with pytest.raises(AssertionError, match="deep/file"), untouched(tmp_path):
        (tmp_path / "deep" / "file").read_text(encoding="utf-8")


def test_commands_that_train_nothing_touch_the_copy_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparing, "keep_predictions", lambda _stage: None)
    (tmp_path / "old").mkdir()
    lake = planted.lake(tmp_path / "old")
    for method in ("base", "full", "lora-r8"):
        lake.cell(method)
    lake.started("qlora-r8")
    compare(lake.project)
    shutil.copytree(tmp_path / "old", new := tmp_path / "new", symlinks=True)
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(new))
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(new / "experiments.yaml"))
    monkeypatch.setenv("FEATHERWEIGHT_PROFILE", "local")
    with untouched(tmp_path / "old"):
        for command in CHEAP:
            assert cli.main(command.split()) in (0, 3), (command, capsys.readouterr().err)
    key = CellKey("tiny", "qlora-r8", 1)
    statuses = [cells.attempts(DataRoot(root), key)[-1].status for root in (tmp_path / "old", new)]
    assert statuses == ["running", "lost"], "this process works only on the old root"


def test_weights_inside_the_root_are_those_of_the_copy(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    lake = planted.lake(tmp_path / "old")
    attempt = lake.cell("lora-r8")
    inside, outside = tmp_path / "old" / "models" / "own", tmp_path / "elsewhere"
    for recorded in (inside, outside, Path("models/tiny")):
        replace(attempt.spec, weights=str(recorded)).write(attempt.folder)
        spec = spec_of(lake.resolved(), Attempt(attempt.key, attempt.folder))
        assert spec.weights == "models/tiny", "where the model's weights lie now, whatever was recorded"
    mine = {"source": {"path": str(inside)}, "prompt": "chat", "lora_targets": ["q_proj"]}
    inside.mkdir(parents=True)
    write_json(inside / "config.json", {})
    configured = lake.configured(models={"mine": mine})
    from pipelines.weights import store

    assert store.lies_in(lake.data, "mine", configured.project.experiments.model("mine")) == "models/own"


def unpacked_at(folder: Path) -> DataRoot:
    """The old lake in `folder`, as if it had been made there."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        if "/tmp/planted" in text:
            path.write_text(text.replace("/tmp/planted", str(folder)), encoding="utf-8")
    return DataRoot(folder / "data")


def environment(folder: Path) -> dict[str, str]:
    return {
        "FEATHERWEIGHT_DATA": str(folder / "data"), "FEATHERWEIGHT_EXPERIMENTS": str(folder / "experiments.yaml"),
        "FEATHERWEIGHT_PROFILE": "local", "DAGSTER_HOME": str(folder / "data" / "dagster"), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(PROJECT), **KEYS,
    }  # fmt: skip


def run_all(folder: Path, commands: tuple[str, ...] = ALL) -> None:
    env = {**os.environ, **environment(folder)}
    with fake_provider(port=PORT):
        for command in commands:
            module = [] if command.startswith("assets.") else ["pipelines.cli"]
            done = subprocess.run(
                [sys.executable, "-m", *module, *command.split()], cwd=folder, env=env, capture_output=True, check=False
            )
            assert done.returncode in (0, 3), (command, done.stderr[-2000:])
            assert b"Traceback" not in done.stderr, (command, done.stderr[-2000:])


@pytest.mark.slow
def test_every_command_works_on_a_copy_and_touches_nothing_of_the_old_root(tmp_path: Path) -> None:
    unpacked_at(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "new", symlinks=True)
    with untouched(tmp_path / "old"):
        run_all(tmp_path / "new")


@pytest.mark.slow
def test_every_command_works_on_a_moved_root_and_its_old_place_stays_empty(tmp_path: Path) -> None:
    unpacked_at(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    run_all(tmp_path / "new")
    assert not (tmp_path / "old").exists()


@pytest.mark.slow
def test_dagsters_history_goes_with_a_root_that_is_copied(tmp_path: Path) -> None:
    old = unpacked_at(tmp_path / "old")
    run_all(tmp_path / "old", ("assets.run",))
    assert (old.root / "dagster").exists()
    shutil.copytree(tmp_path / "old", tmp_path / "new", symlinks=True)
    with untouched(tmp_path / "old"):
        run_all(tmp_path / "new", ("assets.run", "assets.history --days 0 --yes"))


@pytest.mark.slow
def test_an_adapter_that_was_changed_in_the_copy_is_the_one_that_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked_at(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "new", symlinks=True)
    for name, value in environment(tmp_path / "new").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path / "new")
    key = CellKey("tiny", "lora-r8", 2)
    attempt = cells.latest(DataRoot(tmp_path / "new" / "data"), key)
    assert attempt is not None
    before = attempt.evaluations()[-1].result.measured["eval_bits_per_byte"]
    (adapter,) = attempt.model_folder.glob("*.safetensors")
    save_file({name: tensor * 50 for name, tensor in load_file(adapter).items()}, adapter)
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    with untouched(tmp_path / "old"):
        again, _ = evaluate(project_now().resolve(), key, force=True, hooks=hooks)
    assert again.ok, again.result.detail
    assert again.result.measured["eval_bits_per_byte"] > before + 0.1
    assert (read_json(again.folder / "spec.json") or {})["root"] == str(tmp_path / "new" / "data")
