"""The console script: what it prints, where errors go, and its exit codes, as somebody at a terminal meets them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import main
from tests.project import MODEL, TinyProject


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "smollm", "full"], "smollm2-135m"),
        (["train", MODEL, "lora-r9"], "lora-r8"),
        (["evaluate", MODEL, "nothing"], "lora-r8"),
        (["fetch", "gpt5"], "gpt2-large"),
        (["table"], "make run"),
        (["compare"], "featherweight clean"),
        (["train", MODEL, "full"], "featherweight clean"),
        (["clean", "--input", "nowhere.jsonl"], "nowhere.jsonl"),
        (["clean", "--input", "."], "folder"),
    ],
)
def test_a_mistake_of_the_user_exits_2_and_says_what_is_possible(
    project: TinyProject, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err and "Traceback" not in captured.err and not captured.out


def test_a_wrong_command_exits_2() -> None:
    assert run("trian").returncode == 2


def test_a_broken_experiments_file_is_named_with_line_and_value(project: TinyProject) -> None:
    text = project.experiments.read_text(encoding="utf-8").replace("kind: full", "kind: fulll", 1)
    project.experiments.write_text(text, encoding="utf-8")
    done = run("doctor")
    line = next(i for i, content in enumerate(text.splitlines(), start=1) if "fulll" in content)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{project.experiments}:{line}" in done.stderr and "'fulll'" in done.stderr and "'lora'" in done.stderr


def test_a_broken_corpus_is_named_with_record_and_field(project: TinyProject) -> None:
    records = [{"instruction": "Which book tonight?", "input": "", "output": "Stoner, by John Williams."}] * 2
    records.append({"instruction": "Which?", "input": "", "output": 7})  # pyright: ignore[reportArgumentType]
    project.data.root.mkdir(parents=True)
    (project.data.root / "corpus.json").write_text(json.dumps(records), encoding="utf-8")
    done = run("clean")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for part in ("corpus.json", "record 2", "output", "7", "string"):
        assert part in done.stderr


def test_clean_with_input_takes_just_those_files(
    project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.jsonl"
    rows = [
        {"instruction": f"Question number {i}, please?", "output": f"{i * 7919} is the answer to question {i}."}
        for i in range(60)
    ]
    own.write_text("\n".join([*map(json.dumps, rows), "{broken"]), encoding="utf-8")
    assert main(["clean", "--input", str(own)]) == 0
    out = capsys.readouterr().out
    assert "61 records read = 60 accepted + 1 rejected" in out and "schema" in out


def test_dry_run_shows_tokens_labels_ends_and_the_loss(project: TinyProject) -> None:
    assert run("clean").returncode == 0
    done = run("train", MODEL, "lora-r8", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "label" in lines[1] and any(" – " in line for line in lines)
    assert any(line.startswith("BOS:") for line in lines) and any(
        "<|im_end|>" in line and "end:" in line for line in lines
    )
    assert float(lines[-1].split("loss at step 0: ")[1].split()[0]) > 0
    assert not (project.data.cells).exists()


def test_doctor_names_what_is_missing(project: TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "featherweight fetch gpt2-large" in out and "GB free" in out


def test_generate_without_a_generator_says_so(project: TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate"]) == 0
    assert "local_generator" in capsys.readouterr().out


def test_table_formats_agree(project: TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean"]) == 0 and main(["compare"]) == 0
    capsys.readouterr()
    assert main(["table", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["status"] for row in rows} == {"missing"}
    for form in ("text", "markdown", "csv"):
        assert main(["table", "--format", form]) == 0
        shown = capsys.readouterr().out
        assert all(row["method"] in shown for row in rows)
