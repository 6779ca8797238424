"""docs/settings.md is complete and current, and names the true scope of each setting."""

import re
from typing import Any

import pytest

from pipelines.lake.paths import PROJECT
from pipelines.plan.fleet import Fleet, Node
from pipelines.settings import page as settings_page
from pipelines.settings.experiments import Experiments
from pipelines.settings.page import ENVIRONMENT, ONLY_IN_DAGSTER, Section, Setting

SCHEMA: dict[str, Any] = Experiments.model_json_schema()
SECTIONS = {section.model.__name__: section for section in settings_page.sections()}
each_section = pytest.mark.parametrize("section", SECTIONS.values(), ids=lambda one: one.place or "file")
# The given keys decide this one; it is no key of the file.
NAMED_BY_TASK = {("Metric", "kind")}
# Variables between a process and its children.
INTERNAL = {"FEATHERWEIGHT_PARENT_PID", "FEATHERWEIGHT_RENDEZVOUS"}


def rows(section: Section) -> dict[str, Setting]:
    return {one.name: one for one in settings_page.settings(section)}


def test_the_page_is_what_the_models_say() -> None:
    assert settings_page.PATH.read_text(encoding="utf-8") == settings_page.page(), f"run `{settings_page.COMMAND}`"


def test_every_setting_that_the_file_may_hold_has_a_line() -> None:
    """Compared with pydantic's own list."""
    models = {"Experiments": SCHEMA, **SCHEMA["$defs"]}
    models = {name: held for name, held in models.items() if "properties" in held}
    assert models.keys() == SECTIONS.keys()
    shared = set(SCHEMA["$defs"]["TrainingOverrides"]["properties"])
    for name, held in models.items():
        inherited = shared if name in ("Method", "Model") else set()
        missing = held["properties"].keys() - rows(SECTIONS[name]).keys() - inherited
        assert {(name, one) for one in missing} <= NAMED_BY_TASK


@each_section
def test_a_setting_is_one_sentence_with_a_default(section: Section) -> None:
    for name, one in rows(section).items():
        meaning = one.meaning.removesuffix(" *Only in Dagster.*")
        assert meaning.endswith(".") and ". " not in meaning and meaning[0] in "`f" + meaning[0].upper(), (
            name,
            meaning,
        )
        assert 10 < len(meaning) <= 140, (name, len(meaning))
        assert one.type and one.default, name


# Settings of which one is required, or that belong to one value of another setting.
ONE_OF = {
    ("Source", "wheel"), ("Source", "file"), ("Source", "sha256"), ("Source", "hub"), ("Source", "path"), ("Source", "random"),
    ("Source", "from"), ("Method", "rank"), ("Method", "peft"), ("Retrieval", "from"), ("Retrieval", "documents"),
    ("Embeddings", "path"), ("Embeddings", "provider"), ("Embeddings", "wheel"), ("Embeddings", "folder"), ("Embeddings", "sha256"),
    ("Metric", "json_schema"), ("Metric", "regex"), ("Profile", "ray"), ("Profile", "slurm"), ("Generation", "prompts_file"),
}  # fmt: skip


def test_what_holds_without_a_setting_is_said() -> None:
    unsaid = {(name, one) for name, held in SECTIONS.items() for one, row in rows(held).items() if row.default == "–"}
    assert unsaid == ONE_OF


def test_defaults_are_those_that_a_cell_gets() -> None:
    training, method = rows(SECTIONS["TrainingOverrides"]), rows(SECTIONS["Method"])
    assert (training["search_share"].default, training["epochs"].default) == ("`0.2`", "`1`")
    assert training["learning_rate"].default == "2e-05 for full; 0.0002 for lora"
    assert (method["alpha"].default, method["dropout"].default) == ("twice the rank", "0, none")


def test_numbers_of_a_known_kind_have_a_unit() -> None:
    for section in SECTIONS.values():
        for one in settings_page.settings(section):
            if re.search(r"_(gb|mb|usd|minutes|seconds|hours|days|chars|tokens|share)$", one.name):
                assert one.unit, (section.place, one.name)


def test_what_acts_in_dagster_alone_is_read_by_no_command() -> None:
    known = {f"{section.place}.{name}" for section in SECTIONS.values() for name in rows(section)}
    assert set(ONLY_IN_DAGSTER) <= known
    code = {path: path.read_text(encoding="utf-8") for path in (PROJECT / "pipelines").rglob("*.py")}
    for path, text in code.items():
        if "nightly" not in path.parts and path.name != "experiments.py":
            read = re.findall(r"\b(?:nightly|dagster)\.[a-z_]+", text)
            assert not set(read) & set(ONLY_IN_DAGSTER) or path == PROJECT / "pipelines" / "settings" / "page.py", path
    assert any("nightly.rerun_for" in text for path, text in code.items() if "nightly" in path.parts)


def test_every_variable_of_ours_is_listed() -> None:
    files = [*(PROJECT / "pipelines").rglob("*.py"), *(PROJECT / "assets").rglob("*.py"), PROJECT / "Makefile"]
    named = {name for file in files for name in re.findall(r"FEATHERWEIGHT_[A-Z_]+", file.read_text(encoding="utf-8"))}
    assert named - INTERNAL == {name for name in ENVIRONMENT if name.startswith("FEATHERWEIGHT_")}


def test_the_machines_of_a_plan_are_described_where_the_page_on_scaling_shows_them() -> None:
    page = (PROJECT / "docs" / "scaling.md").read_text(encoding="utf-8")
    block = page.split("```yaml\nnodes:")[1].split("```")[0]
    assert set(Fleet.model_fields) == {"nodes"} and all(f"{name}:" in block for name in Node.model_fields)
