"""Metrics of the user's own task: what passes each one, and which settings are refused.

Neither a pattern nor a schema of a user can delay or falsify a publication.
"""

import json
import socket
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipelines.compare import beyond, plots
from pipelines.compare.compare import compare, published_rows
from pipelines.compare.table import Row, comparison_rows
from pipelines.compare.task_metrics import add_metrics
from pipelines.errors import UsageError
from pipelines.evaluate import answering
from pipelines.evaluate.answering import PromptedModel
from pipelines.evaluate.cell import evaluated_by, spec_of
from pipelines.evaluate.endings import ended_pct, has_ended
from pipelines.evaluate.guarded import MAX_TIMEOUTS, json_value
from pipelines.evaluate.metrics import Scores, contains, exact_match, json_valid
from pipelines.lake.files import read_json, stable_hash, write_json
from pipelines.lake.warehouse import connect
from pipelines.settings import experiments
from pipelines.settings.evaluation import EvaluationSettings
from pipelines.settings.json_schemas import require_schema
from pipelines.settings.metrics import Metric
from pipelines.train.trainer.prompts import PromptFormat
from tests.fakes import planted
from tests.fakes.planted import Lake
from tests.tiny import tiny_model, tiny_tokenizer

SEOUL = "서울"
APART = unicodedata.normalize("NFD", SEOUL)
ENDLESS = {"regex": "(a+)+$", "name": "endless"}
CATASTROPHE = "a" * 60 + "b"


# passes


@pytest.mark.parametrize(
    ("answer", "reference", "same", "within"),
    [
        ("Paris", "Paris", True, True),
        ("  paris \n", "PARIS", True, True),
        ("New\t York", "new york", True, True),
        ("New York", "newyork", False, False),
        ("Paris.", "Paris", False, True),
        ("It is Paris, of course", "paris", False, True),
        ("Par is", "Paris", False, False),
        ("STRASSE", "straße", True, True),
        (APART, SEOUL, True, True),
        (SEOUL, APART, True, True),
        (f"{APART}은 수도이다", SEOUL, False, True),
        ("서울 특별시", "서울\u3000특별시", True, True),
        ("서울특별시", "서울 특별시", False, False),
        ("１２", "12", False, False),
        ("", "Paris", False, False),
        ("14", "4", False, True),
        ("Paris", "", None, None),
        ("", " \n", None, None),
    ],
)
def test_exact_match_and_contains(answer: str, reference: str, same: bool | None, within: bool | None) -> None:
    assert exact_match(answer, reference) is same
    assert contains(answer, reference) is within


@pytest.mark.parametrize(
    "answer",
    [
        '{"a": 1}', " [1, 2]\n", "42", "true", "null", '"서울"', "-0.5e3", '{"a": 1, "a": 2}', "9" * 5000, "1e999",
        '```json\n{"a": 1}\n```', '```\n{"a": 1}\n```', ' ```JSON\r\n{"a": 1}\r\n``` ', '```json\n{"a": "```"}\n```',
    ],
)  # fmt: skip
def test_json(answer: str) -> None:
    assert json_valid(answer, "")


@pytest.mark.parametrize(
    "answer",
    [
        "", " ", "yes", "{'a': 1}", '{"a": 1,}', "NaN", "[Infinity]", '{"a": -Infinity}', '{"a": 1} {"b": 2}', "01", "+1", ".5",
        'Here it is: {"a": 1}', '{"a": 1}\nI hope that helps.', '```json\n{"a": 1}\n```\nDone.', '```json\n{"a": 1}',
        '```json\n{}\n```\n```json\n{}\n```', '```{"a": 1}```', "``````", "```", "\ufeff{}", '{"a": "\n"}', "[" * 100_000,
        "[" * 100_000 + "]" * 100_000, "{\"a\": 1} // why",
    ],
)  # fmt: skip
def test_no_json(answer: str) -> None:
    assert not json_valid(answer, "")


def test_the_value_is_what_stands_in_the_fence() -> None:
    assert json_value('```json\n{"a": "```"}\n```') == {"a": "```"}


# settings


