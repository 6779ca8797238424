"""Cells of models with templates of their own: what a template cannot show costs only its own
numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.compare.compare import compare
from pipelines.compare.table import comparison_rows
from pipelines.evaluate import serving
from pipelines.evaluate.cell import evaluate
from pipelines.lake.files import read_jsonl
from pipelines.runs.cells import Attempt, CellKey, Evaluation
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train
from tests.in_process import InProcess, clean_for
from tests.project import MODEL, TinyProject
from tests.tiny import CHATML, tiny_model, tiny_tokenizer

ONE_QUESTION = "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}" + CHATML
THINKING = CHATML.replace(
    "{% if add_generation_prompt %}<|im_start|>assistant\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
).replace(
    "{{ message['content'] }}",
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ message['content'] }}",
)
QUESTIONS = ["A heron?", "An otter?", "A newt?", "A crane?", "A carp?"]
SHORT = [
    {"instruction": q, "output": f"It lives by the water, and this is number {i}."} for i, q in enumerate(QUESTIONS)
]
TALK = [
    {"role": "user", "content": "Where does a toad sleep?"},
    {"role": "assistant", "content": "Under a stone."},
    {"role": "user", "content": "And in winter?"},
    {"role": "assistant", "content": "In the mud, until it is warm."},
]


def save_model(folder: Path, template: str) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def two(project: TinyProject, tmp_path: Path) -> TinyProject:
    """Two models; the second, `other`, refuses a second question.

    One evaluation record in four asks one, and so does one training record.
    """
    lines = [*SHORT[:3], {"messages": TALK}]
    (tmp_path / "held-out.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    more = [{**turn, "content": turn["content"].replace("toad", "frog").replace("stone", "root")} for turn in TALK]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, [*SHORT[3:], {"messages": more}])), encoding="utf-8")
    other = save_model(tmp_path / "other", ONE_QUESTION)
    project.change(
        models={"other": {"source": {"path": str(other)}, "prompt": "chat", "lora_targets": ["q_proj", "v_proj"]}},
        profiles={
            "local": {
                "models": [MODEL, "other"], "methods": ["base", "lora-r8"], "languages": None, "max_train_examples": None,
                "max_eval_examples": None,
                "evaluation": {"answers": 1, "latency_answers": 1, "serving_batch": 2, "serving_tokens": 2, "general_texts": 1},
            }
        },
        sources={
            "corpus": False, "files": [str(tmp_path / "more.jsonl")], "eval_files": [str(tmp_path / "held-out.jsonl")],
        },
        cleaning={"min_train_examples": 1, "min_eval_examples": 1},
    )  # fmt: skip
    return clean_for(project)


def measured(project: TinyProject, model: str, method: str = "lora-r8") -> tuple[Attempt, Evaluation | None, list[str]]:
    lines: list[str] = []
    stage, key, hooks = project.now(), CellKey(model, method, 1), RunHooks(say=lines.append, launcher=InProcess())
    attempt, _ = train(stage.resolve(), key, force=True, hooks=hooks)
    evaluation = evaluate(stage.resolve(), key, hooks=hooks)[0] if attempt.status == "ok" else None
    return attempt, evaluation, lines


def result_of(evaluation: Evaluation | None) -> dict[str, Any]:
    assert evaluation and evaluation.ok, evaluation and evaluation.result
    return dict(evaluation.result.measured)


def test_a_record_that_one_template_cannot_show_costs_that_record(
    two: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt, evaluation, _ = measured(two, "other")
    assert attempt.status == "ok", attempt.result.detail
    output = capsys.readouterr().out
    assert attempt.result.measured["unshown_share"] == pytest.approx(1 / 3)
    assert (
        "WARNING: the model's chat template cannot show 1 of 3 training records" in output
        and "one question only" in output
    )
    assert "other: 0 evaluation records are too long, 1 cannot be shown; no model is measured on them" in output
    first, _, _ = measured(two, MODEL)
    assert first.result.measured["unshown_share"] == 0
    ours, theirs = result_of(measured(two, MODEL)[1]), result_of(evaluation)
    assert (ours["eval_set"], ours["eval_records"]) == (theirs["eval_set"], 3)
    assert ours["eval_records_left_out"] == 1


def test_a_model_that_can_show_nothing_fails_alone(
    two: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "other", "{{ raise_exception('nothing at all') }}")
    attempt, _, _ = measured(two, "other")
    assert attempt.status == "failed" and "nothing at all" in attempt.result.detail
    assert result_of(measured(two, MODEL)[1])["eval_records"] == 4
    assert "other: can read none of 4 evaluation records" in capsys.readouterr().out


def test_a_model_whose_tokenizer_does_not_load_fails_alone(
    two: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other" / "tokenizer.json").write_text("{", encoding="utf-8")
    attempt, _, _ = measured(two, "other")
    assert attempt.status == "failed"
    assert result_of(measured(two, MODEL)[1])["eval_records"] == 4
    assert "other: its tokenizer fails" in capsys.readouterr().out


def test_a_template_that_rewrites_earlier_turns_is_learned_answer_by_answer(two: TinyProject, tmp_path: Path) -> None:
    save_model(tmp_path / "other", THINKING)
    attempt, evaluation, _ = measured(two, "other")
    assert attempt.status == "ok", attempt.result.detail
    # Two questions, and two answers of a conversation.
    assert attempt.result.measured["train_examples"] == 4
    result = result_of(evaluation)
    assert json.loads(result["template_arguments"]) == {"enable_thinking": False}
    assert evaluation and result["eval_records"] == 4
    losses = {row["example_id"]: row for row in read_jsonl(evaluation.folder / "losses.jsonl")}
    # One row per record, however many examples it makes.
    assert len(losses) == 4
    answers = "Under a stone." + "In the mud, until it is warm."
    assert max(row["bytes"] for row in losses.values()) >= len(answers.encode())
    rows = {(row["model"], row["method"]): row for row in comparison_rows(two.resolved())}
    row = rows["other", "lora-r8"]
    assert (row["unshown_share"], row["template_arguments"]) == (0, '{"enable_thinking": false}')


def test_of_those_the_last_alone_where_the_settings_say_so(two: TinyProject, tmp_path: Path) -> None:
    save_model(tmp_path / "other", THINKING)
    two.change(models={"other": {"turns": "last"}})
    attempt, _, _ = measured(two, "other")
    assert attempt.result.measured["train_examples"] == 3


def test_a_part_that_cannot_be_measured_leaves_its_numbers_empty_and_says_why(
    two: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no such kernel\nand much more")

    monkeypatch.setattr(serving, "measure", broken)
    _, evaluation, _ = measured(two, MODEL, "base")
    result = result_of(evaluation)
    assert result["eval_bits_per_byte"] > 0 and result["general_bits_per_byte"] > 0 and "p50_latency_ms" not in result
    compare(two.now())
    (row,) = [row for row in comparison_rows(two.resolved()) if (row["model"], row["method"]) == (MODEL, "base")]
    assert (row["status"], row["p50_latency_ms"]) == ("ok", None) and row["eval_bits_per_byte"] > 0
    assert row["status_detail"] == "not measured: serving and latency (RuntimeError: no such kernel)"
