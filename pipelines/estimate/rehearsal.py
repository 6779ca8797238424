"""Rehearses a cell's optimizer step without bytes and records every allocation.

The trainer's own batch, head, loss and adapter run on a hollow model. This is the code that trains,
so it keeps the same tensors as training.

Layers of one kind cost the same. So the step is rehearsed twice with few layers, and each stretch
is extrapolated linearly to all layers. The differences between a card and a CPU follow from the
card's number format (`cards.Format`).
"""
# ruff: noqa: TID253

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import astuple, dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import masking_utils

from pipelines.estimate import hollow
from pipelines.estimate.batch import Batch
from pipelines.estimate.card_rules import as_on_cuda
from pipelines.estimate.cards import ASSUMED_MEMORY, Format
from pipelines.estimate.live import Counting, Live, Moment
from pipelines.estimate.optimizer import importance_bytes, state_bytes
from pipelines.settings.methods import traits_of
from pipelines.train.trainer.fast_paths import adapters_are_grouped
from pipelines.train.trainer.losses import head_on_positions, step_loss

# Layers of the two rehearsals. The numbers are even because gpt-neo's layers alternate.
FEW_LAYERS, MORE_LAYERS = 2, 4
# A micro-batch that takes almost no memory of its own.
SHORTEST = Batch(rows=1, length=2, learned=1)
# The stretches before half of the gradients exist.
EARLY = ("forward 1", "backward 1")
Device = Literal["cpu"] | Format


@dataclass(frozen=True)
class Counted:
    """The bytes of a step and the numbers of parameters.

    `quantized`: the number of weights in 4 or 8 bits.
    `largest`: the bytes of the largest trained tensor.
    `moments`: the moment with the most live bytes of each stretch of the step.
    `early`, `late`: the largest of these moments before and after half of the gradients exist, in
        the rehearsed layers.
    `replaced`: the bytes of the base's weights that the adapter replaced when it was initialized.
    `grouped`: the adapters are computed together, by trainer/adapters.py.
    `fixed`: for other adapters, the bytes of activations in small blocks that are equal in every
        micro-batch, such as merged weights.
    """

    weights: float
    trainable: float
    optimizer: float
    quantized: float
    parameters: float
    largest: float
    moments: dict[str, Moment] = field(default_factory=dict)
    early: Moment = field(default_factory=Moment)
    late: Moment = field(default_factory=Moment)
    replaced: float = 0
    fixed: float = 0
    grouped: bool = False

    @property
    def peak(self) -> Moment:
        return _largest(self.moments.values())

    def trained_bytes(self) -> float:
        # Trained weights are kept in float32.
        return 4 * self.trainable


def _largest(moments: Iterable[Moment]) -> Moment:
    return max(moments, key=lambda moment: moment.total, default=Moment())


def rehearse(config: Any, recipe: dict[str, Any], batches: Sequence[Batch], device: Device) -> Counted:
    """Count the memory of one optimizer step over `batches` (its micro-batches in order) on
    `device`, for the model in `config`."""
    layers = config.num_hidden_layers
    if layers <= MORE_LAYERS or not _layers_are_alike(config):
        return _rehearse(config, recipe, batches, device)
    few, more = (_rehearse(_with_layers(config, n), recipe, batches, device) for n in (FEW_LAYERS, MORE_LAYERS))
    return _extrapolate(few, more, (layers - MORE_LAYERS) / (MORE_LAYERS - FEW_LAYERS))