def load(folder: Path, metrics: Any) -> EvaluationSettings:
    path = folder / "experiments.yaml"
    settings = planted.merged(planted.CONFIGURATION, {"profiles": {"local": {"evaluation": {"metrics": metrics}}}})
    path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return experiments.load(path).profiles["local"].evaluation


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for a pattern that never ends."""
    monkeypatch.setattr("pipelines.evaluate.metrics.SECONDS", 0.2)


def scored(folder: Path, metrics: Any, answers: list[str]) -> dict[str, list[bool | None]]:
    """The value of each metric for the answers, by column."""
    rows = Scores(load(folder, metrics).metrics).of([{"answer": one, "reference": "x"} for one in answers])
    return {name: [one[name] for one in rows] for name in rows[0]}


def test_a_file_lies_beside_the_settings_and_what_is_written_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text('{"type": "object"}', encoding="utf-8")
    written = ["exact_match", {"json_schema": "answer.json"}, {"regex": "[0-9]", "name": "has-number"}]
    loaded = load(tmp_path, written)
    assert loaded.metric_names == ("exact_match", "json_schema", "has-number")
    again = EvaluationSettings.model_validate(loaded.model_dump(), context={"folder": tmp_path})
    assert again == loaded and again.metrics[1].schema_text == '{"type": "object"}'


@pytest.mark.parametrize(
    ("metrics", "place", "message"),
    [
        (["exact_matc"], "metrics[0]", "exact_match, contains, json_valid, {json_schema: FILE}"),
        ([3], "metrics[0]", "got 3; expected one of"),
        ([["contains"]], "metrics[0]", "expected one of"),
        ("exact_match", "metrics", "expected a list"),
        ([{}], "metrics[0]", "got neither; expected one of json_schema and regex"),
        ([{"regex": "a", "json_schema": "x"}], "metrics[0]", "got json_schema and regex; expected one"),
        ([{"regx": "a"}], "metrics[0]", "unknown key 'regx'"),
        ([{"kind": "contains"}], "metrics[0]", "unknown key 'kind'"),
        (["contains", {"regex": "("}], "metrics[1]", "regex: '(' is no pattern of Python's re: missing ), unterminated subpattern"),
        ([{"regex": ""}], "metrics[0].regex", "expected a text of 1 or more characters"),
        ([{"regex": "a" * 1001}], "metrics[0].regex", "at most 1000 characters"),
        ([{"regex": "(" * 500 + ")" * 500}], "metrics[0]", "is no pattern of Python's re"),
        ([{"regex": "a{99999999999}"}], "metrics[0]", "the repetition number is too large"),
        ([{"regex": 5}], "metrics[0].regex", "expected a text"),
        ([{"regex": "a", "name": 'a"b; drop'}], "metrics[0]", "a metric names a column"),
        ([{"regex": "a", "name": "x" * 300}], "metrics[0]", "expected at most 60"),
        ([{"regex": "a", "name": ""}], "metrics[0]", "a metric names a column"),
        ([{"regex": "a"}, {"regex": "b"}], "evaluation", "both make the column metric_regex; give each metric a name of its own"),
        (["contains", {"regex": "b", "name": "Contains"}], "evaluation", "both make the column metric_contains"),
        ([{"json_schema": "none.json"}], "metrics[0]", "none.json cannot be read: No such file"),
        ([{"json_schema": "."}], "metrics[0]", "is no file"),
        ([{"json_schema": "broken.json"}], "metrics[0]", "broken.json is not JSON: Expecting"),
        ([{"json_schema": "nan.json"}], "metrics[0]", "NaN is no JSON"),
        ([{"json_schema": "utf16.json"}], "metrics[0]", "byte 0 is not UTF-8"),
        ([{"json_schema": "large.json"}], "metrics[0]", "larger than 1 MB"),
        ([{"json_schema": "wrong.json"}], "metrics[0]", "wrong.json: not a JSON schema: $.type: 'strin' is not valid"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_measured_are_refused_with_their_place(
    metrics: Any, place: str, message: str, tmp_path: Path
) -> None:
    files = {
        "broken.json": b"{", "nan.json": b'{"const": NaN}', "utf16.json": b"\xff\xfe{", "large.json": b" " * 1_000_001,
        "wrong.json": b'{"type": "strin"}',
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load(tmp_path, metrics)
    assert f"{place}: " in str(caught.value) and message in str(caught.value)
    assert len(str(caught.value)) < 1500


# schemas


@pytest.mark.parametrize(
    "schema",
    [
        True, {}, {"$ref": "#/$defs/x", "$defs": {"x": {"type": "string"}}}, {"properties": {"$ref": {"type": "string"}}},
        {"enum": [{"$ref": "nowhere"}]}, {"$id": "https://example.com/a.json", "$ref": "b.json", "$defs": {"x": {"$id": "b.json"}}},
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"x": {}}, "$ref": "#/definitions/x"},
        {"properties": {"children": {"items": {"$ref": "#"}}}}, {"$ref": "https://json-schema.org/draft/2020-12/schema"},
    ],
)  # fmt: skip
def test_a_schema_is_taken(schema: Any) -> None:
    require_schema(schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([1], "expected an object"),
        ("object", "expected an object"),
        ({"type": "strin"}, r"\$\.type: 'strin' is not valid"),
        ({"pattern": "("}, "is not a 'regex'"),
        ({"$schema": "urn:none"}, r"\$schema: got 'urn:none'; expected https://json-schema.org/draft/2020-12/schema"),
        ({"$schema": 3}, r"\$schema: got 3"),
        ({"$ref": "#/$defs/none"}, "'#/\\$defs/none' stands nowhere in it"),
        ({"$ref": "#/allOf/x", "allOf": [{}]}, "stands nowhere in it"),
        ({"properties": {"a": {"$ref": "other.json"}}}, "'other.json' stands nowhere in it; .* nothing is fetched"),
        ({"$ref": "#"}, "leads back to itself"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "leads back to itself"),
    ],
)
def test_a_schema_that_no_answer_could_be_checked_by_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_schema(schema)


def test_a_reference_never_touches_the_network(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.json"
        (tmp_path / "remote.json").write_text(json.dumps({"anyOf": [{"not": {"$ref": url}}]}), encoding="utf-8")
        with pytest.raises(UsageError, match="stands nowhere in it; expected a reference within the file"):
            load(tmp_path, [{"json_schema": "remote.json"}])
        with pytest.raises(TimeoutError):
            server.accept()


def test_patterns_and_schemas_are_put_to_every_answer(tmp_path: Path) -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 0}}}
    (tmp_path / "s.json").write_text(json.dumps(schema), encoding="utf-8")
    answers = [
        '{"a": 1}',
        '```json\n{"a": 2}\n```',
        '{"a": -1}',
        "a 5",
        '{"b": 1}',
        "",
        '{"a": NaN}',
        "9" * 5000,
        APART,
    ]
    results = scored(
        tmp_path, [{"json_schema": "s.json"}, {"regex": "^[가-힣]+$|[5-9]", "name": "has"}, "json_valid"], answers
    )
    assert results == {
        "metric_json_schema": [True, True, False, False, False, False, False, False, False],
        "metric_has": [False, False, False, True, False, False, False, True, True],
        "metric_json_valid": [True, True, True, False, True, False, False, True, False],
    }


@pytest.mark.usefixtures("hurried")
def test_a_pattern_without_end_is_given_up_and_holds_up_no_other(tmp_path: Path) -> None:
    answers = [CATASTROPHE, "aa", *(f"{CATASTROPHE}{number}" for number in range(30)), "a"]
    results = scored(tmp_path, [ENDLESS, {"regex": "b", "name": "b"}], answers)
    assert results["metric_endless"][:2] == [None, True], "the one answer costs only itself"
    assert results["metric_endless"][MAX_TIMEOUTS + 1 :] == [None] * (len(answers) - MAX_TIMEOUTS - 1), (
        "then nothing more is tried"
    )
    assert results["metric_b"] == ["b" in answer for answer in answers]


@pytest.mark.usefixtures("hurried")
def test_a_schema_without_end_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"patternProperties": {"(a+)+$": False}}), encoding="utf-8")
    results = scored(tmp_path, [{"json_schema": "s.json"}], [json.dumps({CATASTROPHE: 1}), '{"b": 1}', '{"a": 1}'])
    assert results == {"metric_json_schema": [None, True, False]}


def test_where_the_guarded_process_fails_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.evaluate.metrics.GUARDED", "pipelines.evaluate.no_such_module")
    assert scored(tmp_path, [{"regex": "a"}, "json_valid"], ["a"]) == {
        "metric_regex": [None],
        "metric_json_valid": [False],
    }


# shares


def shares(metric: Any, *seeds: list[str], reference: str = "x") -> dict[str, Any]:
    """The columns of a cell whose seeds each gave these answers."""
    rows = [[{"answer": answer, "reference": reference} for answer in answers] for answers in seeds]
    return Scores([Metric.model_validate(metric)]).cell_columns(rows)


def test_shares_have_the_interval_of_one_seeds_sample() -> None:
    one = shares("contains", ["x", "", "", ""])
    low, high = pytest.approx(0.0456, abs=1e-4), pytest.approx(0.6994, abs=1e-4)
    assert one == {"metric_contains": 0.25, "metric_contains_low": low, "metric_contains_high": high}
    assert shares("contains", ["x", "", "", ""], ["", "X", "", ""]) == one, "another seed answers the same prompts"


def test_nothing_answered_is_no_share() -> None:
    assert shares("contains") == shares("contains", []) == {}


def test_a_share_of_less_than_all_answers_is_none_and_says_so() -> None:
    row = shares("contains", ["x", ""], reference="")
    reason = "contains: 2 of 2 answers have no reference to be compared with; take these records out, or the metric"
    assert row == {"metrics_because": reason}


# endings


@pytest.mark.parametrize(
    ("row", "limit", "ended"),
    [
        ({"ended": False, "answer_tokens": 3}, 8, False),
        ({"ended": True, "answer_tokens": 8}, 8, True),
        ({"answer_tokens": 7}, 8, True),
        ({"answer_tokens": 8}, 8, None),
        ({"answer_tokens": 7}, None, None),
        ({"answer_tokens": None}, 8, None),
        ({"ended": "yes", "answer_tokens": 8}, 8, None),
        ({}, 8, None),
    ],
)
def test_what_is_known_of_an_answers_end(row: dict[str, Any], limit: int | None, ended: bool | None) -> None:
    assert has_ended(row, limit) is ended


def test_the_percentage_that_ended() -> None:
    assert ended_pct([]) is None
    assert ended_pct([{"ended": True}, {"ended": None}]) is None
    assert ended_pct([{"ended": True}, {"ended": False}, {"ended": False}, {"ended": True}]) == 50


def test_an_answer_of_a_model_says_whether_it_ended() -> None:
    recipe = {"kind": "none", "precision": "fp32", "quantization": None}
    prompted_model = PromptedModel(
        tiny_model("llama"), PromptFormat(tiny_tokenizer(), "chat"), recipe, torch.device("cpu")
    )
    prompt = prompted_model.form.prompt({"instruction": "For a nurse?", "input": "", "output": ""})
    (free,) = answering.answer(prompted_model, [prompt], 12, exactly=True)
    prompted_model.form.tokenizer.eos_token = prompted_model.form.tokenizer.convert_ids_to_tokens(free[3])
    end = free.index(free[3]) + 1
    for limit, ended in ((12, True), (end, True), (end - 1, False)):
        (tokens,) = answering.answer(prompted_model, [prompt], limit)
        assert answering.ended(prompted_model, tokens, limit) is ended, limit


def test_an_answer_that_goes_on_with_the_next_block_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"kind": "none", "precision": "fp32", "quantization": None}
    prompted_model = PromptedModel(
        tiny_model("llama"), PromptFormat(tiny_tokenizer(), "alpaca"), recipe, torch.device("cpu")
    )
    prompt = prompted_model.form.prompt({"instruction": "For a nurse?", "input": "", "output": ""})
    (whole,) = answering.answer(prompted_model, [prompt], 12)
    assert answering.ended(prompted_model, whole, 12) is False
    monkeypatch.setattr(answering, "NEXT_BLOCK", (prompted_model.form.tokenizer.decode(whole[4:6]),))
    limit = len(answering.answer(prompted_model, [prompt], 12)[0])
    assert limit < 12
    (tokens,) = answering.answer(prompted_model, [prompt], limit)
    assert len(tokens) == limit and answering.ended(prompted_model, tokens, limit), (
        "its last tokens are the block's first"
    )


# published


METRICS = ["exact_match", "contains", {"regex": "[0-9]", "name": "has-number"}]


def answered(lake: Lake, method: str, *answers: str, **more: Any) -> None:
    rows = [planted.answer(f"e{n}", answer=text, reference="Hello") for n, text in enumerate(answers)]
    # The code that made these rows noted how each answer ended.
    if more:
        rows = [{**row, "ended": n > 0} for n, row in enumerate(rows)]
    evaluation = lake.evaluated(lake.trained(method), answers=rows, **more)
    path = evaluation.folder / "spec.json"
    write_json(path, (read_json(path) or {}) | {"settings": {"max_new_tokens": 8}})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = planted.lake(tmp_path)
    answered(made, "base", "no", "hello 1", "hello")
    answered(made, "full", "Hello", "hello!", "5", answers_ended_pct=200 / 3)
    answered(made, "lora-r8", "Hello")
    return made


def named(lake: Lake, *metrics: Any) -> Lake:
    return lake.configured(profiles={"local": {"evaluation": {"metrics": list(metrics)}}})


def rows_of(lake: Lake) -> dict[str, Row]:
    """The comparison's rows with their metrics, by method."""
    resolved = lake.resolved()
    rows = comparison_rows(resolved)
    add_metrics(resolved, rows, [], Scores(lake.project.settings.evaluation.metrics))
    return {row["method"]: row for row in rows}


