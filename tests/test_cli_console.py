"""The console script at a terminal: its output, its errors and its exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from functools import partial
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.cli.command import Command
from pipelines.cli.stages import STAGES
from pipelines.cli.training import FINGERPRINTS
from pipelines.compare.quantized import FORMATS
from pipelines.extras.export.commands import BIT_WIDTHS
from pipelines.lake.paths import PROJECT
from pipelines.project import ANY
from pipelines.runs import run as runs
from pipelines.runs.cells import all_attempts
from tests.in_process import InProcess
from tests.project import MODEL, TinyProject


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments], capture_output=True, text=True, check=False
    )


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error message of a command line that is refused as bad usage."""
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
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
    project: TinyProject, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and not captured.out


def test_a_wrong_command_exits_2() -> None:
    assert run("trian").returncode == 2


def test_a_broken_experiments_file_is_named_with_line_and_value(project: TinyProject) -> None:
    text = project.experiments.read_text(encoding="utf-8").replace("kind: full", "kind: fulll", 1)
    project.experiments.write_text(text, encoding="utf-8")
    done = run("doctor")
    line = next(i for i, content in enumerate(text.splitlines(), start=1) if "fulll" in content)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        f"{project.experiments}:{line}" in done.stderr
        and "got 'fulll'; expected one of none, full, lora, adapter" in done.stderr
    )


def test_a_broken_corpus_is_named_with_record_and_field(project: TinyProject) -> None:
    records = [{"instruction": "Which book tonight?", "input": "", "output": "Stoner, by John Williams."}] * 2
    records.append({"instruction": "Which?", "input": "", "output": 7})  # pyright: ignore[reportArgumentType]
    project.data.root.mkdir(parents=True)
    (project.data.root / "corpus.json").write_text(json.dumps(records), encoding="utf-8")
    done = run("clean")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for part in ("corpus.json", "record 2", "output", "7", "expected a text"):
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


def test_table_formats_agree(
    project: TinyProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["clean"]) == 0 and main(["compare"]) == 0
    capsys.readouterr()
    assert main(["table", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["status"] for row in rows} == {"missing"}
    for form in ("text", "markdown", "csv"):
        assert main(["table", "--format", form]) == 0
        shown = capsys.readouterr().out
        assert all(row["method"] in shown for row in rows)
    assert main(["table"]) == 0
    assert "tok/s" in capsys.readouterr().out, "a pipe gets every column"
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["table"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 60 and "left out to fit 60 columns" in shown


def test_alone_it_lists_every_command_under_its_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ") and "--" not in line.split()[0]]
    assert listed == [command.name for stage in STAGES for command in stage.commands]
    assert [line for line in lines if line in {stage.heading for stage in STAGES}] == [s.heading for s in STAGES]
    assert max(map(len, lines)) <= 80, "a line each, also in a narrow terminal"


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert capsys.readouterr().out == f"featherweight {version}\n"


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["trian"], "'train'"),
        (["table", "--format", "jsn"], "'json'"),
        (["table", "--formt", "json"], "--format"),
        (["train", MODEL, "full", "--max-exampels=3"], "--max-examples"),
        (["train", MODEL, "full", "--rerun-for", "data,recip"], "'recipe'"),
        (["export", MODEL, "full", "--gguf", "Q8"], "'Q8_0'"),
    ],
)
def test_what_is_misspelt_is_said_with_what_was_meant(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"did you mean {meant}" in refusal(arguments, capsys)


@pytest.mark.parametrize("command", [command for stage in STAGES for command in stage.commands], ids=lambda c: c.name)
def test_every_argument_is_explained(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command.name, "--help"])
    help_text = capsys.readouterr().out.partition("\n\n")[2]
    blocks = re.findall(r"^  (-\S.*|[A-Z]\S*.*)((?:\n {10,}.*)*)", help_text, re.MULTILINE)
    assert blocks and all(re.search(r"  +\w", first) or more for first, more in blocks)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--ranks", "x"],
        ["tune", MODEL, "full", "--trials", "many"],
        ["tune", MODEL, "full", "--low", "x"],
        ["train", MODEL, "full", "--seed", "one"],
        ["train", MODEL, "full", "--seed", "99999999999999999999"],
        ["train", MODEL, "full", "--max-examples", "0"],
        ["decide", "--memory", "much"],
        ["chat", "--port", "http"],
    ],
)
def test_a_wrong_value_is_said_with_what_was_expected_and_no_name_of_our_code(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(arguments, capsys)
    assert f"got '{arguments[-1]}'; expected" in message and not re.search(r"invalid \w+ value", message)


def completions(line: str) -> list[str]:
    """The shell's completions at the end of `line`; checks that no heavy library was loaded for
    them."""
    variables = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    with tempfile.NamedTemporaryFile() as answers:
        code = "import sys; from pipelines.cli import main; main()"
        environment = {**os.environ, **variables, "_ARGCOMPLETE_STDOUT_FILENAME": answers.name}
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code], env=environment, capture_output=True, text=True
        )
        loaded = {word.split("|")[-1].strip().split(".")[0] for word in done.stderr.splitlines()}
        assert "argcomplete" in loaded and not loaded & {"torch", "pydantic", "duckdb", "transformers", "pyarrow"}
        return Path(answers.name).read_text(encoding="utf-8").split("\n")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("featherweight tra", {"train"}),
        ("featherweight train smollm2-135m-t", {"smollm2-135m-tour"}),
        (f"featherweight evaluate {MODEL} qlora-r8", {"qlora-r8"}),
        (f"featherweight train {MODEL} full --profile lo", {"local"}),
        ("featherweight table --format m", {"markdown"}),
        ("featherweight generate --provider cl", {"claude"}),
    ],
)
def test_the_shell_completes_commands_names_and_values(project: TinyProject, line: str, offered: set[str]) -> None:
    assert {word.strip() for word in completions(line)} == offered


