"""Benchmarks in whole cells: settings, tables, killed evaluations, and messages where lm-
evaluation-harness is missing."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pytest

from pipelines.compare.benchmark_scores import Scores, difference
from pipelines.compare.table import comparison
from pipelines.compare.tables import all_tables
from pipelines.errors import UnavailableError, UsageError
from pipelines.evaluate import benchmarks_run
from pipelines.evaluate.benchmarks_asked import contents, for_spec
from pipelines.evaluate.cell import evaluate, evaluated_by
from pipelines.evaluate.statistics import wilson, win_rate_interval
from pipelines.lake.files import read_jsonl
from pipelines.runs import cells
from pipelines.runs.run import RunHooks
from pipelines.settings import benchmarks
from pipelines.settings import experiments as configuration
from tests.in_process import InProcess, KilledError, clean_for, trained
from tests.project import TinyProject, make_project

QUIET = RunHooks(say=lambda _message: None, launcher=InProcess())
TASKS = [{"task": "basics_en", "limit": 9}, {"task": "basics_ko", "limit": 6, "shots": 1}]
TASK_FILE = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: questions.json}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> TinyProject:
    """A tiny project with two trained cells without evaluation; tests work on copies."""
    root = tmp_path_factory.mktemp("benchmarks")
    project = make_project(root / "project", tiny_folder)
    small = {"answers": 0, "general_texts": 0, "serving_batch": 0, "benchmarks": TASKS}
    project.change(profiles={"local": {"methods": ["base", "lora-r8"], "evaluation": small}})
    clean_for(project)
    for method in ("base", "lora-r8"):
        assert trained(project, method).status == "ok"
    return project


@pytest.fixture
def project(made: TinyProject, tmp_path: Path) -> TinyProject:
    shutil.copytree(made.data.root.parent, tmp_path / "project")
    return TinyProject(type(made.data)(tmp_path / "project" / "data"), tmp_path / "project" / "experiments.yaml")


def named(project: TinyProject, *tasks: Any) -> None:
    project.change(profiles={"local": {"evaluation": {"benchmarks": list(tasks)}}})


def rows_of(project: TinyProject) -> list[dict[str, Any]]:
    return comparison(project.resolved()).rows


def select(project: TinyProject, sql: str) -> list[tuple[Any, ...]]:
    """Rows of the table benchmark_answers as it would be published."""
    stage = project.now()
    tables = all_tables(stage.data, stage.experiments, rows_of(project), evaluation=stage.settings.evaluation)
    with duckdb.connect() as db:
        db.register("benchmark_answers", tables["benchmark_answers"])
        return db.execute(sql).fetchall()


# tables


def test_shares_differences_and_every_question_stand_in_the_tables(project: TinyProject) -> None:
    right = {}
    for method in ("base", "lora-r8"):
        evaluation, _ = evaluate(project.resolved(), project.key(method), hooks=QUIET)
        assert evaluation.ok and not evaluation.result.detail, evaluation.result.detail
        rows = read_jsonl(evaluation.folder / "benchmarks.jsonl")
        right[method] = {(row["task"], row["item_id"]): row["correct"] for row in rows}
        assert len(right[method]) == 15 and evaluation.result.measured["benchmark_seconds"] > 0
    # A barely trained tiny adapter may change none of fifteen answers: change two, so that there
    # is a difference.
    tuned = [row | {"correct": not row["correct"]} if place in (0, 4) else row for place, row in enumerate(rows)]
    (evaluation.folder / "benchmarks.jsonl").write_text("\n".join(map(json.dumps, tuned)), encoding="utf-8")
    right["lora-r8"] = {(row["task"], row["item_id"]): row["correct"] for row in tuned}

    base, lora = rows_of(project)
    for row, own in ((base, right["base"]), (lora, right["lora-r8"])):
        english = [hit for (task, _), hit in own.items() if task == "basics_en"]
        assert row["benchmark_basics_en"] == pytest.approx(sum(english) / 9)
        assert (row["benchmark_basics_en_low"], row["benchmark_basics_en_high"]) == wilson(sum(english), 9)
        assert row["benchmark_accuracy"] == pytest.approx(sum(own.values()) / 15)
        assert row["benchmark_basics_en_base"] == base["benchmark_basics_en"]
        assert row["benchmark_basics_ko_base"] == base["benchmark_basics_ko"]
    assert base["benchmark_basics_en_vs_base"] is None and base["forgetting_accuracy"] is None
    changes = [right["lora-r8"][key] - right["base"][key] for key in right["base"]]
    assert lora["forgetting_accuracy"] == pytest.approx(sum(changes) / 15)
    wins, losses = changes.count(1), changes.count(-1)
    low, high = win_rate_interval(wins, losses, 15 - wins - losses) or (0.0, 0.0)
    assert (lora["forgetting_accuracy_low"], lora["forgetting_accuracy_high"]) == pytest.approx(
        (2 * low - 1, 2 * high - 1)
    )
    assert lora["benchmark_basics_en_vs_base"] == pytest.approx(sum(changes[:9]) / 9)
    published = select(
        project, "SELECT method, task, count(*), sum(correct::INT) FROM benchmark_answers GROUP BY ALL ORDER BY ALL"
    )
    counted = [
        (method, task, count, sum(hit for (of, _), hit in right[method].items() if of == task))
        for method in ("base", "lora-r8")
        for task, count in (("basics_en", 9), ("basics_ko", 6))
    ]
    assert published == counted
    (one,) = select(project, "SELECT prompt, choices, reference, metric, scorer FROM benchmark_answers LIMIT 1")
    assert one[0].startswith("Question: Which planet") and one[1] == '["Venus", "Mercury", "Mars", "Jupiter"]'
    assert one[2:] == ("Mercury", "acc_bytes", "featherweight")


def test_other_questions_are_not_set_against_the_bases(project: TinyProject) -> None:
    evaluate(project.resolved(), project.key("base"), hooks=QUIET)
    named(project, {"task": "basics_en", "limit": 5}, TASKS[1])
    evaluate(project.resolved(), project.key("lora-r8"), hooks=QUIET)
    base, lora = rows_of(project)
    assert base["is_stale"] and "evaluation" in base["stale_because"]
    assert lora["benchmark_basics_en"] is not None and lora["benchmark_basics_en_vs_base"] is None
    assert lora["forgetting_accuracy"] is None
    assert lora["benchmark_basics_ko_vs_base"] is not None, "these were the same"


# a killed evaluation


def test_a_killed_evaluation_goes_on_with_what_is_done(project: TinyProject, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, tasks_begun = benchmarks_run._ask_own, []

    def killed_at_the_second(worker: Any, prompted_model: Any, one: Any) -> Any:
        tasks_begun.append(one.name)
        if len(tasks_begun) == 2:
            raise KilledError
        return ask(worker, prompted_model, one)

    monkeypatch.setattr(benchmarks_run, "_ask_own", killed_at_the_second)
    monkeypatch.setattr("pipelines.evaluate.cell.run_with_retry", lambda run, _again, site: _ran(run, site))
    evaluation, _ = evaluate(project.resolved(), project.key("base"), hooks=QUIET)
    assert evaluation.result.status == "killed"
    evaluation, _ = evaluate(project.resolved(), project.key("base"), hooks=QUIET)
    assert evaluation.ok and tasks_begun == ["basics_en", "basics_ko", "basics_ko"]
    assert len(read_jsonl(evaluation.folder / "benchmarks.jsonl")) == 15
    # A new benchmark costs only its own questions; changed questions of a benchmark are asked
    # again.
    named(project, *TASKS[:1], {"task": "basics_ko", "limit": 7, "shots": 1})
    evaluation, reused = evaluate(project.resolved(), project.key("base"), hooks=QUIET)
    assert not reused and tasks_begun[3:] == ["basics_ko"]
    assert len(read_jsonl(evaluation.folder / "benchmarks.jsonl")) == 16


def _ran(run: Any, site: Any) -> Any:
    run.to_result(site)
    return run


# settings


def test_what_names_no_benchmark_is_evaluated_as_before(project: TinyProject) -> None:
    shipped = configuration.load().profile("local").evaluation
    assert "benchmarks" not in shipped.model_dump() and "benchmarks" not in shipped.model_dump_json()
    assert contents(shipped) == for_spec(shipped) == []
    spec = evaluated_by(project.resolved())
    project.change(profiles={"local": {"evaluation": {"benchmarks": []}}})
    plain = evaluated_by(project.resolved())
    assert len(plain.measured) == 5 and len(spec.measured) == 6
    named(project, {"task": "basics_en", "limit": 8})
    assert len({plain.fingerprint, spec.fingerprint, evaluated_by(project.resolved()).fingerprint}) == 3


def test_a_name_alone_is_a_benchmark_and_tour_has_the_set_of_its_language(project: TinyProject) -> None:
    named(project, "basics_ko")
    (one,) = project.now().settings.evaluation.benchmarks
    assert (one.task, one.limit, one.shots, one.ships, one.name) == ("basics_ko", None, None, True, "basics_ko")
    tour = configuration.load().profile("tour")
    assert tour.languages == ["en"] and tour.evaluation.benchmark_names == ("basics_en",)


@pytest.mark.parametrize(
    "tasks, words",
    [
        ([{"task": "basics_en", "shots": 6}], "shots: got 6; basics_en has 5 solved examples"),
        ([{"task": "basics_en", "limit": 0}], "expected more than 0"),
        ([{"task": "basics_en", "shot": 1}], "did you mean 'shots'"),
        ([{"limit": 3}], "task"),
        (["basics_en", {"task": "basics_en", "shots": 2}], "both make the column benchmark_basics_en"),
        (["accuracy"], "whose column benchmark_accuracy is there for all benchmarks"),
        (["accuracy_low"], "whose column benchmark_accuracy_low is there for all benchmarks"),
        (['a"b; drop'], "got the name"),
        (["nowhere.yaml"], "nowhere.yaml: "),
        ([7], "expected a mapping of names to values"),
    ],
)
def test_settings_that_make_no_sense_say_so(project: TinyProject, tasks: list[Any], words: str) -> None:
    named(project, *tasks)
    with pytest.raises(UsageError, match=r"profiles\.local\.evaluation") as error:
        project.now()
    assert words in str(error.value)


@pytest.mark.parametrize(
    "line, words",
    [
        ("process_docs: !function utils.process", "the tag !function is refused"),
        ("extra: !!python/object/apply:os.system [ls]", "python/object"),
        ("include: other.yaml", "include: refused"),
        ("metric_list: [{metric: x, hf_evaluate: true}]", "hf_evaluate: refused"),
        ("fewshot_config: {custom_dataset: x}", "custom_dataset: refused"),
        ("unsafe_code: true", "unsafe_code: refused"),
        ("[", "expected a task file"),
    ],
)
def test_a_task_file_runs_no_code(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(TASK_FILE + line, encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.yaml: ") as error:
        benchmarks.read_task(tmp_path / "mine.yaml")
    assert words in str(error.value)


def test_a_task_file_finds_its_questions_beside_it_and_changes_with_them(project: TinyProject) -> None:
    folder = project.experiments.parent
    (folder / "mine.yaml").write_text(TASK_FILE, encoding="utf-8")
    (folder / "questions.json").write_text("[]", encoding="utf-8")
    named(project, "mine.yaml")
    settings = project.now().settings.evaluation
    (task,) = for_spec(settings)
    assert task["config"]["dataset_kwargs"] == {"data_files": {"test": str((folder / "questions.json").resolve())}}
    (folder / "questions.json").write_text("[{}]", encoding="utf-8")
    assert contents(settings) != [{"mine": task["content"]}]


@pytest.mark.parametrize(
    "kwargs",
    [
        "{data_files: {test: questions.json}, name: other}",
        "{data_files: {validation: questions.json}}",
        "{data_files: {test: [questions.json, hub/other.json]}}",
    ],
)
def test_whatever_else_says_where_questions_come_from_is_another_task(tmp_path: Path, kwargs: str) -> None:
    (tmp_path / "questions.json").write_text("[]", encoding="utf-8")
    usual = "{data_files: {test: questions.json}}"
    assert usual in TASK_FILE
    hashes = []
    for text in (TASK_FILE, TASK_FILE.replace(usual, kwargs)):
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        hashes.append(benchmarks.task_content(benchmarks.read_task(tmp_path / "mine.yaml")))
    assert hashes[0] != hashes[1]


def test_a_task_that_was_moved_with_its_questions_is_the_same(tmp_path: Path) -> None:
    hashes = set()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "questions.json").write_text("[]", encoding="utf-8")
        (tmp_path / name / "mine.yaml").write_text(TASK_FILE, encoding="utf-8")
        hashes.add(benchmarks.task_content(benchmarks.read_task(tmp_path / name / "mine.yaml")))
    assert len(hashes) == 1


# without the harness


def test_a_task_of_the_harness_is_refused_before_training_where_it_is_not_installed(
    project: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "harness_version", lambda: None)
    named(project, "basics_en", {"task": "gsm8k", "limit": 3})
    attempt = trained(project, "lora-r8")
    assert attempt.status == "unavailable"
    assert "gsm8k: lm-evaluation-harness is not installed; run `make extras E=benchmarks`" in str(
        attempt.result.status_detail
    )
    assert not (cells.latest(project.data, project.key("lora-r8")) or attempt).curve()


def test_a_task_that_the_harness_does_not_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "a.yaml").write_text(
        "group: all_of_it\ntask:\n  - one_task\n  - task: two-task\n", encoding="utf-8"
    )
    monkeypatch.setattr(benchmarks, "harness_version", lambda: "0.0")
    monkeypatch.setattr(benchmarks, "find_spec", lambda _name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    benchmarks.is_known.cache_clear()
    benchmarks.require(["all_of_it", "one_task", "two-task", "mine.yaml"])
    with pytest.raises(
        UnavailableError, match=r"one_tas: no task of lm-evaluation-harness 0.0, .*basics_en, basics_ko"
    ):
        benchmarks.require(["one_task", "one_tas"])
    benchmarks.is_known.cache_clear()


# differences


def scores(*runs: str, trained: bool = True, name: str = "t") -> Scores:
    return Scores(
        tuple((name, str(number)) for number in range(len(runs[0]))),
        np.array([[float(sign) for sign in run] for run in runs]),
        trained,
    )


def test_a_difference_is_paired_and_has_a_width_where_nothing_changed() -> None:
    same = difference(scores("1" * 10 + "0" * 10), scores("1" * 10 + "0" * 10, trained=False))
    assert same and same.value == 0 and same.low == pytest.approx(-same.high) and 0.1 < same.high < 0.2
    better = difference(scores("1" * 20), scores("1" * 10 + "0" * 10, trained=False))
    assert better and better.value == 0.5 and better.above
    shifted = difference(scores("1" * 10 + "0" * 10), scores("0" * 10 + "1" * 10, trained=False))
    assert shifted and shifted.value == 0 and shifted.high > 0.3, "equal shares of other questions are uncertain"
    assert difference(scores("11"), scores("11", name="other")) is None


def test_runs_that_differ_widen_the_difference() -> None:
    base = scores("1" * 15 + "0" * 15, trained=False)
    alike = difference(scores(*["1" * 20 + "0" * 10] * 3), base)
    apart = difference(scores("1" * 30, "1" * 20 + "0" * 10, "1" * 10 + "0" * 20), base)
    assert alike and apart and alike.value == pytest.approx(apart.value) == pytest.approx(1 / 6)
    assert apart.high - apart.low > 1.5 * (alike.high - alike.low)