def test_metrics_of_kept_answers_are_published_without_a_model(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.compare.compare.keep_predictions", lambda _resolved: None)
    before = evaluated_by(lake.resolved()).fingerprints
    with_metrics = named(lake, *METRICS)
    assert evaluated_by(with_metrics.resolved()).fingerprints == before, "a new metric makes no evaluation stale"
    compare(with_metrics.project)
    rows = {row["method"]: row for row in published_rows(lake.data)}
    full, base, lora, missing = (rows[name] for name in ("full", "base", "lora-r8", "qlora-r8"))
    assert full["is_stale"] is base["is_stale"] is False
    shares = [full[f"metric_{name}"] for name in ("exact_match", "contains", "has_number")]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1 / 3])
    assert full["metric_exact_match_base"] == base["metric_exact_match"] == base["metric_exact_match_base"]
    assert base["metric_exact_match"] == pytest.approx(1 / 3) and full["metric_contains_base"] == pytest.approx(2 / 3)
    assert full["metric_exact_match_low"] < 1 / 3 < full["metric_exact_match_high"]
    assert lora["metric_exact_match"] == 1 and lora["metric_exact_match_base"] is None, "it answered other prompts"
    assert {missing[name] for name in missing if name.startswith("metric_")} == {None}
    assert full["metrics_because"] is None
    with connect(lake.data) as db:
        marks = db.execute(
            "SELECT answer, metric_exact_match, metric_contains, metric_has_number, ended FROM evaluation_answers "
            "WHERE method = 'full' ORDER BY example_id"
        ).fetchall()
    assert marks == [
        ("Hello", True, True, False, False),
        ("hello!", False, True, False, True),
        ("5", False, False, True, True),
    ]
    assert not [name for name in rows_of(lake)["full"] if name.startswith("metric_")], (
        "without the setting, they are gone"
    )


