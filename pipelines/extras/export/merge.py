"""A trained result as plain weights: the adapter worked into the base that it was trained on, and what that changes."""
# ruff: noqa: TID253

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import WorkError
from pipelines.evaluate.scores import bits_per_byte
from pipelines.extras.export import older
from pipelines.settings.methods import traits_of
from pipelines.train.trainer import batches, loading, peft_adapter, tensor_file
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.losses import head_on_positions, scored_mask, token_losses
from pipelines.train.trainer.precision import result_dtype

Recipe = dict[str, Any]

# What rounding alone may change ln p of a word by. A logit, of size 60 at most, is off by about its format's unit roundoff, and
# errors of the layers add up as a random walk does: 8 times that of one for 64 layers. Float32 has a floor, since sums that are
# taken in another order differ by more than their last digit in long rows.
LARGEST_LOGIT, OF_LAYERS, FLOOR = 60, 8, 0.02
INT8_ROUNDOFF = 2**-8  # LLM.int8() rounds what goes into a layer, too; plain weights do not


def trained_model(base: Path, recipe: Recipe, trained: Path | None) -> Any:
    """The model as evaluation runs it: the base in its recipe's format, the adapter beside it."""
    return loading.load_trained(base, recipe, trained)


def merged_model(
    base: Path, recipe: Recipe, trained: Path | None, *, original: bool = False, compared: Sequence[Tokenized] = ()
) -> Any:
    """The same as plain weights, on the CPU. An adapter is merged in float32 into the base that it was trained on, for QLoRA the
    base that its packed weights stand for; with `original` into the base as it was before quantizing. Then back to the format of
    the recipe's weights. A card need hold no more than the packed weights, and the host one model in float32.

    Raises:
        WorkError: in float32, so before any rounding, merging changed what the model says of the `compared` examples.
    """
    if not trained or not traits_of(recipe).has_adapter:
        return trained_model(base, recipe, trained)
    model = loading.load_model(base, {**recipe, "quantization": None}, on_device=False).float()
    if recipe["quantization"] and not original:
        take_unpacked(model, loading.load_model(base, recipe))
    attached = loading.attach_trained(model, trained).eval()
    before = probabilities(attached, compared)
    with peft_adapter.in_pefts_words(recipe):
        merged = loading.merged(attached)
    require_alike(largest_difference(before, probabilities(merged, compared)), FLOOR)
    return merged.to(result_dtype(recipe)).eval()


def take_unpacked(model: Any, packed: Any) -> None:
    """Give each linear layer of `model` the values that its packed counterpart stands for."""
    from transformers.pytorch_utils import Conv1D

    for name, module in packed.named_modules():
        values = unpacked(module)
        if values is not None:
            plain = model.get_submodule(name)
            plain.weight.data.copy_(values.T if isinstance(plain, Conv1D) else values)  # GPT-2's are inputs × outputs


def unpacked(module: Any) -> torch.Tensor | None:
    """The weight (outputs × inputs, float32) of a layer of bitsandbytes; None for any other."""
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
    """A transformers folder beside `folder`, under another name, whole or not at all. `stops`: the ids that end an answer."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tensor_file.used_by_transformers():
            model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        older.make_readable(partial, stops)
    except BaseException:  # a stop, too: half a model is large
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return partial


def saved_model(folder: Path, recipe: Recipe) -> Any:
    """What somebody loads from a written folder, in the format of the recipe's weights."""
    return loading.load_model(folder, {**recipe, "quantization": None}, dtype=result_dtype(recipe)).eval()


def require_alike(difference: float, most: float) -> None:
    """Raises WorkError where ln p of a word differs between the trained result and what was made of it by more than `most` nats."""
    if not difference <= most:  # NaN too
        raise WorkError(
            f"the merged model is not the trained result: ln p of a word differs by up to {difference:.3g} nats, and rounding "
            f"makes {most:.2g} at most. Nothing of it is kept; the adapter itself is whole"
        )


def rounding(recipe: Recipe) -> float:
    """The most that ln p of a word may differ (nats) by rounding to the format of the recipe's weights, and of int8's inputs."""
    roundoff = torch.finfo(result_dtype(recipe)).eps / 2
    if recipe["quantization"] == "int8":
        roundoff = max(roundoff, INT8_ROUNDOFF)
    return max(FLOOR, LARGEST_LOGIT * OF_LAYERS * roundoff)


def measured_bits_per_byte(model: Any, examples: Sequence[Tokenized], max_tokens: int) -> float:
    """Bits per byte of the examples' completions, in the format of the model's weights, as evaluation computes them."""
    nats, device = 0.0, device_of(model)
    with head_on_positions(model) as wanted, torch.no_grad():
        for batch in batches.micro_batches(list(examples), max_tokens=max_tokens):
            losses = token_losses(model, batch, wanted, device).double().cpu()
            nats += losses[scored_mask(batch)].sum().item()
    return bits_per_byte(nats, sum(example.completion_bytes for example in examples))


def device_of(model: Any) -> torch.device:
    return next(model.parameters()).device


def probabilities(model: Any, examples: Sequence[Tokenized]) -> list[torch.Tensor]:
    """ln p of every word after every token of each example (positions × words, float32)."""
    found = []
    with torch.no_grad():
        for example in examples:
            logits = model(torch.tensor([example.input_ids], device=device_of(model)), use_cache=False).logits[0]
            found.append(logits.float().log_softmax(-1).cpu())
    return found


def largest_difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """The most that two models' ln p of the words differ (nats); NaN where one is no number."""
    found = [(a - b).abs().max().item() for a, b in zip(one, other, strict=True)]
    return math.nan if any(map(math.isnan, found)) else max(found, default=0.0)
