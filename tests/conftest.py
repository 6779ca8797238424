"""Fixtures that several files share."""

from pathlib import Path

import pytest

from tests.project import TinyProject, make_project


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def project(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    """A project of its own, which every command started from this test sees too."""
    made = make_project(tmp_path / "project", tiny_folder)
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(made.data.root))
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(made.experiments))
    monkeypatch.setenv("FEATHERWEIGHT_PROFILE", "local")
    monkeypatch.setenv("DAGSTER_HOME", str(made.data.root / "dagster"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return made
