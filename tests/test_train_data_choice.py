"""A method may name its data: the child trains on the data of its fingerprint; all methods share
one evaluation."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from pipelines.clean.clean import CleaningResult
from pipelines.clean.select import Selection, select
from pipelines.compare.columns.examples import SFT_EXAMPLES, SFT_REJECTS
from pipelines.compare.table import comparison_rows
from pipelines.errors import UsageError
from pipelines.evaluate.cell import evaluated_by
from pipelines.lake.files import read_json, stable_hash, write_json
from pipelines.lake.paths import PROJECT, DataRoot
from pipelines.project import Project
from pipelines.settings import experiments as configuration
from pipelines.train.cell import CellKey, train
from pipelines.train.dry_run import dry_run
from tests.fakes.planted import Lake, lake
from tests.project import TinyProject

LANGUAGES = (None, ["en"], ["ko", "en"])
# Limits of the training and the evaluation records.
CAPS = ((None, None), (2, 1), (100, 2))
CHOICES: tuple[dict[str, Any], ...] = (
    {}, {"provider": "claude"}, {"provider": "local"}, {"max_examples": 1}, {"max_examples": 100},
    {"provider": "claude", "max_examples": 3}, {"provider": "gpt", "max_examples": 100},
)  # fmt: skip
PROVIDERS = {
    "claude": {"kind": "anthropic", "model": "claude-haiku-4-5"},
    "gpt": {"kind": "openai", "model": "gpt-5.4-mini"},
    "local": {"kind": "local", "model": "tiny"},
}


def examples(data: DataRoot) -> list[dict[str, Any]]:
    """Write examples of the corpus and of two providers in two languages, and make them current."""
    rows = []
    for n, (source, provider, language) in enumerate(
        [("corpus", None, "en")] * 5 + [("corpus", None, "ko")] * 4 + [("providers", "claude", "en")] * 4
        + [("providers", "claude", "ko")] * 2 + [("providers", "gpt", "en")] * 3
    ):  # fmt: skip
        split = "eval" if provider is None and n % 3 == 0 else "train"
        texts = {"instruction": f"Say number {n}.", "input": "", "output": f"It is number {n}.", "language": language}
        known = {"example_id": f"{n:04}", "source": source, "provider": provider, "split": split, "record_id": f"r{n}"}
        rows.append({**SFT_EXAMPLES.empty(), **texts, **known})
    folder = data.clean / stable_hash(rows)
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns, content in (("examples", SFT_EXAMPLES, rows), ("rejects", SFT_REJECTS, [])):
        schema = pa.schema([(column, pa.string()) for column in columns.by_name])
        parquet.write_table(pa.Table.from_pylist(content, schema=schema), folder / f"{name}.parquet")
    held_out = sum(row["split"] == "eval" for row in rows)
    result = CleaningResult(folder, folder.name, len(rows), len(rows), 0, len(rows) - held_out, held_out, {})
    write_json(data.clean / "current.json", {k: v for k, v in vars(result).items() if k not in ("folder", "reused")})
    return rows


def planted(root: Path, data: dict[str, Any] | None = None, **profile: Any) -> Lake:
    """A lake whose method `chosen` names this data, beside `full`, which names none.

    Its weights do not exist.
    """
    chosen = {"kind": "lora", "rank": 8, **({"data": data} if data else {})}
    made = lake(
        root,
        models={"tiny": {"source": {"hub": None, "path": str(root / "nowhere")}}},
        methods={"chosen": chosen},
        providers=PROVIDERS,
        profiles={"local": {"methods": ["base", "full", "chosen"], **profile}},
    )
    examples(made.data)
    return made


@pytest.mark.parametrize("data", CHOICES, ids=str)
def test_the_child_gets_what_the_fingerprint_was_made_from(tmp_path: Path, data: dict[str, Any]) -> None:
    for languages, (cap, eval_cap) in itertools.product(LANGUAGES, CAPS):
        made = planted(tmp_path, data, languages=languages, max_train_examples=cap, max_eval_examples=eval_cap)
        stage, key = made.project, CellKey("tiny", "chosen", 1)
        selected = stage.resolve().selected
        path = selected.examples
        here = stage.resolve().cell(stage.settings.models[0], "chosen").selected
        spec = json.loads(json.dumps(vars(stage.selection_of("chosen"))))
        child = select(path, Selection(**spec))
        assert ids(child.train) == ids(here.train) == expected(made, data, languages, cap)
        assert stage.resolve().plan(key).fingerprints["data"] == child.data_fingerprint
        assert ids(child.eval) == ids(selected.eval) == ids(here.eval), "evaluation is the same for all"
        assert stage.resolve().cell(stage.settings.models[0], "full").selected == selected
        plain = stage.resolve().plan(CellKey("tiny", "full", 1)).fingerprints["data"]
        assert (plain == child.data_fingerprint) == (set(ids(child.train)) == set(ids(selected.train)))


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["example_id"] for row in rows]


def expected(made: Lake, data: dict[str, Any], languages: list[str] | None, cap: int | None) -> list[str]:
    """The configured choice: these languages, this provider, in the order of the caps, at most this
    many."""
    import hashlib

    rows = [row for row in examples(made.data) if row["split"] == "train"]
    rows = [row for row in rows if not languages or row["language"] in languages]
    rows = [row for row in rows if "provider" not in data or row["provider"] == data["provider"]]
    record_ids = sorted(ids(rows), key=lambda one: hashlib.sha256(one.encode()).digest())
    return record_ids[: data.get("max_examples", cap)]


def test_the_spec_that_an_attempt_writes_names_the_same_data_as_its_fingerprint(tmp_path: Path) -> None:
    made = planted(tmp_path, {"provider": "claude", "max_examples": 3}, languages=["en"], max_train_examples=2)
    attempt, reused = train(made.resolved(), CellKey("tiny", "chosen", 1))
    assert (attempt.status, reused) == ("unavailable", False), "its weights do not exist"
    spec = read_json(attempt.folder / "spec.json") or {}
    child = select(made.data.root / spec["examples"], Selection(**spec["selection"]))
    assert child.data_fingerprint == spec["fingerprints"]["data"]
    assert [row["provider"] for row in child.train] == ["claude"] * 3, "the method's own number goes over the profile's"


def test_more_examples_keep_those_of_fewer(tmp_path: Path) -> None:
    fewer: list[str] = []
    for count in (1, 3, 6, 9):
        made = planted(tmp_path, {"max_examples": count})
        now = ids(made.resolved().cell(made.project.settings.models[0], "chosen").selected.train)
        assert now[: len(fewer)] == fewer
        assert len(now) == count
        fewer = now


@pytest.mark.parametrize(("data", "languages"), [({"provider": "local"}, None), ({"provider": "gpt"}, ["ko"])])
def test_a_provider_without_an_accepted_example_makes_an_attempt_that_says_what_to_do(
    tmp_path: Path, data: dict[str, Any], languages: list[str] | None
) -> None:
    made = planted(tmp_path, data, languages=languages)
    attempt, _ = train(made.resolved(), CellKey("tiny", "chosen", 1))
    assert (attempt.status, attempt.result.phase) == ("unavailable", "load")
    detail = attempt.result.detail
    assert f"methods.chosen.data names provider {data['provider']}" in detail
    assert f"featherweight generate --provider {data['provider']}" in detail
    assert ("sources.local_generator" if data["provider"] == "local" else "sources.providers") in detail
    row = next(row for row in comparison_rows(made.resolved()) if row["method"] == "chosen")
    assert (row["status"], row["status_detail"], row["train_loss"]) == ("unavailable", detail, None)
    with pytest.raises(UsageError, match="names provider"):
        list(dry_run(made.resolved(), CellKey("tiny", "chosen", 1)))


def test_rows_of_other_data_are_not_compared_and_say_why(tmp_path: Path) -> None:
    made = planted(tmp_path, {"provider": "claude"})
    for method in ("base", "full", "chosen", "lora-r8"):
        made.cell(method, bits=0.9, peak_memory_gb=1.0 if method == "chosen" else 2.0)
    made = made.configured(profiles={"local": {"methods": ["base", "full", "lora-r8", "chosen"]}})
    rows = {row["method"]: row for row in comparison_rows(made.resolved())}
    chosen, alike = rows["chosen"], rows["lora-r8"]
    assert chosen["ratios_because"] == "full was measured with other data"
    assert (chosen["speedup_vs_full"], chosen["memory_vs_full"]) == (None, None)
    assert (alike["ratios_because"], alike["memory_vs_full"]) == (None, 1.0)
    assert chosen["is_pareto"] is rows["full"]["is_pareto"] is True, "neither is a rival of the other"
    assert chosen["eval_bits_per_byte"] == 0.9
    assert not chosen["is_stale"]


def test_a_changed_choice_makes_its_own_cell_stale_alone(tmp_path: Path) -> None:
    made = planted(tmp_path, {"provider": "claude"})
    for method in ("base", "full", "chosen"):
        made.cell(method)
    evaluated = evaluated_by(made.resolved()).fingerprint
    made = made.configured(methods={"chosen": {"data": {"provider": "gpt"}}})
    assert {row["method"]: row["stale_because"] for row in comparison_rows(made.resolved())} == {
        "base": None, "full": None, "chosen": "data",
    }  # fmt: skip
    assert evaluated_by(made.resolved()).fingerprint == evaluated


def test_the_shipped_methods_train_on_all_that_the_profile_takes(tmp_path: Path) -> None:
    shipped = configuration.load(PROJECT / "experiments.yaml")
    examples(DataRoot(tmp_path))
    for profile in shipped.profiles:
        stage = Project(DataRoot(tmp_path), shipped, profile)
        selected = stage.resolve().selected
        path = selected.examples
        for method in shipped.methods:
            assert stage.selection_of(method) == stage.selection
            assert (
                stage.resolve().cell(stage.settings.models[0], method).selected
                == selected
                == select(path, stage.selection)
            )


def test_a_choice_that_names_nobody_or_belongs_to_no_training_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"methods\.chosen\.data\.provider: got 'claud'.*did you mean 'claude'"):
        planted(tmp_path, {"provider": "claud"})
    with pytest.raises(UsageError, match=r"max_examples"):
        planted(tmp_path, {"max_examples": 0})
    with pytest.raises(UsageError, match="kind none trains on nothing"):
        lake(tmp_path, methods={"base": {"data": {"max_examples": 3}}})


def test_a_real_child_trains_on_what_its_method_names(project: TinyProject) -> None:
    examples(project.data)
    project.change(methods={"few": {"kind": "lora", "rank": 2, "data": {"provider": "claude", "max_examples": 3}}})
    stage = project.now()
    attempt, _ = train(stage.resolve(), project.key("few"))
    assert (attempt.status, attempt.result.detail) == ("ok", "")
    assert attempt.result.measured["train_examples"] == 3
    assert (
        attempt.spec.fingerprints["data"]
        == stage.resolve().cell(stage.settings.models[0], "few").selected.data_fingerprint
    )
