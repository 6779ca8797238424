"""The generation assets in Dagster, against the fake provider server: useful metadata, warnings,
and no key."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from assets.cleaning import sft_examples
from assets.generating import PROVIDERS_ANSWER, corpus_records, generated_records, local_records
from assets.providers import provider_comparison
from pipelines.compare.compare import compare
from pipelines.lake.warehouse import connect
from tests.fakes.behavior import Behavior
from tests.fakes.provider import FakeProvider, fake_provider
from tests.project import TinyProject

KEY = "sk-planted-key-0123456789abcdef"
ASSETS = [corpus_records, local_records, generated_records, sft_examples, provider_comparison]


@pytest.fixture
def server() -> Iterator[FakeProvider]:
    with fake_provider(Behavior()) as server:
        yield server


@pytest.fixture
def instance(project: TinyProject, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:
        yield instance


@pytest.fixture
def asking_project(project: TinyProject, server: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> TinyProject:
    """A project with both APIs enabled at the fake server, and a judge."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    project.change(
        providers={
            "claude": {"enabled": True, "base_url": server.anthropic_url},
            "gpt": {"enabled": True, "base_url": server.openai_url},
        },
        generation={"requests": 6, "judge": {"providers": ["gpt", "claude"]}},
    )
    return project


def everything_kept(folder: Path) -> bytes:
    """Every byte that a run left anywhere: event logs, compute logs, journal, lake, warehouse."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_records_costs_and_coverage_are_shown_and_no_key_is_kept_anywhere(
    asking_project: TinyProject, instance: dg.DagsterInstance, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = dg.materialize(ASSETS, instance=instance)
    assert result.success
    shown = result.asset_materializations_for_node("generated_records")[0].metadata
    assert (shown["records"].value, shown["requests"].value, shown["missing"].value) == (12, 12, 0)
    for name in ("charged by provider", "sample", "coverage and diversity"):
        assert "claude" in str(shown[name].value) and "gpt" in str(shown[name].value)
    assert str(shown["values of each axis that valid records cover"].value).startswith("![")
    compared = result.asset_materializations_for_node("provider_comparison")[0].metadata
    assert compared["providers"].value == 2
    assert "gpt" in str(compared["pairs, by the judge"].value)
    compare(asking_project.now())
    with connect(asking_project.data) as db:
        purposes = db.execute("SELECT purpose, count(*) FROM llm_calls GROUP BY 1 ORDER BY 1").fetchall()
        accepted = db.execute("SELECT provider, requested, accepted FROM provider_comparison ORDER BY 1").fetchall()
        trained = db.execute("SELECT DISTINCT split FROM sft_examples WHERE source = 'providers'").fetchall()
    assert dict(purposes)["generate"] == 12
    assert 6 <= dict(purposes)["judge"] <= 12, "two requests a cell, one where both records are the same"
    assert [(name, requested) for name, requested, _ in accepted] == [("claude", 6), ("gpt", 6)]
    assert all(count > 0 for _, _, count in accepted)
    assert trained == [("train",)], "what a model wrote only ever trains"
    printed = capfd.readouterr()
    assert KEY not in printed.out + printed.err
    assert KEY.encode() not in everything_kept(tmp_path)


def test_a_second_run_asks_nobody_again(
    asking_project: TinyProject, instance: dg.DagsterInstance, server: FakeProvider
) -> None:
    assert dg.materialize(ASSETS, instance=instance).success
    requests = (server.ledger.anthropic.requests, server.ledger.openai.requests)
    result = dg.materialize(ASSETS, instance=instance)
    assert (server.ledger.anthropic.requests, server.ledger.openai.requests) == requests
    assert result.asset_materializations_for_node("generated_records")[0].metadata["answered now"].value == 0


def test_a_provider_that_stops_is_a_warning_with_its_own_words_and_costs_the_other_nothing(
    asking_project: TinyProject, instance: dg.DagsterInstance, server: FakeProvider
) -> None:
    server.behavior = Behavior(script=lambda wire, prompt, nth: "unauthorized" if wire == "anthropic" else None)
    result = dg.materialize(ASSETS[:3], instance=instance)
    assert result.success
    (check,) = [c for c in result.get_asset_check_evaluations() if c.check_name == PROVIDERS_ANSWER]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "401" in str(check.metadata["claude"].value) and KEY not in str(check.metadata)
    assert result.asset_materializations_for_node("generated_records")[0].metadata["records"].value == 6


def test_a_budget_from_the_launchpad_is_kept(
    asking_project: TinyProject, instance: dg.DagsterInstance, server: FakeProvider
) -> None:
    config = dg.RunConfig(ops={"generated_records": {"config": {"budget_usd": 0.0, "providers": ["gpt"]}}})
    result = dg.materialize(ASSETS[:3], instance=instance, run_config=config)
    assert result.success
    assert server.ledger.anthropic.requests == server.ledger.openai.requests == 0
    (check,) = [c for c in result.get_asset_check_evaluations() if c.check_name == PROVIDERS_ANSWER]
    assert "the budget of this run is $0" in str(check.metadata["gpt"].value)


def test_a_key_alone_asks_nobody(
    project: TinyProject, instance: dg.DagsterInstance, server: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.anthropic_url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
    assert dg.materialize(ASSETS, instance=instance).success
    assert server.ledger.anthropic.requests == server.ledger.openai.requests == 0
