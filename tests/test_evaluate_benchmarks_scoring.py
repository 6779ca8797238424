"""The shipped benchmarks: their questions and scoring, and that the trained model is the one that
answers."""

import json
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch

from pipelines.evaluate import benchmarks_scoring as scoring
from pipelines.evaluate.answering import PromptedModel
from pipelines.evaluate.benchmarks import BenchmarkSpec, row_of
from pipelines.evaluate.benchmarks_run import own_rows
from pipelines.settings import benchmarks
from pipelines.train.trainer import loading
from pipelines.train.trainer.prompts import PromptFormat
from tests.tiny import ARCHITECTURES, MORE_ARCHITECTURES, TARGETS, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
RECIPE: dict[str, Any] = {"kind": "none", "precision": "fp32", "quantization": None}
SETS = ("basics_en", "basics_ko")


def benchmark_request(name: str = "basics_en", limit: int | None = 6, shots: int | None = None) -> BenchmarkSpec:
    return BenchmarkSpec(name, name, ships=True, limit=limit, shots=shots)


tokenizer_of = cache(tiny_tokenizer)


def prompted_model(model: Any, *, bos: bool = True) -> PromptedModel:
    return PromptedModel(model, PromptFormat(tokenizer_of(bos=bos), "chat"), RECIPE, CPU)


def likelihoods(rows: list[dict[str, Any]]) -> list[list[float]]:
    return [json.loads(row["loglikelihoods"]) for row in rows]


# the sets


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_enough_questions_of_each_kind_and_its_right_answers_stand_everywhere(name: str) -> None:
    questions = benchmarks.questions(name)
    assert len(questions) >= 60
    assert len({one.item_id for one in questions}) == len({one.prompt for one in questions}) == len(questions)
    assert Counter(one.category for one in questions).keys() == {"knowledge", "reasoning", "language"}
    assert all(len(set(one.choices)) == 4 and all(map(str.strip, one.choices)) for one in questions)
    places = Counter(one.answer for one in questions)
    assert sorted(places) == [0, 1, 2, 3] and max(places.values()) - min(places.values()) <= 1
    # A limit asks equally many questions of every kind.
    start = questions[: len(questions) // 3 * 3 // 2]
    assert (
        max(Counter(one.category for one in start).values()) - min(Counter(one.category for one in start).values()) <= 1
    )


def test_shots_are_solved_examples_in_front() -> None:
    plain, shown = benchmarks.questions("basics_en", limit=1)[0], benchmarks.questions("basics_en", limit=1, shots=2)[0]
    front = "Question: Which season comes after winter?\nAnswer: Spring\n\n"
    front += "Question: How many wheels does a bicycle have?\nAnswer: Two\n\n"
    assert shown.prompt == front + plain.prompt
    assert plain.prompt.startswith("Question: ") and plain.prompt.endswith("\nAnswer:")
    assert benchmarks.most_shots("basics_en") == benchmarks.most_shots("basics_ko") == 5


def test_the_choice_with_the_most_nats_for_a_byte_is_picked() -> None:
    question = benchmarks.Question("one", "kind", "Q", ("aaaaaaaa", "bb", "가나", "dddd"), 0)
    row = row_of("set", question, [-4.0, -1.5, -6.0, -4.0])
    # -0.5 per byte; bb has -0.75.
    assert (row["picked"], row["reference"], row["correct"]) == (
        "aaaaaaaa",
        "aaaaaaaa",
        True,
    )
    assert row["margin"] == pytest.approx(-0.5 + 0.75)
    other = row_of("set", question, [-8.0, -1.5, -6.0, -4.0])
    assert (other["picked"], other["correct"], other["margin"]) == ("bb", False, pytest.approx(-1.0 + 0.75))


# scoring


def plainly(model: Any, tokenizer: Any, prompt: str, choice: str, *, first: int = 0) -> float:
    """The plain computation: read question and choice together, and sum the choice's log-
    probabilities.

    `first` tokens of an adapter's own stand before them.
    """
    front, ids = tokenizer.encode(prompt), tokenizer.encode(f"{prompt} {choice}")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, first:]
    log_probs = torch.log_softmax(logits.float(), -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return float(log_probs[len(front) - 1 :].double().sum())


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_neo", "llama", "gemma3_text"])
def test_going_on_from_a_question_is_reading_it_again_for_every_choice(architecture: str) -> None:
    model, messages = tiny_model(architecture), []
    one = prompted_model(model)
    rows, tokens = own_rows(one, benchmark_request("basics_ko", shots=1), max_tokens=300, say=messages.append)
    assert messages == [], "no other way was needed"
    assert tokens > 0
    for question, likelihood in zip(
        benchmarks.questions("basics_ko", limit=6, shots=1), likelihoods(rows), strict=True
    ):
        expected = [plainly(model, one.form.tokenizer, question.prompt, choice) for choice in question.choices]
        assert likelihood == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MORE_ARCHITECTURES])
@pytest.mark.parametrize("max_tokens", [1, 200, 5000])
def test_every_architecture_scores_alike(architecture: str, max_tokens: int) -> None:
    model = tiny_model(architecture)
    one = prompted_model(model)
    rows, _ = own_rows(one, benchmark_request(limit=9), max_tokens=max_tokens)
    for question, likelihood in zip(benchmarks.questions("basics_en", limit=9), likelihoods(rows), strict=True):
        expected = [plainly(model, one.form.tokenizer, question.prompt, choice) for choice in question.choices]
        assert likelihood == pytest.approx(expected, abs=1e-3)


