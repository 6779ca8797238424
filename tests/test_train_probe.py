"""The probe before training finds settings that do not fit, costs a few micro-batches, and leaves
no trace."""

import random
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from pipelines.estimate import batch as estimate
from pipelines.train.trainer import batches, loop
from pipelines.train.trainer.examples import Tokenized
from tests.in_process import clean_for, trained
from tests.project import TinyProject
from tests.test_project_restart import outcome
from tests.test_runs_cells import CPU_MESSAGE


@pytest.fixture
def cleaned(project: TinyProject) -> TinyProject:
    """A project whose steps take several micro-batches each."""
    project.change(profiles={"local": {"training": {"micro_batch_tokens": 200}}})
    return clean_for(project)


def example(name: str, tokens: int, learned: int) -> Tokenized:
    labels = [-100] * (tokens - learned) + [1] * learned
    return Tokenized(name, [1] * tokens, labels, [True] * tokens, 1)


@pytest.mark.parametrize("method", ["full", "full-8bit", "lora-r8", "qlora-r8"])
def test_a_probed_cell_ends_in_the_bits_of_one_that_was_not(
    cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    probed = trained(cleaned, method)
    expected, measured = outcome(probed), probed.result.measured
    assert measured["probe_seconds"] > 0 and measured["probe_peak_memory_gb"] > 0.1
    monkeypatch.setattr(loop.Trainer, "_probe", lambda _trainer: None)
    assert outcome(trained(cleaned, method)) == expected


def test_what_does_not_fit_is_out_of_memory_in_the_probe_with_the_bytes(
    cleaned: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def refuse_second(_optimizer: Any, *_: Any, **__: Any) -> None:
        steps.append(1)
        # Adam's states exist by then.
        if len(steps) == 2:
            raise RuntimeError(CPU_MESSAGE)

    monkeypatch.setattr(torch.optim.AdamW, "step", refuse_second)
    result = trained(cleaned, "full").result
    assert (result.status, result.phase, result.bytes_requested) == ("out_of_memory", "probe", 123)
    assert result.measured.get("last_step") is None and result.measured["load_peak_memory_gb"] > 0


CONFIG = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 250_000}


def heaviest(plan: list[list[Tokenized]], architecture: str, *, max_tokens: int) -> list[list[str]]:
    recipe = {"micro_batch_tokens": max_tokens, "gradient_checkpointing": False}
    groups = batches.heaviest(plan, AutoConfig.for_model(architecture, **CONFIG), recipe)
    return [[one.example_id for one in batch] for batch in groups]


def test_probed_are_the_heaviest_micro_batch_of_those_that_begin_a_step_and_of_those_that_follow() -> None:
    long, short, middle = example("long", 100, 20), example("short", 10, 5), example("mid", 50, 10)
    plan = [[short, example("s2", 12, 5)], [long, short, middle]]
    assert heaviest(plan, "llama", max_tokens=100) == [["long"], ["mid", "short"]]
    assert heaviest(plan, "llama", max_tokens=10_000) == [["long", "mid", "short"]]
    two_of_60 = [example("a", 60, 10), example("b", 60, 20)]
    # A later micro-batch may be heavier than the step's first one.
    assert heaviest([[long, *two_of_60], plan[1]], "llama", max_tokens=120) == [["long"], ["a", "b"]]


def test_learned_tokens_weigh_where_the_logits_are_made_whole_and_else_decide_between_equals() -> None:
    wordy, long, silent = example("wordy", 60, 50), example("long", 70, 5), example("silent", 70, 4)
    assert heaviest([[wordy], [silent], [long]], "llama", max_tokens=100) == [["long"]]
    assert heaviest([[wordy], [silent], [long]], "cohere", max_tokens=100) == [["wordy"]]


def test_the_prediction_counts_the_micro_batches_that_the_probe_takes() -> None:
    chance = random.Random(3)
    examples = [example(str(n), length := chance.randint(20, 300), chance.randint(1, length - 1)) for n in range(60)]
    recipe = {
        "micro_batch_tokens": 700, "gradient_checkpointing": True, "max_length": 300, "epochs": 2, "examples_per_step": 8,
    }  # fmt: skip
    config = AutoConfig.for_model("llama", **CONFIG)
    plan = batches.steps(examples, epochs=2, per_step=8, seed=5)
    probed = [estimate.batch_of(batch) for batch in batches.heaviest(plan, config, recipe)]
    assert estimate.heaviest(examples, recipe, [5], config) == probed
    every = [batch for step in plan for batch in batches.micro_batches(step, max_tokens=700)]
    assert max(one.tokens for one in probed) == max(estimate.batch_of(batch).tokens for batch in every)


def test_smaller_micro_batches_are_halves_that_cut_otherwise_down_to_the_longest_example() -> None:
    plan = [[example("a", 50, 5), example("b", 40, 5), example("c", 30, 5)]]
    # The micro-batch has 150 tokens, so 512 and 256 would change nothing.
    assert batches.smaller(plan, max_tokens=1024) == 128
    assert batches.smaller(plan, max_tokens=128) == 64
    assert [len(batch) for batch in batches.micro_batches(plan[0], max_tokens=64)] == [1, 1, 1]
    assert batches.smaller(plan, max_tokens=64) is None
    twice_40 = [[*plan[0][:2], example("d", 40, 5)]]
    assert [batches.smaller(twice_40, max_tokens=size) for size in (80, 50)] == [50, None]
    assert batches.smaller([[one] for one in plan[0]], max_tokens=1024) is None
