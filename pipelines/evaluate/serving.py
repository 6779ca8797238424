"""The serving cost of an adapter: merged into the weights, attached to them, or several adapters in
one batch.

Every request gets the same number of new tokens, so that modes and models differ only in speed.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.evaluate.answering import PromptedModel, answer
from pipelines.evaluate.statistics import percentile
from pipelines.runs.clock import Stopwatch
from pipelines.settings.methods import traits_of
from pipelines.train.trainer.measure.memory import peak_bytes, reset_peaks

# Number of requests measured at batch size 1.
SINGLE_REQUESTS = 2
# Copies of one adapter: only their number affects the time.
ADAPTERS = ("default", "second", "third")


def measure(
    prompted_model: PromptedModel, mode: str, prompts: Sequence[list[int]], tokens: int, sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """A row per batch size.

    `p50_latency_ms` is the wait of one request in the batch. `tokens_per_second` counts the new
    tokens of all requests. `peak_memory_gb` is GPU memory on CUDA, else process memory.
    """
    if sizes:
        # The first call warms up the model.
        answer(prompted_model, _batch(prompts, sizes[0]), 2, exactly=True)
    return [_measure(prompted_model, mode, prompts, tokens, size) for size in sizes]


def _measure(
    prompted_model: PromptedModel, mode: str, prompts: Sequence[list[int]], tokens: int, size: int
) -> dict[str, Any]:
    reset_peaks()
    seconds = []
    for start in range(SINGLE_REQUESTS if size == 1 else 1):
        batch = _batch(prompts, size, start)
        clock = Stopwatch()
        answer(prompted_model, batch, tokens, exactly=True)
        seconds.append(clock.total())
    return {
        "mode": mode,
        "batch_size": size,
        "new_tokens": tokens,
        "p50_latency_ms": 1000 * (percentile(seconds, 0.5) or 0.0),
        "tokens_per_second": size * tokens * len(seconds) / sum(seconds),
        "peak_memory_gb": peak_bytes() / 1e9,
    }


def _batch(prompts: Sequence[list[int]], size: int, start: int = 0) -> list[list[int]]:
    return [prompts[(start + i) % len(prompts)] for i in range(size)]


def several_adapters(prompted_model: PromptedModel, trained: Path, size: int) -> PromptedModel:
    """The attached model with more adapters, assigned in turn to the rows of a batch of `size`."""
    for name in ADAPTERS[1:]:
        prompted_model.model.load_adapter(str(trained), adapter_name=name)
    prompted_model.model.eval()
    return replace(prompted_model, more={"adapter_names": [ADAPTERS[i % len(ADAPTERS)] for i in range(size)]})


def one_adapter(prompted_model: PromptedModel) -> None:
    """Remove the additional adapters."""
    for name in ADAPTERS[1:]:
        prompted_model.model.delete_adapter(name)


def why_not_mixed(recipe: dict[str, Any], model: Any) -> str | None:
    """Why a PEFT model cannot use several adapters in one batch; None if it can."""
    if because := traits_of(recipe).why_not_mixed:
        return because
    targets = model.peft_config["default"].target_modules
    if model.config.model_type == "opt" and {"fc1", "fc2"} & set(targets):
        return "OPT flattens batch and length before fc1 and fc2, so PEFT cannot tell the rows apart"
    return None


def is_whole(prompted_model: PromptedModel) -> bool:
    """Whether the model has no separate adapter: it never had one, or the adapter is merged."""
    return not hasattr(prompted_model.model, "peft_config")


def merged(prompted_model: PromptedModel, recipe: dict[str, Any]) -> PromptedModel:
    """The model with its adapter merged into the weights; the input model is unusable afterwards.

    Raises:
        UnavailableError: PEFT cannot merge such an adapter; the input model is unusable here too.
    """
    from pipelines.train.trainer import loading, peft_adapter

    with peft_adapter.in_pefts_words(recipe):
        return replace(prompted_model, model=loading.merged(prompted_model.model).eval())
