"""The README stays true: its commands exist, its YAML loads, its columns are the table's."""

import re

import pytest
import yaml

from pipelines import experiments as configuration
from pipelines.cells import Status
from pipelines.cli import parser
from pipelines.compare.table import COLUMNS
from pipelines.paths import PROJECT
from tests.project import TinyProject, merge

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_examples_load_when_put_into_experiments(block: str, project: TinyProject) -> None:
    current = yaml.safe_load((PROJECT / "experiments.yaml").read_text(encoding="utf-8"))
    merge(current, yaml.safe_load(block))
    project.experiments.write_text(yaml.safe_dump(current), encoding="utf-8")
    configuration.load(project.experiments)


def test_the_commands_it_names_exist() -> None:
    known = parser().format_help()
    for command in re.findall(r"`(?:\.venv/bin/)?featherweight ([a-z]+)", README):
        assert command in known
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets


def test_the_columns_of_its_queries_are_in_the_table() -> None:
    queries = re.findall(r"SELECT (.*?) FROM comparison", README)
    assert len(queries) == 2
    for query in queries:
        assert set(re.split(r",\s*", query)) <= set(COLUMNS)


def test_it_explains_every_status() -> None:
    for status in Status.__args__:
        assert f"`{status}`" in README


def test_it_shows_a_table_that_was_measured() -> None:
    rows = re.findall(r"^\| smollm2-135m \| (\S+) \| ok \|", README, re.MULTILINE)
    assert rows == configuration.load(PROJECT / "experiments.yaml").profile("local").methods
