"""CONTRIBUTING.md stays true: its tree has every package, and its recipes apply to the current
files."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipelines.lake.paths import PROJECT
from pipelines.settings import experiments as configuration
from tests.test_docs_links import without_code

PAGE = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROOTS = ("assets", "benchmarks", "docs", "tests")
STEP = re.compile(r"^\d+\. `([^`]+)`( \(new\))?: .*\n(?:   .*\n|\n)*", re.MULTILINE)
BLOCK = re.compile(r"^   ```(\w+)\n(.*?)^   ```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """One file of a recipe: whether it is new, and its content or its changed lines."""

    path: str
    is_new: bool
    example: str

    def applied_to(self, text: str) -> str:
        """The file after this step.

        Each part of the example, lines of a diff, must occur in it exactly once. … at the
        end of a part stands for the rest of that line.
        """
        if self.is_new:
            return self.example
        for part in self.example.split("@@\n"):
            lines = [line or " " for line in part.splitlines()]
            old = "\n" + "\n".join(line[1:] for line in lines if line[0] in " -").removesuffix("…")
            new = "\n" + "\n".join(line[1:] for line in lines if line[0] in " +").removesuffix("…")
            assert "…" not in old + new, f"{self.path}: … stands for the rest of the last line alone"
            assert text.count(old) == 1, f"{self.path} holds {text.count(old)} times:\n{old}"
            text = text.replace(old, new)
        return text


def recipes() -> dict[str, list[Step]]:
    """Each recipe's steps, by its heading."""
    section = PAGE.split("\n## Recipes\n")[1].split("\n## ")[0]
    return {text.split("\n")[0]: list(_steps(text)) for text in section.split("\n### ")[1:]}


def _steps(text: str) -> list[Step]:
    steps = []
    for step in STEP.finditer(text):
        (block,) = BLOCK.findall(step[0])
        steps.append(Step(step[1], step[2] is not None, re.sub("^   ", "", block[1], flags=re.MULTILINE)))
    return steps


RECIPES = recipes()
each_recipe = pytest.mark.parametrize("name", RECIPES)


def follow(name: str, project: Path) -> list[str]:
    """Follow a recipe in a checkout, and return the changed files."""
    for step in RECIPES[name]:
        file = project / step.path
        file.write_text(step.applied_to("" if step.is_new else file.read_text(encoding="utf-8")), encoding="utf-8")
    return [step.path for step in RECIPES[name]]


def tree() -> set[str]:
    """The folders of the tree."""
    block = PAGE.split("## The tree\n")[1].split("```")[1]
    folders, above = set[str](), list[str]()
    for line in block.strip("\n").split("\n"):
        name = line.split()[0]
        above[(len(line) - len(line.lstrip())) // 2 :] = [name]
        folders.add("".join(above).rstrip("/"))
    return folders


def test_every_package_stands_in_the_tree() -> None:
    packages = {file.parent.relative_to(PROJECT).as_posix() for file in (PROJECT / "pipelines").rglob("__init__.py")}
    assert {folder for folder in tree() if folder.startswith("pipelines")} == packages
    assert set(ROOTS) <= tree()
    assert all((PROJECT / folder).is_dir() for folder in tree())


def test_files_beside_the_packages_are_listed() -> None:
    files = {f"`pipelines/{file.name}`" for file in (PROJECT / "pipelines").glob("*.py")} - {"`pipelines/__init__.py`"}
    assert set(re.findall(r"^\| (`pipelines/\w+\.py`) \|", PAGE, re.MULTILINE)) == files


def test_there_is_a_recipe_for_each_thing_to_add() -> None:
    assert list(RECIPES) == ["A cleaning rule", "A metric", "A method", "A provider", "A model", "A launcher"]


@each_recipe
def test_a_recipe_names_files_that_exist_and_applies_to_them(name: str) -> None:
    assert RECIPES[name]
    for step in RECIPES[name]:
        file = PROJECT / step.path
        assert file.parent.is_dir() and file.exists() != step.is_new, step.path
        after = step.applied_to("" if step.is_new else file.read_text(encoding="utf-8"))
        if file.suffix == ".py":
            compile(after, step.path, "exec")
        elif file.suffix == ".json":
            json.loads(after)


@each_recipe
def test_settings_of_a_recipe_load(name: str, tmp_path: Path) -> None:
    for step in RECIPES[name]:
        if step.path == "experiments.yaml":
            after = step.applied_to((PROJECT / step.path).read_text(encoding="utf-8"))
            (tmp_path / "experiments.yaml").write_text(after, encoding="utf-8")
            added = configuration.load(tmp_path / "experiments.yaml").profile("gpu")
            before = yaml.safe_load((PROJECT / step.path).read_text(encoding="utf-8"))["profiles"]["gpu"]
            assert len(added.models) + len(added.methods) == len(before["models"]) + len(before["methods"]) + 1


def test_every_make_target_is_explained() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    named = set(re.findall(r"`make ([a-z-]+)", PAGE.split("## Make targets\n")[1].split("\n## ")[0]))
    assert named == set(phony.split())


def test_prose_keeps_to_its_width() -> None:
    lines = enumerate(without_code(PAGE).splitlines(), 1)
    assert not [(number, line) for number, line in lines if len(line) > 100 and line[:1] != "|"]
