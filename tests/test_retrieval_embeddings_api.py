"""Dense retrieval over an API's embeddings: asked once, journaled, within budgets, and ranked as a
local model's are."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.compare.answers import with_judgements
from pipelines.errors import UnavailableError, UsageError
from pipelines.evaluate import answers
from pipelines.evaluate.cell import evaluate
from pipelines.evaluate.retrieved import last_question, sides_of, train_items
from pipelines.generate import embeddings
from pipelines.generate.answers import Answer
from pipelines.generate.generate import session
from pipelines.generate.vectors import read_embeddings, vectors_in
from pipelines.lake.files import read_json, read_jsonl, write_json
from pipelines.lake.paths import PROJECT
from pipelines.retrieval.leaks import gives_away
from pipelines.retrieval.sources import out_of_reach
from pipelines.retrieval.stored_vectors import StoredVectors, write_vectors
from pipelines.runs.cells import Evaluation
from pipelines.runs.run import RunHooks
from pipelines.settings.experiments import load
from pipelines.settings.retrieval import Embeddings
from tests.asking import KEYS
from tests.fakes.behavior import Behavior
from tests.fakes.provider import FakeProvider, fake_provider
from tests.fakes.vectors import SIZE, vector
from tests.in_process import InProcess, clean_for, trained
from tests.project import TinyProject, make_project

QUIET = RunHooks(say=lambda _message: None, launcher=InProcess())
SMALL = {"general_texts": 0, "latency_answers": 0, "serving_batch": 0, "answers": 2, "max_new_tokens": 4}
ARMS: dict[str, Any] = {
    "a-dense": {"kind": "none", "retrieval": {"from": "train", "by": "dense", "k": 2}},
    "a-docs": {"kind": "none", "retrieval": {"documents": ["docs/*.md"], "by": "ensemble", "k": 1}},
    "a-multi": {"kind": "none", "retrieval": {"from": "train", "by": "multi-query", "ranked_by": "dense"}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> TinyProject:
    root = tmp_path_factory.mktemp("retrieval-api")
    shutil.copytree(tiny_folder, root / "model")
    config = read_json(root / "model" / "config.json") or {}
    write_json(root / "model" / "config.json", {**config, "max_position_embeddings": 4096})
    project = make_project(root / "project", root / "model")
    few = {"max_eval_examples": 4, "max_train_examples": 8}
    project.change(methods=ARMS, profiles={"local": {"methods": ["base", *ARMS], "evaluation": SMALL, **few}})
    (project.experiments.parent / "docs").mkdir()
    (project.experiments.parent / "docs" / "a.md").write_text("Of apples.\n\nOf pears.", encoding="utf-8")
    return clean_for(project)


@pytest.fixture
def asking(
    made: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[TinyProject, FakeProvider]]:
    shutil.copytree(made.data.root.parent, tmp_path / "project")
    project = TinyProject(type(made.data)(tmp_path / "project" / "data"), tmp_path / "project" / "experiments.yaml")
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    with fake_provider(Behavior(embeddings="shuffled")) as server:
        provider = {"kind": "openai", "base_url": server.openai_url, "model": "text-embedding-3-small", "requests": 0}
        project.change(providers={"vectors": {**provider, "enabled": True}}, embeddings=None)
        project.change(embeddings={"provider": "vectors"})
        yield project, server


def embedded_texts(server: FakeProvider) -> list[str]:
    return [text for call in server.ledger.received for text in call.body.get("input", [])]


def measured(project: TinyProject, method: str) -> Evaluation:
    assert trained(project, method).status == "ok"
    return evaluate(project.resolved(), project.key(method), hooks=QUIET)[0]


def test_texts_are_embedded_once_in_their_order_and_to_length_one(asking: tuple[TinyProject, FakeProvider]) -> None:
    project, server = asking
    texts = [f"text number {number} of many" for number in range(150)] + ["", "  ", "text number 3 of many"]
    experiments = project.now().experiments
    with session(project.data, experiments) as run:
        vectors = embeddings.embed(run, texts)
        assert embeddings.embedded(run.journal, experiments, [*texts, "a new one"]) is None
        charges = run.journal.charges()["vectors"]
    assert vectors.shape == (153, SIZE) and vectors.dtype == np.float32
    for text, embedding in zip(texts[:150], vectors, strict=False):
        expected = np.array(vector(text))
        assert embedding == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6), (
            "shuffled answers, texts in order"
        )
    assert not vectors[150].any() and not vectors[151].any() and (vectors[152] == vectors[3]).all()
    calls = [call.body["input"] for call in server.ledger.received]
    assert sorted(map(len, calls)) == [22, 64, 64] and "" not in embedded_texts(server)
    assert 0 < charges.settled < 0.001 and charges.reserved == 0, "the bundled price of this model, by tokens in"
    with session(project.data, experiments) as run:
        again = embeddings.embed(run, [*texts, "one more text"])
    assert (again[:153] == vectors).all() and len(embedded_texts(server)) == 151, "only the new text was sent"


def test_long_texts_are_cut_in_whole_characters(asking: tuple[TinyProject, FakeProvider]) -> None:
    project, server = asking
    project.change(embeddings={"provider": "vectors", "max_bytes": 100})
    with session(project.data, project.now().experiments) as run:
        embeddings.embed(run, ["가나다" * 40])
    assert embedded_texts(server) == ["가나다" * 11], "33 characters of three bytes each"


def test_an_arm_ranks_by_the_apis_vectors_and_is_measured(asking: tuple[TinyProject, FakeProvider]) -> None:
    project, server = asking
    evaluation = measured(project, "a-dense")
    assert evaluation.ok, evaluation.result.detail
    selected = project.resolved().selected
    items = train_items(selected.train)
    texts = [item.text for item in items] + [last_question(record) for record in selected.eval]
    assert set(embedded_texts(server)) == set(texts)

    def unit(text: str) -> np.ndarray:
        numbers = np.array(vector(text), dtype=np.float32)
        return numbers / np.linalg.norm(numbers)

    rows = {row["example_id"]: row["retrieved"] for row in read_jsonl(evaluation.folder / "retrieved.jsonl")}
    for record in selected.eval:
        allowed = [one for one in items if not gives_away(sides_of(record), sides_of(one.record or {}), 0.85)]
        closeness = {one.name: round(float(unit(one.text) @ unit(last_question(record))), 5) for one in allowed}
        shown = rows[record["example_id"]]
        best = sorted(closeness.values(), reverse=True)[:2]
        assert len(shown) == 2 and [closeness[name] for name in shown] == pytest.approx(best, abs=2e-5)
    sent = len(server.ledger.received)
    again, reused = evaluate(project.resolved(), project.key("a-dense"), hooks=QUIET, force=True)
    assert again.ok and not reused and len(server.ledger.received) == sent, "the journal holds every vector"


def test_documents_are_fused_with_words_too(asking: tuple[TinyProject, FakeProvider]) -> None:
    project, server = asking
    evaluation = measured(project, "a-docs")
    assert evaluation.ok, evaluation.result.detail
    assert any("Of apples." in text for text in embedded_texts(server))
    assert all(len(row["retrieved"]) == 1 for row in read_jsonl(evaluation.folder / "retrieved.jsonl"))


def test_a_teacher_is_asked_behind_what_the_api_found(asking: tuple[TinyProject, FakeProvider]) -> None:
    project, server = asking
    assert measured(project, "base").ok
    more = {"base_url": server.openai_url, "model": "gpt-test", "enabled": True, "price": {"input": 1, "output": 1}}
    project.change(providers={"gpt": {"kind": "openai", **more}})
    project.change(judging={"teachers": [{"provider": "gpt", "retrieval": {"from": "train", "by": "dense", "k": 2}}]})
    assert answers.ask(project.resolved()).complete
    (row,) = with_judgements(project.resolved(), [])
    assert (row["method"], row["status"], row["retrieved"]) == ("teacher+dense", "ok", 2.0)


def test_a_provider_that_may_not_be_asked_makes_the_arm_unavailable(
    asking: tuple[TinyProject, FakeProvider], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, server = asking
    project.change(providers={"vectors": {"enabled": False}})
    evaluation = measured(project, "a-dense")
    assert evaluation.result.status == "unavailable"
    assert "set providers.vectors.enabled: true" in (evaluation.result.status_detail or "")
    reach = out_of_reach(project.data, project.now().experiments, "a-dense")
    assert reach and "not enabled" in reach
    project.change(providers={"vectors": {"enabled": True}})
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "OPENAI_API_KEY is not set" in (measured(project, "a-dense").result.status_detail or "")
    monkeypatch.setenv("OPENAI_API_KEY", KEYS["OPENAI_API_KEY"])
    project.change(providers={"vectors": {"budget_usd": 0}})
    assert "budget reached: providers.vectors.budget_usd" in (measured(project, "a-dense").result.status_detail or "")
    assert not server.ledger.received
    project.change(providers={"vectors": {"budget_usd": 1}})
    assert measured(project, "a-dense").ok


def test_rewrites_made_in_the_cell_cannot_be_embedded_and_it_says_so(asking: tuple[TinyProject, FakeProvider]) -> None:
    project, server = asking
    attempt = trained(project, "a-multi")
    assert attempt.status == "unavailable" and "ranked_by: bm25" in (attempt.result.status_detail or "")
    assert not server.ledger.received


def test_a_response_without_all_vectors_is_no_answer(asking: tuple[TinyProject, FakeProvider]) -> None:
    project, server = asking
    server.behavior = Behavior(embeddings="too_few")
    with session(project.data, project.now().experiments) as run, pytest.raises(UnavailableError) as raised:
        embeddings.embed(run, ["one", "two"])
    assert "gave no embeddings for 2 of 2 texts" in str(raised.value) and "1 embeddings for 2 texts" in str(
        raised.value
    )


def test_another_server_under_the_same_name_embeds_everything_anew(asking: tuple[TinyProject, FakeProvider]) -> None:
    project, server = asking
    with session(project.data, project.now().experiments) as run:
        embeddings.embed(run, ["one", "two"])
    with fake_provider(Behavior()) as other:
        project.change(providers={"vectors": {"base_url": other.openai_url}})
        with session(project.data, project.now().experiments) as run:
            embeddings.embed(run, ["one", "two", "three"])
        assert embedded_texts(other) == ["one", "two", "three"] and embedded_texts(server) == ["one", "two"]
        assert all("base_url" not in call.body for call in [*server.ledger.received, *other.ledger.received])


def test_a_refusal_of_a_content_filter_costs_its_own_texts_alone(asking: tuple[TinyProject, FakeProvider]) -> None:
    project, server = asking
    experiments = project.now().experiments
    with session(project.data, experiments) as run:
        (request,) = embeddings._requests(experiments, ["refused"])
        run.journal.sending(request)
        run.journal.answered(request.key, Answer(raw='{"error": {}}', stop_reason="content_filter"), cost=0.0)
        with pytest.raises(UnavailableError, match="its content filter refused"):
            embeddings.embed(run, ["refused"])
        assert embeddings.embed(run, ["another"]).any() and embedded_texts(server) == ["another"]


def test_a_request_that_was_lost_twice_names_the_command_that_sends_it_again(
    asking: tuple[TinyProject, FakeProvider],
) -> None:
    project, _ = asking
    experiments = project.now().experiments
    with session(project.data, experiments) as run:
        (request,) = embeddings._requests(experiments, ["lost"])
        for _attempt in range(2):
            run.journal.sending(request)
            run.journal.doubtful(request.key, "no answer in time")
        with pytest.raises(UnavailableError, match=r"lost twice \(no answer in time\).*--resend-in-doubt"):
            embeddings.embed(run, ["lost"])


def test_vectors_of_several_models_are_never_compared() -> None:
    one = embeddings.Embedding(np.ones(2, dtype=np.float32), "a")
    for other in (embeddings.Embedding(np.ones(3, dtype=np.float32), "a"), replace(one, model="b")):
        with pytest.raises(UnavailableError, match="several models embedded the texts"):
            embeddings._in_order("vectors", ["x", "y"], {"x": one, "y": other})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no list of embeddings"),
        ([{"index": 0, "embedding": [1.0]}], "1 embeddings for 2 texts"),
        ([{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}], "which text"),
        ([{"index": 0, "embedding": [1.0]}, {"index": 2, "embedding": [2.0]}], "which text"),
        ([{"index": 0, "embedding": [1.0]}, {"index": "1", "embedding": [2.0]}], "which text"),
        ([{"index": {}, "embedding": [1.0]}, {"index": 1, "embedding": [2.0]}], "which text"),
        ([{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": ["2"]}], "finite numbers"),
        ([{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [float("nan")]}], "finite numbers"),
        ([{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": []}], "finite numbers"),
        ([{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [10**40]}], "finite numbers"),
        ([{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": "AACAPw=="}], "finite numbers"),
    ],
)
def test_bodies_that_hold_no_vectors_are_refused(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_embeddings(json.dumps({"data": data}), count=2)


def test_servers_that_leave_out_the_index_answer_in_order() -> None:
    body = {"data": [{"embedding": [1]}, {"embedding": [2]}]}
    assert vectors_in(body) == [[1], [2]]
    answer = read_embeddings(json.dumps(body), count=2)
    assert answer.odd_usage == "it tells no token counts" and not answer.usage.known


def test_a_text_that_was_not_embedded_is_never_guessed(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v.npz", ["a", "b", "a"], np.eye(3, dtype=np.float32))
    stored = StoredVectors(tmp_path / "v.npz")
    assert stored(["b", "a"]).shape == (2, 3)
    with pytest.raises(ValueError, match="changed while the cell waited"):
        stored(["c"])


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ({"kind": "anthropic", "model": "m", "requests": 0}, "kind anthropic, which has no /v1/embeddings"),
        ({"kind": "openai", "model": "m"}, "set providers.vectors.requests: 0"),
        ({"kind": "openai", "model": "m", "requests": 0}, "cannot also judge, teach or write records"),
    ],
)
def test_providers_that_cannot_embed_are_refused(project: TinyProject, provider: dict[str, Any], message: str) -> None:
    judge = {"judge": "vectors"} if "judge" in message else {}
    project.change(providers={"vectors": provider}, embeddings=None, judging=judge)
    project.change(embeddings={"provider": "vectors"})
    with pytest.raises(UsageError, match=message):
        project.now()
    project.change(embeddings={"provider": "nobody"}, judging={"judge": None})
    with pytest.raises(UsageError, match=r"embeddings\.provider: got 'nobody'"):
        project.now()


def test_settings_that_were_written_down_are_read_again(asking: tuple[TinyProject, FakeProvider]) -> None:
    project, _ = asking
    for experiments in (project.now().experiments, load(PROJECT / "experiments.yaml")):
        assert experiments.embeddings
        dumped = experiments.embeddings.model_dump()
        assert Embeddings.model_validate(dumped).model_dump() == dumped
