"""A trained result as plain weights: the adapter merged into its base, and the resulting
difference."""
# ruff: noqa: TID253

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import WorkError
from pipelines.evaluate.scores import bits_per_byte
from pipelines.extras.export import older
from pipelines.extras.export.adapter import unfinished
from pipelines.settings.methods import traits_of
from pipelines.train.trainer import batches, loading, peft_adapter, tensor_file
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.losses import head_on_positions, scored_mask, token_losses
from pipelines.train.trainer.precision import result_dtype

Recipe = dict[str, Any]

# Bounds on the change of a word's ln p by rounding. A logit has a size of at most 60 and an error
# of about its format's unit roundoff. Errors of layers add up like a random walk: 64 layers have 8
# times the error of one. Float32 needs a floor, since another summation order in long rows changes
# more than the last digit.
LARGEST_LOGIT, OF_LAYERS, FLOOR = 60, 8, 0.02
# LLM.int8() also rounds the inputs of a layer; plain weights do not.
INT8_ROUNDOFF = 2**-8


def trained_model(base: Path, recipe: Recipe, trained: Path | None) -> Any:
    """The model as in evaluation: the base in its recipe's format, with the adapter attached."""
    return loading.load_trained(base, recipe, trained)


def merged_model(
    base: Path, recipe: Recipe, trained: Path | None, *, original: bool = False, compared: Sequence[Tokenized] = ()
) -> Any:
    """The trained result as plain weights, on the CPU.

    An adapter is merged in float32 into the base that it was trained on; for QLoRA that is the
    dequantized base, or with `original` the base before quantization. The result is converted to
    the format of the recipe's weights. A GPU needs memory only for the packed weights, and the host
    for one model in float32.

    Raises:
        WorkError: merging changed the predictions on the `compared` examples already in float32,
            before any rounding.
    """
    if not trained or not traits_of(recipe).has_adapter:
        return trained_model(base, recipe, trained)
    model = loading.load_model(base, {**recipe, "quantization": None}, on_device=False).float()
    if recipe["quantization"] and not original:
        copy_unpacked(model, loading.load_model(base, recipe))
    attached = loading.attach_trained(model, trained).eval()
    before = probabilities(attached, compared)
    with peft_adapter.in_pefts_words(recipe):
        merged = loading.merged(attached)
    require_alike(largest_difference(before, probabilities(merged, compared)), FLOOR)
    return merged.to(result_dtype(recipe)).eval()


def copy_unpacked(model: Any, packed: Any) -> None:
    """Copy the dequantized values of each packed linear layer into `model`."""
    from transformers.pytorch_utils import Conv1D

    for name, module in packed.named_modules():
        values = unpacked(module)
        if values is not None:
            plain = model.get_submodule(name)
            # GPT-2's weights are inputs × outputs.
            plain.weight.data.copy_(values.T if isinstance(plain, Conv1D) else values)


def unpacked(module: Any) -> torch.Tensor | None:
    """The weight (outputs × inputs, float32) of a bitsandbytes layer; None for any other layer."""
    from bitsandbytes import functional
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    weight: Any = getattr(module, "weight", None)
    if isinstance(module, Linear4bit):
        return functional.dequantize_4bit(weight.data, weight.quant_state).float()
    if isinstance(module, Linear8bitLt):
        scales: Any = weight.SCB if weight.SCB is not None else module.state.SCB
        return weight.data.float() * scales.float().unsqueeze(1) / 127
    return None


def write(model: Any, tokenizer: Any, folder: Path, stops: Sequence[int]) -> Path:
    """Write a transformers folder beside `folder` under a temporary name, completely or not at all.

    `stops` are the ids that end an answer.
    """
    with unfinished(folder) as partial:
        with tensor_file.used_by_transformers():
            model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        older.make_readable(partial, stops)
    return partial


def saved_model(folder: Path, recipe: Recipe) -> Any:
    """The model loaded from a written folder, in the format of the recipe's weights."""
    return loading.load_model(folder, {**recipe, "quantization": None}, dtype=result_dtype(recipe)).eval()


def require_alike(difference: float, limit: float) -> None:
    """Raise WorkError if `difference`, the largest change of a word's ln p, exceeds `limit`
    nats."""
    # The comparison rejects NaN too.
    if not difference <= limit:
        raise WorkError(
            f"the merged model differs from the trained result: ln p of a word differs by up to {difference:.3g} nats, and "
            f"rounding explains {limit:.2g} at most. The merged model is removed; the adapter itself is intact"
        )


def rounding(recipe: Recipe) -> float:
    """The largest change of a word's ln p (nats) by rounding of the weights, and of int8's
    inputs."""
    roundoff = torch.finfo(result_dtype(recipe)).eps / 2
    if recipe["quantization"] == "int8":
        roundoff = max(roundoff, INT8_ROUNDOFF)
    return max(FLOOR, LARGEST_LOGIT * OF_LAYERS * roundoff)


def measured_bits_per_byte(model: Any, examples: Sequence[Tokenized], max_tokens: int) -> float:
    """Bits per byte of the examples' completions, computed as in evaluation."""
    nats, device = 0.0, device_of(model)
    with head_on_positions(model) as head_positions, torch.no_grad():
        for batch in batches.micro_batches(list(examples), max_tokens=max_tokens):
            losses = token_losses(model, batch, head_positions, device).double().cpu()
            nats += losses[scored_mask(batch)].sum().item()
    return bits_per_byte(nats, sum(example.completion_bytes for example in examples))


def device_of(model: Any) -> torch.device:
    return next(model.parameters()).device


def probabilities(model: Any, examples: Sequence[Tokenized]) -> list[torch.Tensor]:
    """ln p of every vocabulary entry after every token of each example (positions × vocabulary,
    float32)."""
    results = []
    with torch.no_grad():
        for example in examples:
            logits = model(torch.tensor([example.input_ids], device=device_of(model)), use_cache=False).logits[0]
            results.append(logits.float().log_softmax(-1).cpu())
    return results


def largest_difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """The largest difference of two models' ln p (nats); NaN if any value is NaN."""
    differences = [(a - b).abs().max().item() for a, b in zip(one, other, strict=True)]
    return math.nan if any(map(math.isnan, differences)) else max(differences, default=0.0)