def test_a_broken_experiments_file_completes_nothing_and_says_nothing(project: TinyProject) -> None:
    project.experiments.write_text("models: [", encoding="utf-8")
    assert completions("featherweight train smol") == [""]


def test_train_takes_what_the_launchpad_takes(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "RunHooks", partial(runs.RunHooks, launcher=InProcess()))
    project.change(profiles={"priced": {"models": [MODEL], "methods": ["full"], "price_per_hour": 36.0, "seeds": [3]}})
    assert main(["clean"]) == 0
    assert main(["train", MODEL, "lora-r8", "--max-examples", "4", "--budget-usd", "1"]) == 0
    (attempt,) = all_attempts(project.data)
    assert (attempt.spec.selection["max_train"], attempt.key.seed) == (4, 1)
    assert "budget_usd caps nothing: profile local has no price_per_hour" in capsys.readouterr().err
    assert main(["train", MODEL, "lora-r8", "--rerun-for", "code"]) == 0
    assert "(current, reused)" in capsys.readouterr().out, "its examples have changed, which was not requested"
    assert main(["train", MODEL, "lora-r8", "--profile", "priced", "--max-examples", "4", "--budget-usd", "0.6"]) == 0
    spec = list(all_attempts(project.data))[-1].spec
    assert (spec.profile, spec.seed, spec.time_limit_minutes) == ("priced", 3, pytest.approx(1.0))


def test_the_fingerprints_that_train_knows_are_those_there_are() -> None:
    assert FINGERPRINTS == ANY and BIT_WIDTHS == FORMATS


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_that_cannot_be_read_is_no_traceback(
    project: TinyProject, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    (broken / name).write_text("{" * 20, encoding="utf-8")
    project.change(models={MODEL: {"source": {"path": str(broken)}}})
    assert main(["clean"]) == 0
    capsys.readouterr()
    assert main(["train", MODEL, "full", "--dry-run"]) == 1
    assert str(broken) in capsys.readouterr().err


@pytest.mark.parametrize(
    "module",
    ["pipelines.extras.export.arguments", "pipelines.extras.export.commands", "pipelines.extras.tune.commands"],
)
def test_a_module_of_the_extras_can_be_imported_first(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
