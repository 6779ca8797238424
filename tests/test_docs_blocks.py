"""Every block of code in README and docs is run, or parsed by its own reader, or listed below with
a reason.

The shell has nothing activated: a command of the project is called by its path. Only `duckdb` is
the reader's own.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.card import command as card
from pipelines.cli import main, parser
from pipelines.compare.compare import compare
from pipelines.errors import UsageError
from pipelines.generate.trained_on import left_out
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.lake.warehouse import connect
from pipelines.plan import fleet
from pipelines.settings import experiments as configuration
from tests.fakes import planted
from tests.fakes.planted import Lake
from tests.project import merge

BIN = Path(sys.executable).parent
FEATHERWEIGHT, PYTHON = ".venv/bin/featherweight", ".venv/bin/python"
COMPLETION = "/path/to/featherweight/.venv/bin/register-python-argcomplete"
# Python that needs an export or weights is only compiled; tests/test_extras_export.py loads its own
# export the same way
NEEDS_WEIGHTS = ("data/exports/", "data/models/")
# Commands that are neither run nor parsed here, by page and program.
ELSEWHERE = {
    ("docs/models.md", "git"): "an archive of the whole checkout; the notebook's tests use one",
    ("docs/operating.md", "git"): "another version",
    ("docs/operating.md", ".venv/bin/dg"): "tests/test_assets_pages.py runs dg",
    ("docs/operating.md", COMPLETION): "tests/test_cli_console.py completes; the path is the reader's",
    ("docs/operating.md", "find"): "tests/test_docs_start_over.py runs it on a lake",
    ("docs/operating.md", "rm"): "tests/test_docs_start_over.py runs it on a lake",
    ("docs/scaling.md", ".venv/bin/ray"): "starts a cluster; tests/test_runs_ray.py has one",
    ("docs/scaling.md", "ssh"): "another machine",
    ("docs/evaluation.md", ".venv/bin/lm_eval"): "an extra; tests/test_evaluate_benchmarks_harness.py compares with it",
}
BUILT_IN = ("eval", "export", "printf", "source")
# Commands that end within seconds and send nothing are run; the values are their possible exit
# codes.
RUN = {"generate --estimate": (0,), "decide --memory 16 --minutes 60 --max-loss 0.02": (0, 3)}
JS_PACKAGE = "@duckdb/node-api"


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    return [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]


def found_blocks() -> Iterator[Block]:
    for path in pages():
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            yield Block(path.relative_to(PROJECT).as_posix(), line, match[1], match[2])


BLOCKS = list(found_blocks())


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def each(*languages: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", of(*languages), ids=str)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, without its comment and its variables."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for is_pipe, part in groupby(words, lambda word: word == "|"):
            command = list(part)
            while command and re.match(r"[A-Z_]+=", command[0]):
                command.pop(0)
            if command and not is_pipe:
                yield command


def arguments_are_known(words: list[str], capsys: pytest.CaptureFixture[str], *, whole: bool) -> None:
    """Check arguments with the command's own parser; a mention in prose may leave out values and
    required arguments."""
    try:
        parser().parse_args(words)
    except SystemExit:
        error = capsys.readouterr().err
        if whole or not re.search("required|expected one argument", error):
            pytest.fail(f"featherweight {shlex.join(words)}: {error}")


def test_every_language_is_known() -> None:
    assert {block.language for block in BLOCKS} <= {"", "sh", "bash", "sql", "python", "js", "yaml", "text"}


@each("", "sh", "bash")
def test_shell_commands_exist_and_take_these_arguments(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in commands(block.text):
        program, *rest = command
        if program == FEATHERWEIGHT:
            arguments_are_known(rest, capsys, whole=True)
        elif program == PYTHON and rest[:3] == ["-m", "benchmarks", "card"]:
            card.parser().parse_args(rest[3:])
        elif program == PYTHON and rest[0] == "-m":
            assert (PROJECT / rest[1].replace(".", "/")).with_suffix(".py").exists() or (PROJECT / rest[1]).is_dir()
        elif program == "make":
            assert {word for word in rest if "=" not in word} <= targets, command
        elif program != "duckdb" and program not in BUILT_IN:
            assert (block.page, program) in ELSEWHERE, f"{block}: run {program}, or say in ELSEWHERE why not"
        if "/" not in program and program not in ("make", "duckdb", *BUILT_IN):
            assert shutil.which(program, path="/usr/bin:/bin"), f"{block}: {program} is on no path before activation"


def test_what_is_said_to_be_elsewhere_is_there() -> None:
    used = {(block.page, command[0]) for block in of("", "sh", "bash") for command in commands(block.text)}
    assert ELSEWHERE.keys() <= used
    for reason in ELSEWHERE.values():
        assert all((PROJECT / path).exists() for path in re.findall(r"tests/\w+\.py", reason))


MENTIONS = sorted(
    {
        (path.name, command)
        for path in pages()
        for command in re.findall(r"`(?:\.venv/bin/)?featherweight ([^`\n…]+)`", path.read_text())
    }
)


@pytest.mark.parametrize(("page", "command"), MENTIONS, ids=[f"{page}: {command}" for page, command in MENTIONS])
def test_commands_in_prose_take_these_arguments(page: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["1" if word in ("X", "N", "GB") else word for word in shlex.split(command)]
    if words not in (["--help"], ["--version"], ["COMMAND", "--help"]):
        arguments_are_known(words, capsys, whole=False)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder with a published table in `data` that has the columns of the pages."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "data").mkdir()
    lake = planted.lake(folder / "data", profiles={"local": {"evaluation": {"metrics": ["exact_match"]}}})
    _fill(lake)
    return folder


def _fill(lake: Lake) -> None:
    for method in ("base", "full", "lora-r8", "qlora-r8"):
        lake.cell(method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.compare.compare.keep_predictions", lambda _resolved: None)
        compare(lake.project)


def run(folder: Path, *command: str) -> str:
    """Run in a shell without activation, with only a `duckdb` of the reader's own."""
    own = folder / "own-programs"
    own.mkdir(exist_ok=True)
    if not (own / "duckdb").exists():
        (own / "duckdb").symlink_to(BIN / "duckdb")
    plain = {name: os.environ[name] for name in ("HOME", "LANG", "LC_ALL", "NODE_PATH") if name in os.environ}
    env = {**plain, "PATH": f"{own}:/usr/bin:/bin", "TZ": "Asia/Seoul"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", [one for one in of("sh") if one.text.startswith("duckdb ")], ids=str)
def test_queries_of_the_terminal_are_answered(block: Block, here: Path) -> None:
    assert "eval_bits_per_byte" in run(here, "bash", "-euc", block.text)


@each("python")
def test_python_is_run(block: Block, here: Path) -> None:
    if any(place in block.text for place in NEEDS_WEIGHTS):
        compile(block.text, str(block), "exec")
        return
    output = run(here, str(BIN / "python"), "-c", block.text)
    assert "lora-r8" in output or "Empty DataFrame" in output
    if "TimeZone" in block.text:
        assert "UTC" in output and "KST" not in output


@each("sql")
def test_sql_is_understood(block: Block, here: Path) -> None:
    with connect(DataRoot(here / "data")) as db:
        assert db.execute(block.text).description


@each("js")
def test_javascript_is_run_where_its_package_is_here(block: Block, here: Path) -> None:
    (query,) = re.findall(r'"(SELECT .*?)"', block.text)
    with connect(DataRoot(here / "data")) as db:
        assert len(db.execute(query).fetchall()) == 4
    node, script = shutil.which("node"), here / "block.mjs"
    if node is None:
        pytest.skip("the query was run; node is not installed")
    script.write_text(block.text, encoding="utf-8")
    run(here, node, "--check", str(script))
    packages = os.environ.get("NODE_PATH")
    if packages is None or not (Path(packages) / JS_PACKAGE).exists():
        pytest.skip(f"the query was run, the script checked; NODE_PATH names no folder with {JS_PACKAGE}")
    # Node resolves imports only beside the script.
    (here / "node_modules").symlink_to(packages)
    assert "2026-" in run(here, node, str(script)) and "lora-r8" in run(here, node, str(script))


@pytest.mark.parametrize("arguments", RUN)
def test_quick_commands_are_run(
    arguments: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert any(shlex.join([FEATHERWEIGHT, *arguments.split()]) in block.text for block in of("sh")), (
        "no page has this command any more"
    )
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(here / "data"))
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(here / "data" / "experiments.yaml"))
    monkeypatch.setenv("FEATHERWEIGHT_PROFILE", "local")
    assert main(arguments.split()) in RUN[arguments], capsys.readouterr().err