def test_an_edited_schema_scores_the_kept_answers_anew(lake: Lake) -> None:
    for json_type, share in (("number", 1 / 3), ("string", 0)):
        (lake.data.root / "s.json").write_text(json.dumps({"type": json_type}), encoding="utf-8")
        rows = rows_of(named(lake, {"json_schema": "s.json"}))
        assert rows["full"]["metric_json_schema"] == pytest.approx(share)


@pytest.mark.usefixtures("hurried")
def test_an_endless_pattern_leaves_its_shares_empty_and_says_why(lake: Lake) -> None:
    answered(lake, "full", CATASTROPHE, "aa", "b")
    rows = rows_of(named(lake, ENDLESS, "contains"))
    assert rows["full"]["metric_endless"] is None and rows["full"]["metric_contains"] == 0
    assert rows["full"]["metrics_because"].startswith(
        "endless: 1 of 3 answers could not be told within 0.2 s of the processor; make the pattern simpler"
    )
    assert rows["base"]["metric_endless"] == 0 and rows["base"]["metrics_because"] is None


def test_a_base_of_other_weights_is_not_set_beside(lake: Lake) -> None:
    attempt = lake.trained("full", prints={"weights": "other"})
    lake.evaluated(attempt, answers=[planted.answer(f"e{n}", answer="x", reference="Hello") for n in range(3)])
    full = rows_of(named(lake, *METRICS))["full"]
    assert full["metric_contains"] == 0 and full["metric_contains_base"] is None


