"""The probe before training: it finds what does not fit, costs a few micro-batches, and leaves no trace."""

from typing import Any

import pytest
import torch

from pipelines.train import batches, loop, probe
from pipelines.train.examples import Tokenized
from tests.in_process import clean_for, trained
from tests.project import TinyProject
from tests.test_cells import CPU_MESSAGE
from tests.test_restart import outcome


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
        if len(steps) == 2:  # Adam's states are there by then
            raise RuntimeError(CPU_MESSAGE)

    monkeypatch.setattr(torch.optim.AdamW, "step", refuse_second)
    result = trained(cleaned, "full").result
    assert (result.status, result.phase, result.bytes_requested) == ("out_of_memory", "probe", 123)
    assert result.measured.get("last_step") is None and result.measured["load_peak_memory_gb"] > 0


def test_the_heaviest_micro_batch_is_probed_after_a_light_one_where_steps_accumulate() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=600)
    long, short = example("long", 100, 20), example("short", 10, 5)
    plan = [[short, example("s2", 12, 5)], [long, short, example("mid", 50, 10)]]
    light, heavy = probe.heaviest(plan, config, max_tokens=100)
    assert [e.example_id for e in heavy] == ["long"] and [e.example_id for e in light] == ["short"]
    assert probe.heaviest(plan, config, max_tokens=10_000) == [batches.micro_batches(plan[1], max_tokens=10_000)[0]]


def test_many_learned_tokens_weigh_more_than_length_where_the_vocabulary_is_large() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=250_000)
    wordy, long = example("wordy", 60, 50), example("long", 70, 5)
    assert probe.heaviest([[wordy], [long]], config, max_tokens=100) == [[wordy]]