# settings


def shipped() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "experiments.yaml").read_text(encoding="utf-8"))


@each("yaml")
def test_settings_load_beside_the_shipped_ones(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(block.text, encoding="utf-8")
    # The block lists machines for `plan --cluster`.
    if block.text.startswith("nodes:"):
        assert fleet.load(path).nodes
        return
    settings, pasted = shipped(), yaml.safe_load(block.text)
    if "embeddings" in pasted:  # one of several sources, so the shipped one goes
        del settings["embeddings"]
    merge(settings, pasted)
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    configuration.load(path)


# What a pasted section disables: by design, since the user's data replace the others, or as its
# page says.
SAID = (
    "files alone are trained on",
    "hub alone are trained on",
    "files and hub alone are trained on",
    "none of kind local",
)


@pytest.mark.parametrize(
    "block", [one for one in of("yaml") if re.match(r"(sources|providers|generation):", one.text)], ids=str
)
def test_a_section_that_is_pasted_over_the_shipped_one_switches_nothing_off_in_silence(
    block: Block, tmp_path: Path
) -> None:
    path = tmp_path / "experiments.yaml"
    path.write_text(yaml.safe_dump({**shipped(), **yaml.safe_load(block.text)}), encoding="utf-8")
    try:
        loaded = configuration.load(path)
    except UsageError as error:
        # The shipped file names something that the pasted section no longer has.
        assert "sources.providers" in str(error)
        return
    warnings = left_out(loaded)
    assert all(any(known in one for known in SAID) for one in warnings), warnings
    assert warnings or loaded.local_provider, "the local generator is gone without a word"