def test_tokens_that_an_adapter_puts_first_stand_before_every_choice() -> None:
    from peft import PromptTuningConfig, get_peft_model

    torch.manual_seed(4)
    model = get_peft_model(tiny_model("llama"), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")).eval()
    one = prompted_model(model)
    rows, _ = own_rows(one, benchmark_request(limit=3), max_tokens=300)
    assert likelihoods(rows) != likelihoods(
        own_rows(prompted_model(tiny_model("llama")), benchmark_request(limit=3), max_tokens=300)[0]
    )
    for question, likelihood in zip(benchmarks.questions("basics_en", limit=3), likelihoods(rows), strict=True):
        expected = [plainly(model, one.form.tokenizer, question.prompt, choice, first=3) for choice in question.choices]
        assert likelihood == pytest.approx(expected, abs=1e-4)


def test_a_cache_that_says_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    one, messages = prompted_model(tiny_model("llama")), []
    good, _ = own_rows(one, benchmark_request(), max_tokens=300)
    shared = scoring._shared
    monkeypatch.setattr(
        scoring, "_shared", lambda *given: [[one + 0.01 for one in scores] for scores in shared(*given)]
    )
    rows, _ = own_rows(one, benchmark_request(), max_tokens=300, say=messages.append)
    for likelihood, expected in zip(likelihoods(rows), likelihoods(good), strict=True):
        assert likelihood == pytest.approx(expected, abs=1e-4)
    assert len(messages) == 1 and "the two differ by 0.01" in messages[0]

    def broken(*_given: Any) -> Any:
        raise NotImplementedError("no such cache")

    monkeypatch.setattr(scoring, "_shared", broken)
    rows, _ = own_rows(one, benchmark_request(), max_tokens=300, say=messages.append)
    for likelihood, expected in zip(likelihoods(rows), likelihoods(good), strict=True):
        assert likelihood == pytest.approx(expected, abs=1e-4)
    assert "NotImplementedError: no such cache" in messages[1]


def test_choices_close_together_are_read_alone_on_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    one, alone = prompted_model(tiny_model("llama")), []
    separately = scoring._separately

    def noted(*arguments: Any, **options: Any) -> Any:
        alone.append(bool(options.get("alone")))
        return separately(*arguments, **options)

    monkeypatch.setattr(scoring, "_separately", noted)
    monkeypatch.setattr(scoring, "_is_close", lambda *_: True)
    good, _ = own_rows(one, benchmark_request(), max_tokens=300)
    assert alone.count(True) == len(good)
    alone.clear()
    monkeypatch.setattr(scoring, "_shared", lambda *_: 1 / 0)
    own_rows(one, benchmark_request(), max_tokens=300)
    assert alone.count(True) == len(good)


def test_weights_that_are_no_numbers_and_questions_that_do_not_fit_are_refused() -> None:
    model = tiny_model("llama")
    model.config.max_position_embeddings = 100
    with pytest.raises(ValueError, match="and the model reads 100: ask with fewer shots"):
        own_rows(prompted_model(model), benchmark_request(shots=5), max_tokens=300)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="of 6 of 6 questions are not finite"):
        own_rows(prompted_model(model), benchmark_request(), max_tokens=300)


# the answering model


def taught(model: Any, tokenizer: Any) -> Any:
    """A PEFT model whose adapter has learned the right answers."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapted = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=64, target_modules=[*TARGETS["llama"], "lm_head"], task_type="CAUSAL_LM")
    )
    learned = []
    for one in benchmarks.questions("basics_en", limit=4):
        front, whole = tokenizer.encode(one.prompt), tokenizer.encode(f"{one.prompt} {one.choices[one.answer]}")
        learned.append((whole, [-100] * len(front) + whole[len(front) :]))
    optimizer = torch.optim.AdamW([weight for weight in adapted.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(20):
        for ids, labels in learned:
            adapted(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted.eval()


def test_an_adapter_changes_the_figures_attached_and_merged_and_one_that_is_not_applied_is_seen() -> None:
    tokenizer = tokenizer_of(bos=True)
    base, _ = own_rows(prompted_model(tiny_model("llama")), benchmark_request(limit=4), max_tokens=300)
    adapted = taught(tiny_model("llama"), tokenizer)
    attached, _ = own_rows(prompted_model(adapted), benchmark_request(limit=4), max_tokens=300)
    with adapted.disable_adapter():
        silent, _ = own_rows(prompted_model(adapted), benchmark_request(limit=4), max_tokens=300)
    merged, _ = own_rows(prompted_model(loading.merged(adapted)), benchmark_request(limit=4), max_tokens=300)
    right = [sum(row["correct"] for row in rows) for rows in (base, attached, merged, silent)]
    assert right[1] == right[2] == 4 and right[0] == right[3] < 4, right
    assert [row["picked"] for row in attached] == [row["picked"] for row in merged]
    for one, other in zip(likelihoods(attached), likelihoods(merged), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for one, other in zip(likelihoods(silent), likelihoods(base), strict=True):
        assert one == pytest.approx(other, abs=1e-4), "an adapter that is off leaves the base's own numbers"
