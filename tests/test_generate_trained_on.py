"""A section of experiments.yaml that replaces the shipped one disables nothing silently."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from assets.generating import PROVIDERS_ANSWER, generated_records, local_records
from pipelines.clean.read import raw_records
from pipelines.generate import estimate
from pipelines.generate.generate import generate_all
from pipelines.generate.trained_on import left_out
from pipelines.lake.paths import PROJECT
from pipelines.plan import fleet, plan
from pipelines.settings import experiments as configuration
from pipelines.settings.experiments import Experiments
from pipelines.upkeep.doctor import examine
from tests.asking import Asking, asking, ready
from tests.fakes import planted
from tests.fakes.behavior import Behavior
from tests.fakes.provider import fake_provider


def shipped_with(folder: Path, **sections: Any) -> Experiments:
    """The shipped file with `sections` in place of its own of the same names."""
    shipped = yaml.safe_load((PROJECT / "experiments.yaml").read_text(encoding="utf-8"))
    path = folder / "experiments.yaml"
    path.write_text(yaml.safe_dump({**shipped, **sections}), encoding="utf-8")
    return configuration.load(path)


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asking]:
    """Both APIs enabled, and only one of them trained on."""
    with fake_provider(Behavior()) as server:
        ready(server, monkeypatch, Behavior())
        yield asking(tmp_path, server, sources={"providers": ["claude"], "corpus": False, "local_generator": False})


CLAUDE = {"kind": "anthropic", "model": "claude-haiku-4-5", "enabled": True}
LOCAL = {"kind": "local", "model": "smollm2-135m"}
OFF = {"corpus": False, "local_generator": False}


@pytest.mark.parametrize(
    ("sections", "fragments"),
    [
        ({}, []),
        ({"sources": {"files": ["x.csv"]}}, ["files alone are trained on"]),
        ({"sources": {"files": ["x.csv"], "mix": True}}, ["corpus is not named", "local_generator is not named"]),
        ({"sources": {"files": ["x.csv"], **OFF}}, ["files alone are trained on"]),
        ({"sources": {"corpus": True}}, ["local_generator is not named"]),
        ({"sources": {"providers": ["claude"], **OFF}}, []),
        ({"providers": {"claude": CLAUDE, "gpt": CLAUDE}}, ["providers: has none of kind local"]),
        ({"providers": {"mine": CLAUDE, "claude": CLAUDE, "gpt": CLAUDE, "local": LOCAL}}, ["provider mine: "]),
        ({"providers": {"mine": {**CLAUDE, "requests": 0}, "claude": CLAUDE, "gpt": CLAUDE, "local": LOCAL}}, []),
    ],
)
def test_what_is_off_without_a_word_is_said(tmp_path: Path, sections: dict[str, Any], fragments: list[str]) -> None:
    warnings = left_out(shipped_with(tmp_path, **sections))
    assert len(warnings) == len(fragments) and all(
        one in line for one, line in zip(fragments, warnings, strict=True)
    ), warnings


def test_asking_says_whose_records_nothing_is_trained_on(ask: Asking) -> None:
    lines = list(estimate.in_words(list(estimate.estimate(ask.data, ask.experiments)), None))
    assert [line for line in lines if "nothing is trained on them" in line and "providers.gpt.requests: 0" in line]
    providers = ask.generate().providers
    assert not providers["claude"].notes
    assert "sources.providers does not name it; add it there" in providers["gpt"].notes[0]


def test_the_plan_and_cleaning_say_it_too(tmp_path: Path) -> None:
    gpt = {"kind": "openai", "model": "gpt-test", "enabled": True}
    lake = planted.lake(tmp_path, providers={"gpt": gpt}, sources={"corpus": True, "local_generator": False})
    for method in ("base", "full", "lora-r8", "qlora-r8"):
        lake.cell(method)
    warnings: list[str] = []
    assert not plan.make(lake.project, fleet.this_machine(lake.project.settings), say=warnings.append).lines
    next(raw_records(lake.data, lake.project.experiments, say=warnings.append), None)
    assert len(warnings) == 2 and all(
        "provider gpt: its records are asked for, but nothing is" in line for line in warnings
    )
    assert warnings[0] in list(examine(lake.data, lake.project.experiments))


@pytest.fixture
def here(ask: Asking, monkeypatch: pytest.MonkeyPatch) -> Asking:
    """The same project, where assets look."""
    monkeypatch.setenv("FEATHERWEIGHT_EXPERIMENTS", str(ask.path))
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(ask.data.root))
    monkeypatch.setenv("FEATHERWEIGHT_PROFILE", "local")
    return ask


def test_a_generator_that_nobody_can_be_is_said_and_the_others_are_asked(
    here: Asking, capsys: pytest.CaptureFixture[str]
) -> None:
    here.configure(sources={"local_generator": True})
    assert generate_all(here.data, here.experiments).answered == 12
    assert "providers: has none of kind local" in capsys.readouterr().err
    shown = dg.materialize([local_records]).asset_materializations_for_node("local_records")[0].metadata
    assert "providers: has none of kind local" in str(shown["why"].value)


def test_the_check_in_dagster_names_the_provider(here: Asking) -> None:
    result = dg.materialize([local_records, generated_records])
    (check,) = [one for one in result.get_asset_check_evaluations() if one.check_name == PROVIDERS_ANSWER]
    assert not check.passed and list(check.metadata) == ["gpt"]
    assert "sources.providers does not name it" in str(check.metadata["gpt"].value)