def _layers_are_alike(config: Any) -> bool:
    """Whether all layers are of one kind, or two kinds alternate."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or []
    return len(set(kinds)) < 2 or (len(set(kinds)) == 2 and all(a != b for a, b in pairwise(kinds)))


def _with_layers(config: Any, layers: int) -> Any:
    shorter = copy.deepcopy(config)
    shorter.num_hidden_layers = layers
    for name in ("layer_types", "attention_layers"):
        if getattr(shorter, name, None):
            setattr(shorter, name, getattr(shorter, name)[:layers])
    return shorter


def _extrapolate(few: Counted, more: Counted, steps: float) -> Counted:
    def line(a: float, b: float) -> float:
        return b + (b - a) * steps

    def extrapolated(one: Moment, other: Moment) -> Moment:
        return Moment(*map(line, astuple(one), astuple(other)))

    moments = {name: extrapolated(few.moments.get(name, Moment()), moment) for name, moment in more.moments.items()}
    early, late = extrapolated(few.early, more.early), extrapolated(few.late, more.late)
    names = ("weights", "trainable", "optimizer", "quantized", "parameters", "replaced", "fixed")
    sums = {name: line(getattr(few, name), getattr(more, name)) for name in names}
    largest = max(few.largest, more.largest)
    return Counted(**sums, largest=largest, moments=moments, early=early, late=late, grouped=more.grouped)


def _live(tensors: Iterable[Any], trained: Sequence[Any]) -> Live:
    """An account of the live bytes besides the tensors of a model, gradients included."""
    live = Live(len(trained))
    for tensor in tensors:
        live.ignore(tensor)
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(lambda p: live.gradient(p.grad))
    return live


def _rehearse(config: Any, recipe: dict[str, Any], batches: Sequence[Batch], device: Device) -> Counted:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    model = hollow.build(config, recipe, weights_dtype(recipe, device), fake, on_card=device != "cpu")
    tensors = hollow.tensors_of(model)
    trained = [p for p in model.parameters() if p.requires_grad and traits_of(recipe).trains]
    live = _live(tensors, trained)
    grouped = adapters_are_grouped(model)
    shortest = [SHORTEST] if traits_of(recipe).has_adapter and not grouped else []
    if trained:
        with _kernels(recipe, device):
            _forward_backward(model, [*batches, *shortest], live, fake, _autocast(recipe, device))
    fixed = _pop_stretches(live, len(batches) + 1)
    early = [live.moments[name] for name in EARLY if name in live.moments]
    late = [moment for name, moment in live.moments.items() if name not in EARLY]
    quantized = hollow.quantized_sizes(model)
    sizes = [p.numel() for p in trained]
    return Counted(
        weights=sum(t.numel() * t.element_size() for t in tensors),
        trainable=sum(sizes),
        optimizer=state_bytes(sizes, recipe["optimizer"]) + importance_bytes(sizes, recipe),
        quantized=sum(quantized),
        parameters=sum(p.numel() for p in model.parameters() if p.dtype != torch.uint8) + sum(quantized),
        largest=4 * max(sizes, default=0),
        moments=live.moments,
        early=_largest(early),
        late=_largest(late),
        replaced=getattr(model, "replaced_bytes", 0),
        fixed=fixed,
        grouped=grouped,
    )


def _pop_stretches(live: Live, number: int) -> float:
    """Remove the stretches of micro-batch `number` from the account; return its most bytes of
    activations in small blocks."""
    names = [name for name in live.moments if name.split(",")[0] in (f"forward {number}", f"backward {number}")]
    moments = [live.moments.pop(name) for name in names]
    return max((max(0.0, moment.activations - moment.large) for moment in moments), default=0)


def weights_dtype(recipe: dict[str, Any], device: Device) -> torch.dtype:
    """The dtype of the weights as the trainer chooses it: `full` keeps float32, LoRA a base in
    its compute format."""
    return torch.float32 if traits_of(recipe).trains_all or not computes_in_half(recipe, device) else torch.bfloat16


def computes_in_half(recipe: dict[str, Any], device: Device) -> bool:
    """Whether matrix products are in half precision; `auto` means float32 on a CPU.

    bfloat16 also stands for float16, which has the same width.
    """
    return recipe["precision"] in ("bf16", "fp16") if device == "cpu" else device != "fp32"


def autocasts(recipe: dict[str, Any], device: Device) -> bool:
    """Whether steps run under autocast: float32 weights that compute in half precision.

    A frozen base is in half precision itself, and so are its norms.
    """
    return traits_of(recipe).trains_all and computes_in_half(recipe, device)


def _autocast(recipe: dict[str, Any], device: Device) -> Callable[[], AbstractContextManager[Any]]:
    """The autocast of each forward pass. It caches the cast weights until its end, except with
    gradient checkpointing."""
    on, keeps = autocasts(recipe, device), not recipe["gradient_checkpointing"]
    return lambda: torch.autocast("cpu", dtype=torch.bfloat16, enabled=on, cache_enabled=keeps)


def _kernels(recipe: dict[str, Any], device: Device) -> AbstractContextManager[Any]:
    """The kernels of `device`.

    Flash attention needs cards with bfloat16. Older cards, and float32, use memory-efficient
    attention, which needs a key and a value for each query.
    """
    if device == "cpu":
        return nullcontext()
    return as_on_cuda(
        norms_in_float32=autocasts(recipe, device), grouped_queries=device == "bf16", memory=ASSUMED_MEMORY[device]
    )


def groups_queries(config: Any) -> bool:
    """Whether several query heads share a key (grouped-query attention)."""
    heads = getattr(config, "num_attention_heads", None)
    return getattr(config, "num_key_value_heads", None) not in (None, heads)


class _NoPadding(TorchFunctionMode):
    """Answers no to the question whether a fake tensor contains a value. transformers asks it to
    warn about padding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__contains__:
            return False
        return func(*args, **(kwargs or {}))


@contextmanager
def _one_example_a_row() -> Iterator[None]:
    """Tell transformers that a row holds one example. It searches the positions for more, and
    builds a mask if it cannot."""
    original = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = original


def _forward_backward(
    model: Any,
    batches: Sequence[Batch],
    live: Live,
    fake: FakeTensorMode,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Run the micro-batches of one optimizer step on the fake tensors of `model`, and record them
    in `live`.

    Batch and positions are real tensors, so the number of learned tokens is known.
    """
    model.train()
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with fake, Counting(live), _NoPadding():
            return plain(*args, **kwargs)

    model.forward = forward
    try:
        with _one_example_a_row(), head_on_positions(model) as positions:
            for number, batch in enumerate(batches, start=1):
                live.begin(f"forward {number}")
                with Counting(live), autocast():
                    loss = step_loss(model, batch.examples(), positions, torch.device("cpu"), learned=1)
                live.begin(f"backward {number}")
                with fake, Counting(live):
                    loss.backward()
                del loss
    finally:
        del model.forward
