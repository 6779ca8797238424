"""Terminals with an encoding other than UTF-8.

Characters that they cannot show are printed escaped; no command and no cell ends because of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli
from pipelines.compare import compare as comparing
from pipelines.compare.compare import compare
from pipelines.runs import cells
from tests.fakes import planted
from tests.fakes.planted import Lake
from tests.in_process import clean_for
from tests.project import MODEL, TinyProject
from tests.test_project_old_lake import unpacked

ENCODINGS = ("ascii", "latin-1", "cp949")
# With these settings Python uses the locale's encoding, ASCII, for files and their names.
NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
# Only UTF-8, of the encodings here, has all of these characters.
NOTE = "한국어 메모 — naïve, “quoted” …"
CHEAP = (
    "--help", "train --help", "table", "table --format markdown", "table --format json", "table --format csv",
    "decide --max-loss 0.02", "models", "prune", "plan", "doctor", "generate --estimate",
)  # fmt: skip
FAILING = ("train 없는-모델 full", "fetch 없는-모델", "clean --input 없는-파일.jsonl", "export tiny full")
# Each command runs as in its own process: with strict streams of the encoding, as Python opens
# stdout.
EACH = """
import io, json, os, sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module="pipelines|assets")
from pipelines import cli
ended, (encodings, commands) = [], map(json.loads, sys.argv[1:])
for encoding in encodings:
    for command in commands:
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(os.dup(n), "wb"), encoding=encoding) for n in (1, 2))
        sys.argv = ["featherweight", *command.split()]
        try:
            code = cli.main()
        except SystemExit as error:
            code = error.code
        sys.stdout.flush(), sys.stderr.flush()
        ended.append([encoding, command, code])
os.write(1, b"ENDED " + json.dumps(ended).encode())
"""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A published lake with Korean texts and a row of each kind."""
    made = planted.lake(tmp_path_factory.mktemp("encodings"), models={"tiny": {"note": NOTE}})
    for method in ("base", "lora-r8"):
        made.cell(method)
    made.trained("full", "failed", detail=NOTE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "keep_predictions", lambda _stage: None)
        compare(made.project)
    return made


def environment(data: Path, experiments: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ, "FEATHERWEIGHT_DATA": str(data), "FEATHERWEIGHT_EXPERIMENTS": str(experiments),
        "FEATHERWEIGHT_PROFILE": "local", "HF_HUB_OFFLINE": "1", **more,
    }  # fmt: skip


def run(*command: str, env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, check=False, **options)


def test_every_cheap_command_prints_in_every_encoding(lake: Lake) -> None:
    env = environment(lake.data.root, lake.data.root / "experiments.yaml", **NO_UTF8)
    arguments = [json.dumps(one) for one in (ENCODINGS, [*CHEAP, *FAILING])]
    done = run("-X", "warn_default_encoding", "-c", EACH, *arguments, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    printed, _, ended = done.stdout.rpartition(b"ENDED ")
    codes = {(encoding, command): code for encoding, command, code in json.loads(ended)}
    assert len(codes) == len(ENCODINGS) * len(CHEAP + FAILING)
    assert {command: code for (_, command), code in codes.items() if command in FAILING} == dict.fromkeys(FAILING, 2)
    assert {code for (_, command), code in codes.items() if command in CHEAP} <= {0, 3}
    assert b"Traceback" not in done.stderr
    assert "메모".encode("cp949") in printed and rb"\ud55c\uad6d\uc5b4" in printed, (
        "shown where possible, otherwise escaped"
    )


@pytest.mark.parametrize("variable", ["FEATHERWEIGHT_DATA", "FEATHERWEIGHT_EXPERIMENTS"])
def test_a_path_that_the_locale_cannot_read_is_named(
    lake: Lake, variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(lake.data.root / "experiments.yaml"))
    # This is how an ASCII locale reads a name in UTF-8.
    monkeypatch.setenv(variable, os.fsdecode("/자료".encode("cp949")))
    assert cli.main(["doctor"]) == 2
    errors = capsys.readouterr().err
    assert variable in errors and "PYTHONUTF8=1" in errors


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_of_an_old_lake_runs_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    with unpacked(tmp_path) as data:
        env = environment(data.root, tmp_path / "experiments.yaml", PYTHONIOENCODING=encoding, **NO_UTF8)
        for command in (
            "clean", "train tiny lora-r8 --seed 1 --dry-run", "train tiny lora-r16 --seed 1",
            "evaluate tiny lora-r8 --seed 1 --force", "export tiny lora-r8 --seed 1 --merge --gguf F16",
            "bit-widths tiny lora-r8 --seed 1 --format fp32 --force", "tune tiny lora-r4 --trials 1 --seed 1",
            "estimate tiny lora-r8", "compare", "sweep tiny --ranks 4", "prune --yes", *CHEAP,
        ):  # fmt: skip
            done = run("-m", "pipelines.cli", *command.split(), env=env, cwd=Path(__file__).parent.parent)
            assert done.returncode in (0, 3) and b"Traceback" not in done.stderr, (command, done.stderr[-2000:])


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_cell_is_trained_and_run_through_dagster_in_every_encoding(encoding: str, project: TinyProject) -> None:
    project.change(profiles={"local": {"methods": ["base", "lora-r8"]}})
    clean_for(project)
    env = {**os.environ, **NO_UTF8, "PYTHONIOENCODING": encoding}
    done = run("-m", "assets.run", env=env, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr[-3000:]
    attempt = cells.latest(project.data, project.key("lora-r8"))
    assert attempt is not None and attempt.status == "ok" and attempt.key.model == MODEL
    assert "train …" in (attempt.folder / "log.txt").read_text(encoding="utf-8")
    for command in (["-m", "assets.history"], ["-m", "pipelines.cli", "evaluate", MODEL, "lora-r8", "--force"]):
        done = run(*command, env=env, cwd=Path(__file__).parent.parent)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr[-3000:]