def test_how_many_answers_ended_is_always_there(lake: Lake) -> None:
    rows = rows_of(lake)
    assert rows["full"]["answers_ended_pct"] == pytest.approx(200 / 3), "as it was measured"
    assert rows["base"]["answers_ended_pct"] == 100, "of earlier code: each answer is shorter than it might be"
    assert rows["qlora-r8"]["answers_ended_pct"] is None


# the report


def test_the_report_shows_each_metric_beside_the_base(lake: Lake) -> None:
    resolved = named(lake, "exact_match", "contains", {"regex": "(a+)+$", "name": "never"})
    rows = list(rows_of(resolved).values())
    (part,) = beyond.parts(rows, {})
    assert "33 % (6 to 79)" in part and "67 % (21 to 94)" in part and "Only 3 answers" not in part
    assert part.count("<svg") == 1 and "untouched model" in part and ">never<" in part
    rows[1] |= {"model": "<img src=x onerror=alert(1)>", "answers": 3, "metrics_because": "<b>why</b>"}
    (part,) = beyond.parts(rows, {})
    assert "<img" not in part and "<b>" not in part and "&lt;b&gt;why" in part and "Only 3 answers" in part


def test_without_metrics_or_without_answers_the_report_has_no_such_part(lake: Lake, tmp_path: Path) -> None:
    assert beyond.parts(list(rows_of(lake).values()), {}) == []
    assert beyond.parts([], {}) == []
    (tmp_path / "empty").mkdir()
    empty = named(planted.lake(tmp_path / "empty"), "contains")
    assert beyond.parts(list(rows_of(empty).values()), {}) == []


