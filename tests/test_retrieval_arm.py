"""A retrieval arm as a cell: the content of its prompts, its staleness, and its distinction from
the untouched model."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.clean.select import Selected
from pipelines.compare.answers import with_judgements
from pipelines.compare.table import comparison_rows
from pipelines.errors import InUseError, UsageError
from pipelines.evaluate import answers, teaching
from pipelines.evaluate.cell import base_method, evaluate, evaluated_by, fetch_same_weights
from pipelines.evaluate.retrieved import document_items
from pipelines.generate.generate import GenerationResult
from pipelines.generate.send import Tally
from pipelines.lake.files import locked, read_json, read_jsonl, write_json
from pipelines.lake.paths import PROJECT
from pipelines.nightly.due import due_cells
from pipelines.retrieval import rewrites
from pipelines.retrieval.embedding_model import NOT_CONFIGURED
from pipelines.runs import cells, devices
from pipelines.runs.cells import Attempt, Evaluation
from pipelines.runs.run import RunHooks
from pipelines.settings.evaluation import EvaluationSettings
from pipelines.settings.experiments import load
from pipelines.settings.judging import Judging
from pipelines.settings.method_settings import Method
from pipelines.settings.retrieval import Embeddings
from pipelines.train.trainer.conversations import question
from tests.asking import KEYS, PRICE
from tests.fakes.behavior import Behavior
from tests.fakes.provider import FakeProvider, fake_provider
from tests.in_process import InProcess, clean_for, trained
from tests.project import MODEL, TinyProject, make_project

QUIET = RunHooks(say=lambda _message: None, launcher=InProcess())
SMALL = {"general_texts": 0, "latency_answers": 0, "serving_batch": 0, "answers": 5, "max_new_tokens": 4}
# In the sorted file they stand before the base.
ARMS = {
    "a-bm25": {"kind": "none", "retrieval": {"from": "train", "by": "bm25", "k": 2}},
    "a-docs": {"kind": "none", "retrieval": {"documents": ["docs/*.md"], "k": 1}},
    "a-multi": {"kind": "none", "retrieval": {"from": "train", "by": "multi-query", "k": 1}},
}
METHODS = ["base", *ARMS]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> TinyProject:
    """A tiny project whose cells are evaluated; tests that change something work on copies."""
    root = tmp_path_factory.mktemp("retrieval")
    shutil.copytree(tiny_folder, root / "model")
    config = read_json(root / "model" / "config.json") or {}
    write_json(root / "model" / "config.json", {**config, "max_position_embeddings": 4096})
    project = make_project(root / "project", root / "model")
    few = {"max_eval_examples": 6, "max_train_examples": 12}
    project.change(methods=ARMS, profiles={"local": {"methods": METHODS, "evaluation": SMALL, **few}})
    held_out = clean_for(project).resolved().selected.eval
    # Every query shares words with the passage, so each finds it.
    words = [word for one in held_out for word in one["instruction"].split()[:5]]
    docs = project.experiments.parent / "docs"
    docs.mkdir()
    (docs / "a.md").write_text(f"Of apples, and: {' '.join(words)}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rewrites, "MAX_TOKENS", 8)
        for method in METHODS:
            assert trained(project, method).status == "ok"
            assert measured(project, method).ok
    return project


@pytest.fixture
def project(evaluated: TinyProject, tmp_path: Path) -> TinyProject:
    shutil.copytree(evaluated.data.root.parent, tmp_path / "project")
    return TinyProject(type(evaluated.data)(tmp_path / "project" / "data"), tmp_path / "project" / "experiments.yaml")


def measured(project: TinyProject, method: str) -> Evaluation:
    evaluation, _ = evaluate(project.resolved(), project.key(method), hooks=QUIET)
    assert evaluation.ok, evaluation.result.detail
    return evaluation


def rows_of(project: TinyProject) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in comparison_rows(project.resolved())}


def test_an_arm_is_a_row_beside_the_base_and_never_the_base_itself(project: TinyProject) -> None:
    assert base_method(project.now()) == "base"
    rows = rows_of(project)
    base, arm = rows["base"], rows["a-bm25"]
    assert [rows[method]["retrieved"] for method in METHODS] == [None, 2.0, 1.0, 1.0]
    assert len({rows[method]["eval_bits_per_byte"] for method in METHODS}) == 4, "each is asked in another way"
    assert arm["base_bits_per_byte"] == base["eval_bits_per_byte"] and base["delta_base"] is None
    assert "with what was retrieved in its prompt (2.0 on average)" in arm["advice"]
    best = min(ARMS, key=lambda method: rows[method]["eval_bits_per_byte"])
    assert (base["retrieval_method"], rows[best]["retrieval_method"]) == (best, None)
    expected = base["eval_bits_per_byte"] - rows[best]["eval_bits_per_byte"]
    assert base["delta_retrieval"] == pytest.approx(expected, abs=1e-9)
    assert base["delta_retrieval_low"] <= expected <= base["delta_retrieval_high"]
    assert base["delta_retrieval_chrf_low"] <= base["delta_retrieval_chrf"] <= base["delta_retrieval_chrf_high"]


def test_what_was_found_stands_in_losses_and_answers_and_is_kept(evaluated: TinyProject) -> None:
    selected: Selected = evaluated.resolved().selected
    names = {one["example_id"] for one in selected.train}
    held = {one["example_id"] for one in selected.eval}
    for method, count in (("a-bm25", 2), ("a-multi", 1)):
        folder = measured(evaluated, method).folder
        by_record = {row["example_id"]: row for row in read_jsonl(folder / "retrieved.jsonl")}
        assert by_record.keys() == held and all(len(row["retrieved"]) == count for row in by_record.values())
        assert all(set(row["retrieved"]) <= names for row in by_record.values())
        answers = read_jsonl(folder / "answers.jsonl")
        assert [row["retrieved"] for row in answers] == [count] * 5 and all(row["shots"] is None for row in answers)
    losses = {method: read_jsonl(measured(evaluated, method).folder / "losses.jsonl") for method in METHODS}
    for method in ARMS:
        pairs = list(zip(losses["base"], losses[method], strict=True))
        assert all((one["bytes"], one["tokens"]) == (other["bytes"], other["tokens"]) for one, other in pairs)
        assert all(one["nats"] != other["nats"] for one, other in pairs)
    answers = read_jsonl(measured(evaluated, "a-docs").folder / "answers.jsonl")
    assert all("apples" not in row["prompt"] for row in answers), "the judge sees the question alone"


def test_the_same_arm_again_finds_the_same(evaluated: TinyProject) -> None:
    first = measured(evaluated, "a-bm25").folder
    again, reused = evaluate(evaluated.resolved(), evaluated.key("a-bm25"), hooks=QUIET, force=True)
    assert not reused and again.folder != first
    for name in ("retrieved.jsonl", "losses.jsonl"):
        assert (again.folder / name).read_bytes() == (first / name).read_bytes()


def test_other_documents_make_the_arm_stale_and_nothing_else(project: TinyProject) -> None:
    assert not due_cells(project.resolved())
    docs = project.experiments.parent / "docs"
    (docs / "a.md").write_text("Something else.", encoding="utf-8")
    assert [due.method for due in due_cells(project.resolved())] == ["a-docs"]
    attempt = cells.latest(project.data, project.key("a-docs"))
    assert attempt and project.resolved().changed(attempt) == ["recipe"]
    source = {"documents": ["docs/*.md"], "folder": str(project.experiments.parent)}
    then = attempt.spec.recipe["retrieval"]["documents"]
    with pytest.raises(ValueError, match="the documents changed while the cell waited"):
        document_items(source, size=800, expected=then)
    (docs / "a.md").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="hold no text to look up"):
        document_items(source, size=800, expected=then)


def test_what_was_made_with_other_documents_is_not_evaluated_with_these(project: TinyProject) -> None:
    attempt = trained(project, "a-docs")
    fetch_same_weights(project.resolved(), attempt, QUIET)
    recipe = attempt.spec.recipe
    with_another = {**recipe, "retrieval": {**recipe["retrieval"], "embeddings": "0123"}}
    write_json(attempt.folder / "spec.json", replace(attempt.spec, recipe=with_another).to_json())
    with pytest.raises(UsageError, match="was made with another embedding model"):
        fetch_same_weights(project.resolved(), Attempt(attempt.key, attempt.folder), QUIET)
    write_json(attempt.folder / "spec.json", attempt.spec.to_json())
    (project.experiments.parent / "docs" / "a.md").write_text("Something else.", encoding="utf-8")
    with pytest.raises(
        UsageError, match="was made with other documents than its method has now: run `featherweight train"
    ):
        fetch_same_weights(project.resolved(), attempt, QUIET)


def test_documents_that_are_gone_make_the_arm_unavailable_and_leave_the_table(project: TinyProject) -> None:
    shutil.rmtree(project.experiments.parent / "docs")
    attempt = trained(project, "a-docs")
    assert attempt.status == "unavailable" and "no such file" in (attempt.result.status_detail or "")
    rows = rows_of(project)
    assert rows["a-docs"]["status"] == "unavailable" and rows["a-bm25"]["status"] == "ok"
    assert not due_cells(project.resolved()), "it is not tried every night while they are gone"


def test_dense_without_an_embedding_model_is_unavailable_and_says_what_to_do(project: TinyProject) -> None:
    project.change(embeddings=None, methods={"a-bm25": {"retrieval": {"by": "dense"}}})
    attempt = trained(project, "a-bm25")
    assert (attempt.status, attempt.result.status_detail) == ("unavailable", NOT_CONFIGURED)
    project.change(embeddings={"path": "nowhere"})
    assert "nowhere has no config.json" in (trained(project, "a-bm25").result.status_detail or "")


def test_a_profile_without_retrieval_is_fingerprinted_as_before(evaluated: TinyProject) -> None:
    project = evaluated.now()
    base = project.recipe_of(MODEL, "base")
    assert "retrieval" not in base and evaluated.resolved().cell(MODEL, "base").fingerprints["data"] is None
    assert not {"retrieval", "embeddings"} & EvaluationSettings().model_dump().keys()
    arm = evaluated.resolved().cell(MODEL, "a-bm25")
    assert arm.recipe["retrieval"] == {"from": "train", "by": "bm25", "k": 2, "jaccard": 0.85}
    assert arm.fingerprints["data"] == evaluated.resolved().selected.data_fingerprint
    docs = evaluated.resolved().cell(MODEL, "a-docs")
    assert docs.fingerprints["data"] is None and len(docs.recipe["retrieval"]["documents"]) > 8
    assert evaluated_by(evaluated.resolved()).fingerprint == evaluated_by(evaluated.resolved()).fingerprint


@pytest.fixture
def asking(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TinyProject, FakeProvider]]:
    """Two providers that answer, as teachers with and without retrieved context."""
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    with fake_provider(Behavior()) as server:
        at = {"claude": server.anthropic_url, "gpt": server.openai_url}
        more = {"price": PRICE, "enabled": True, "parameters": {}}
        project.change(providers={name: {"base_url": url, "model": f"{name}-test", **more} for name, url in at.items()})
        train = {"from": "train", "k": 2}
        arms = [train, {**train, "by": "multi-query"}]
        taught = [{"provider": "gpt", "retrieval": arm} for arm in arms]
        documents = {"provider": "claude", "retrieval": {"documents": ["docs/*.md"], "k": 1}}
        project.change(judging={"teachers": ["gpt", *taught, documents]})
        yield project, server


def test_providers_are_asked_with_what_is_looked_up_and_are_rows_of_their_own(
    asking: tuple[TinyProject, FakeProvider],
) -> None:
    project, server = asking
    result = answers.ask(project.resolved())
    assert result.complete and set(result.providers) == {"gpt (rewrites)", "gpt (teacher)", "claude (teacher)"}
    assert (result.providers["gpt (rewrites)"].answered, result.providers["claude (teacher)"].answered) == (5, 5)
    bodies = [call.body for call in server.ledger.received]
    shots = [
        body for body in bodies if [turn["role"] for turn in body["messages"]] == ["user", "assistant"] * 2 + ["user"]
    ]
    assert len(shots) >= 5 and any("Of apples" in str(body["messages"]) for body in bodies)
    resolved = project.resolved()
    held = {question(one) for one in resolved.selected.eval}
    for body in shots:
        assert (
            body["messages"][-1]["content"] in held and not {turn["content"] for turn in body["messages"][:-1]} & held
        )
    rows = {(row["model"], row["method"]): row for row in with_judgements(resolved, [])}
    assert list(rows) == [
        ("gpt", "teacher"), ("gpt", "teacher+bm25"), ("gpt", "teacher+multi-query"), ("claude", "teacher+bm25-documents"),
    ]  # fmt: skip
    assert [row["retrieved"] for row in rows.values()] == [None, 2.0, 2.0, 1.0]
    for row in rows.values():
        assert (row["status"], row["answers"]) == ("ok", 5)
        assert all(row[name] is not None for name in ("bleu", "rouge_l", "meteor", "answer_tokens", "p50_latency_ms"))
    sent = len(server.ledger.received)
    assert answers.ask(project.resolved()) == GenerationResult() and len(server.ledger.received) == sent


def test_what_cannot_be_looked_up_costs_its_own_row_alone(asking: tuple[TinyProject, FakeProvider]) -> None:
    project, _ = asking
    shutil.rmtree(project.experiments.parent / "docs")
    result = answers.ask(project.resolved())
    assert not result.complete and "no such file" in result.stopped["claude (teacher)"]
    rows = {row["method"]: row["status"] for row in with_judgements(project.resolved(), [])}
    assert rows["teacher+bm25"] == "ok" and rows["teacher+bm25-documents"] == "unavailable"


def test_a_server_of_our_own_may_teach_and_holds_the_device_meanwhile(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[str, int, bool]] = []

    def serve(_run: Any, name: str, pending: list[Any], device: Any) -> Tally:
        served.append((name, len(pending), device is not None))
        return Tally(total=len(pending))

    monkeypatch.setattr(teaching, "serve_and_ask", serve)
    monkeypatch.setattr(teaching.store, "fetch", lambda *_: None)
    project.change(judging={"teachers": ["local", {"provider": "local", "retrieval": {"from": "train", "k": 1}}]})
    result = answers.ask(project.resolved())
    assert served == [("local", 10, True)], "one server for all its rows"
    assert not result.complete and result.providers["local (teacher)"].missing == 10
    rows = {row["method"]: row for row in with_judgements(project.resolved(), [])}
    assert [rows[name]["status"] for name in ("teacher", "teacher+bm25")] == ["unavailable"] * 2
    with locked(devices.locks_of()[0], "somebody"), pytest.raises(InUseError):
        answers.ask(project.resolved(), wait=False)


def test_two_teachers_that_would_be_one_row_are_refused() -> None:
    arms: list[Any] = [{"provider": "gpt", "retrieval": {"from": "train", "k": k}} for k in (1, 2)]
    with pytest.raises(ValidationError, match="two teachers would be rows with the name teacher\\+bm25"):
        Judging.model_validate({"teachers": ["gpt", *arms]})
    assert [one.run_id for one in Judging.model_validate({"teachers": ["gpt", "gpt", arms[0]]}).teachers] == [
        "teacher-gpt", "teacher-gpt+bm25",
    ]  # fmt: skip


def test_the_tour_has_an_arm_that_costs_no_training() -> None:
    shipped = load(PROJECT / "experiments.yaml")
    assert "base-bm25" in shipped.profile("tour").methods and not shipped.method("base-bm25").traits.trains
    assert "base-bm25" not in shipped.profile("local").methods, "its rows stay as they are"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"kind": "full", "retrieval": {"from": "train"}}, "retrieval: .* belongs to kind none, not full"),
        ({"kind": "none", "shots": 2, "retrieval": {"from": "train"}}, "shots and retrieval both fill the prompt"),
        ({"kind": "none", "retrieval": {}}, "expected one place to look in"),
        ({"kind": "none", "retrieval": {"from": "train", "documents": ["a.md"]}}, "expected one place to look in"),
        ({"kind": "none", "retrieval": {"from": "trian"}}, "retrieval.from"),
        (
            {"kind": "none", "retrieval": {"from": "train", "by": "bm52"}},
            "'bm25', 'dense', 'ensemble' or 'multi-query'",
        ),
        ({"kind": "none", "retrieval": {"from": "train", "k": 0}}, "greater than or equal to 1"),
        (
            {"kind": "none", "retrieval": {"from": "train", "ranked_by": "dense"}},
            "belongs to by: multi-query, not bm25",
        ),
        ({"kind": "none", "retrieval": {"from": "train", "passage_chars": 300}}, "train records stay whole"),
        ({"kind": "none", "retrieval": {"documents": []}}, "at least 1 item"),
        ({"kind": "none", "retrieval": {"from": "train", "top": 1}}, "unknown key 'top'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(method: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Method.model_validate(method)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ({}, "expected path"),
        ({"path": "a", "wheel": "a==1"}, "one of them"),
        ({"path": "a", "provider": "b"}, "one of them"),
        ({"path": "a", "max_bytes": 100}, "max_bytes belongs to provider"),
        ({"wheel": "a==1"}, "wheel needs folder and sha256"),
        ({"wheel": "a; rm==1", "folder": "m", "sha256": "0" * 64}, "pattern"),
        ({"wheel": "a==1", "folder": "../m", "sha256": "0" * 64}, "pattern"),
    ],
)
def test_embedding_models_that_make_no_sense_are_refused(embeddings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Embeddings.model_validate(embeddings)


def test_documents_may_also_be_named_inside_from(tmp_path: Path) -> None:
    spec = {"kind": "none", "retrieval": {"from": {"documents": ["a.md"]}, "k": 3}}
    retrieval = Method.model_validate(spec, context={"folder": tmp_path}).retrieval
    assert retrieval and (retrieval.documents, retrieval.k, retrieval.folder) == (["a.md"], 3, tmp_path)
