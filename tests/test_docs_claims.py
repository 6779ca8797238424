"""Counts, lists and promises in README and docs match the code."""

import argparse
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from assets.definitions import defs
from assets.launchpad import CellConfig
from pipelines.clean.reasons import REASONS
from pipelines.cli import parser
from pipelines.compare.columns.registry import TABLES, VIEWS
from pipelines.lake.paths import PROJECT
from pipelines.nightly.due import TRIES
from pipelines.recipe import OUTSIDE_RECIPE
from pipelines.runs.launchers.ray import code
from pipelines.settings import page as settings_page
from pipelines.settings.experiments import Experiments, load
from pipelines.settings.training import TrainingOverrides

PAGES = {
    path.relative_to(PROJECT).as_posix(): path.read_text(encoding="utf-8")
    for path in [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
}


def table_after(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below `heading`."""
    lines = page.split(heading)[1].split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("| ---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def test_every_table_and_command_is_named() -> None:
    tables = "".join(row[0] + row[1] for row in table_after(PAGES["docs/table.md"], "## All tables"))
    assert [one.name for one in (*TABLES, *VIEWS) if f"`{one.name}`" not in tables] == []
    (commands,) = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    listed = "".join(row[1] for row in table_after(PAGES["docs/operating.md"], "## The command line"))
    assert set(re.findall(r"`([a-z-]+)`", listed)) == set(commands.choices)


def test_every_reason_of_a_reject_is_explained() -> None:
    explained = "".join(row[0] for row in table_after(PAGES["docs/data.md"], "## What was dropped, and why"))
    assert [reason for reason in REASONS if f"`{reason}`" not in explained] == []


def test_the_launchpad_is_as_its_page_says() -> None:
    documented = {
        row[0].strip("`"): row[1].strip("`") for row in table_after(PAGES["docs/operating.md"], "**The launchpad**")
    }
    fields = {name: field for name, field in CellConfig.model_fields.items() if name not in ("rerun_for", "retime")}
    given = {name: json.dumps(field.default).strip('"') for name, field in fields.items()}
    assert {name: value.removesuffix(".0") for name, value in given.items()} == documented


@pytest.mark.parametrize(
    ("asset", "takes"),
    [
        ("generated_records", {"budget_usd", "providers"}),
        ("provider_comparison", {"budget_usd"}),
        ("judged_answers", {"budget_usd", "profile"}),
        ("base_evaluation", {"force", "profile", "outside_profile"}),
    ],
)
def test_what_other_assets_take(asset: str, takes: set[str]) -> None:
    node = next(
        one for one in defs.get_repository_def().assets_defs_by_key.values() if one.key.path[-1] == asset
    ).node_def
    assert set(node.config_schema.config_type.fields) == takes  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    assert all(f"`{name}`" in PAGES["docs/operating.md"] for name in takes)


def test_how_often_a_cell_is_tried() -> None:
    sentence = f"up to {TRIES['killed']}, {TRIES['lost']}, {TRIES['timed_out']} and {TRIES['failed']} times in a row"
    assert sentence in PAGES["docs/operating.md"]


def test_what_is_part_of_the_fingerprint_is_told_apart() -> None:
    page = PAGES["docs/training.md"]
    inside = " ".join(map(str, table_after(page, "part of the recipe's fingerprint:")))
    outside = " ".join(row[0] for row in table_after(page, "is no part of the fingerprint"))
    for name in TrainingOverrides.model_fields:
        # `learning_rate_source` is set by tune alone.
        if name != "learning_rate_source":
            assert (f"`{name}`" in outside) == (name in OUTSIDE_RECIPE), name
            assert (f"`{name}`" in inside) == (name not in OUTSIDE_RECIPE), name


def test_tests_that_pages_name_are_there() -> None:
    for page, text in PAGES.items():
        for file, name in re.findall(r"`(?:tests/)?(test_\w+\.py)::(\w+)`", text):
            assert f"def {name}(" in (PROJECT / "tests" / file).read_text(encoding="utf-8"), (page, name)


def test_benchmarks_that_pages_name_are_there() -> None:
    known = set(
        re.findall(r'^        "([a-z-]+)": ', (PROJECT / "benchmarks" / "__main__.py").read_text(), re.MULTILINE)
    )
    for page, text in PAGES.items():
        for named in re.findall(r"python -m benchmarks ((?:[a-z][a-z-]* ?)+)", text):
            names = named.split()
            assert names[0] == "card" or set(names) <= known, (page, named)


def test_extras_that_pages_name_exist() -> None:
    known = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for page, text in PAGES.items():
        for named in re.findall(r"make extras E=([a-z,]+)", text):
            assert set(named.split(",")) <= known.keys(), (page, named)


def test_settings_that_pages_name_exist() -> None:
    known = {one.name for section in settings_page.sections() for one in settings_page.settings(section)}
    sections = "|".join(Experiments.model_fields)
    for page, text in PAGES.items():
        for dotted in re.findall(rf"`((?:{sections})\.[a-z_.]+)`", text):
            assert dotted.endswith(".yaml") or dotted.rpartition(".")[2] in known, (page, dotted)


def test_options_that_pages_name_exist() -> None:
    sources = [
        path for folder in ("pipelines", "benchmarks", "tests", "assets") for path in (PROJECT / folder).rglob("*.py")
    ]
    known = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for page, text in PAGES.items():
        # TensorBoard's command is not one of our programs.
        text = text.replace("tensorboard --logdir", "")
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for option in set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", prose)):
            assert f'"{option}' in known or f"{option}=" in known, (page, option)


def test_what_is_trained_on_as_shipped() -> None:
    shipped = load(PROJECT / "experiments.yaml")
    corpus = json.loads((PROJECT / "data" / "corpus.json").read_text(encoding="utf-8"))
    rows = {row[0].strip("`"): row[1] for row in table_after(PAGES["docs/data.md"], "## What is trained on")}
    assert f"{len(corpus)} records" in rows["corpus"]
    assert f"{shipped.generation.requests} prompts" in rows["local_generator"]
    assert list(rows) == ["corpus", "local_generator", f"providers: [{', '.join(shipped.sources.providers)}]"]
    local = shipped.profile("local")
    assert (
        f"at most {local.max_train_examples} to train on and {local.max_eval_examples} to be evaluated on"
        in PAGES["docs/data.md"]
    )


def test_sizes_that_pages_give() -> None:
    assert "a zip of under 1 MB" in PAGES["docs/scaling.md"] and len(code.package()[1]) < 1_000_000


def test_comments_of_the_settings_file_name_files_that_exist() -> None:
    text = Path(PROJECT / "experiments.yaml").read_text(encoding="utf-8")
    for named in re.findall(r"\b((?:docs|data|pipelines)/[\w./]+\.(?:md|yaml|json|py))", text):
        assert (PROJECT / named).exists(), named
    assert yaml.safe_load(text).keys() <= Experiments.model_fields.keys()
