"""Fixtures that several files share."""

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.project import TinyProject, make_project

if TYPE_CHECKING:
    from tests.fakes.provider import FakeProvider

# Tiny models gain nothing from more threads, and lose much beside other processes; children
# inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Partitions are those of the profile that this process runs, also on a machine with a card.
os.environ["FEATHERWEIGHT_PROFILE"] = "local"

# Tests wait neither for each other nor for other trainings on this machine; `project` has a
# separate folder.
os.environ["FEATHERWEIGHT_LOCKS"] = tempfile.mkdtemp(prefix="featherweight-test-locks-")

ENDED = pytest.StashKey[int]()

# A shell that starts the tests in the background makes them, and the processes they interrupt,
# ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def transformers_4(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with transformers 4.57, which conflicts with our packages.

    PyTorch is ours.
    """
    folder = tmp_path_factory.mktemp("transformers-4")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "transformers==4.57.3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the package registry gives no transformers 4.57: {done.stderr[-200:]}")
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "zz-ours.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


@pytest.fixture
def project(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    """A separate project, which every command started from this test sees, too."""
    made = make_project(tmp_path / "project", tiny_folder)
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(made.data.root))
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(made.experiments))
    monkeypatch.setenv("FEATHERWEIGHT_PROFILE", "local")
    monkeypatch.setenv("DAGSTER_HOME", str(made.data.root / "dagster"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("FEATHERWEIGHT_LOCKS", str(tmp_path / "locks"))
    return made


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A folder in memory where such a file system exists, since a journal flushes every answer to
    disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def running() -> Iterator["FakeProvider"]:
    """A server that speaks the providers' protocols; `asking.ready` resets it for a test."""
    from tests.fakes.provider import fake_provider

    with fake_provider() as server:
        yield server


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[ENDED] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End here: otherwise DuckDB's bindings print pages about leaked functions after our last
    line."""
    if ENDED in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[ENDED])