@pytest.mark.parametrize("count", [1, 9])
def test_many_metrics_and_models_are_drawn(count: int) -> None:
    shares = {"share": 0.5, "low": 0.2, "high": 0.8, "base": None}
    rows = [
        {"metric": f"m{n}", "model": f"model-{k}", "method": "full", **shares}
        for n in range(count)
        for k in range(min(count, 3))
    ]
    svg = plots.shares_beside_base(rows)
    assert svg is not None and b"m0" in svg and (b"model-0 full" in svg) is (count > 1)
    assert plots.shares_beside_base([]) is None


def test_a_profile_without_metrics_is_measured_as_before(tmp_path: Path) -> None:
    """Pins, key by key, the dump that fingerprints of existing lakes are made from."""
    lake = planted.lake(tmp_path)
    settings = {
        "answers": 2,
        "max_new_tokens": 8,
        "latency_answers": 20,
        "general_texts": None,
        "serving_batch": 8,
        "serving_tokens": 64,
    }
    resolved = lake.configured(profiles={"local": {"evaluation": {"metrics": METRICS}}}).resolved()
    by = evaluated_by(resolved)
    assert by.measured[1] == settings and list(by.measured[1]) == list(settings)
    assert by.content_fingerprint == stable_hash(list(evaluated_by(lake.resolved()).measured))
    attempt = lake.trained("base")
    assert spec_of(resolved, attempt).more["settings"] == settings
