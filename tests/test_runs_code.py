"""The code fingerprint covers exactly the code that the child runs."""

import ast
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pipelines.evaluate.cell import CHILD as EVALUATES
from pipelines.extras.export.cell import CHILD as EXPORTS
from pipelines.lake.paths import PROJECT
from pipelines.project import TRAINS
from pipelines.runs import code
from pipelines.runs.code import closure, code_fingerprint, hash_of
from pipelines.runs.command import CellCommand
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from tests.in_process import Ended, clean_for
from tests.project import TinyProject

CHILDREN = (TRAINS, EVALUATES, EXPORTS)
PARENTS_SIDE = (
    "train/cell.py", "evaluate/cell.py", "evaluate/judge.py", "evaluate/answers.py", "evaluate/teacher.py", "runs/cells.py",
    "runs/restart.py", "runs/launchers/local.py", "runs/launchers/ray/launcher.py",
    "settings/experiments.py", "settings/profiles.py", "settings/training.py", "weights/store.py", "cli/console.py",
    "compare/table.py", "nightly/night.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's sources that tests may change."""
    root = tmp_path_factory.mktemp("sources")
    shutil.copytree(PROJECT / "pipelines", root / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def fingerprint(module: str, root: Path) -> str:
    return hash_of(closure(module, root=root), root)


def touch(file: Path) -> str:
    """Add a comment; returns the earlier text."""
    before = file.read_text(encoding="utf-8")
    file.write_text(before + "# touched\n", encoding="utf-8")
    return before


def test_a_copy_of_the_sources_has_the_same_fingerprint(copied: Path):
    assert [fingerprint(child, copied) for child in CHILDREN] == [code_fingerprint(child) for child in CHILDREN]


@pytest.mark.parametrize("name", PARENTS_SIDE)
def test_a_change_on_the_parents_side_changes_no_fingerprint(copied: Path, name: str):
    file = copied / "pipelines" / name
    fingerprints = [fingerprint(child, copied) for child in CHILDREN]
    before = touch(file)
    try:
        assert [fingerprint(child, copied) for child in CHILDREN] == fingerprints
    finally:
        file.write_text(before, encoding="utf-8")


@pytest.mark.parametrize("child", CHILDREN)
def test_a_change_of_any_file_that_the_child_imports_changes_it(copied: Path, child: str):
    files = closure(child, root=copied)
    original = hash_of(files, copied)
    for file in files:
        before = touch(file)
        assert hash_of(files, copied) != original, file
        file.write_text(before, encoding="utf-8")
    assert hash_of(files, copied) == original


def test_a_file_that_the_child_imports_inside_a_function_counts_from_then_on(copied: Path):
    child, prose = (copied / "pipelines" / name for name in ("train/trainer/child.py", "clean/prose.py"))
    assert prose not in closure(TRAINS, root=copied)
    before = child.read_text(encoding="utf-8")
    child.write_text(before + "\n\ndef later() -> None:\n    from pipelines.clean import prose\n", encoding="utf-8")
    try:
        assert prose in closure(TRAINS, root=copied)
    finally:
        child.write_text(before, encoding="utf-8")


@pytest.mark.parametrize("named", ["torch", "wandb", "peft.py"])
def test_what_else_lies_beside_the_project_is_not_followed(copied: Path, named: str):
    """W&B stores its runs in a folder `wandb`; an installed project has every other package beside
    it."""
    before = fingerprint(TRAINS, copied)
    other = copied / named
    if other.suffix:
        other.write_text("import nothing_at_all\n", encoding="utf-8")
    else:
        (other / "sub").mkdir(parents=True)
    assert fingerprint(TRAINS, copied) == before
    assert all(file.is_relative_to(copied / "pipelines") for file in closure(TRAINS, root=copied))


def test_an_upgrade_under_a_running_server_is_seen(copied: Path, monkeypatch: pytest.MonkeyPatch):
    """The server's children run the code on disk, so the fingerprint follows it."""
    monkeypatch.setattr(code, "PROJECT", copied)
    monkeypatch.setattr(code, "_fingerprints", {})
    monkeypatch.setattr(code, "closure", partial(closure, root=copied))
    original = code.code_fingerprint(TRAINS)
    assert code.code_fingerprint(TRAINS) == original
    file = copied / "pipelines/runs/worker.py"
    before = touch(file)
    assert code.code_fingerprint(TRAINS) != original
    file.write_text(before, encoding="utf-8")
    assert code.code_fingerprint(TRAINS) == original


class Telling:
    """A launcher whose child lists, at its end, the project's files that it imported."""

    imported: frozenset[Path] = frozenset()

    def start(self, command: CellCommand) -> Ended:
        ran = (
            "import sys; from pathlib import Path; from pipelines.runs.worker import Worker; "
            "from pipelines.train.trainer.child import train_cell; "
            f"code = Worker(Path({str(command.folder)!r})).run(train_cell); "
            "print(); print([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'pipelines']); sys.exit(code)"
        )
        done = subprocess.run([sys.executable, "-c", ran], cwd=PROJECT, capture_output=True, text=True, check=False)
        (command.folder / "log.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        self.imported = frozenset(Path(file) for file in ast.literal_eval(done.stdout.splitlines()[-1]))
        return Ended(done.returncode)


def test_what_a_training_child_really_imports_is_covered(project: TinyProject):
    launcher = Telling()
    attempt, _ = train(clean_for(project).resolved(), project.key("lora-r8"), hooks=RunHooks(launcher=launcher))
    assert attempt.status == "ok", attempt.result
    assert PROJECT / "pipelines/train/trainer/loop.py" in launcher.imported
    assert launcher.imported <= set(closure(TRAINS))
