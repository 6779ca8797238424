"""Converts counted bytes into the measured memory of a process or a card. All sizes are in bytes
unless a name says otherwise.

On a CPU, resident memory is the sum of the process before it loads a model, the weights, the
optimizer states, the largest heap and the large blocks. The heap holds small blocks; glibc
fragments it and returns hardly any of it. Large blocks come and go. On a card, the allocator's peak
is the larger of the backward pass and the optimizer's step.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pipelines.estimate.optimizer import transient_bytes
from pipelines.settings.methods import traits_of

Device = Literal["cpu", "cuda"]
# Unused heap as a share of the small activations and gradients, once the heap has grown to its
# size, which takes some steps. glibc's free blocks do not fit the same request again, because an
# aligned request needs more than it uses. PEFT's own adapters fragment the heap far more than those
# that trainer/adapters.py computes together: many of their short-lived tensors lie between kept
# ones. Blocks of equal sizes in every micro-batch, such as merged weights, fit again better.
# FIXED_SHARE for them lies between SHiRA's copies, which leave no gaps, and FourierFT's spectra,
# which leave many. The values are fitted to SmolLM2's cells; `python -m benchmarks estimate` and
# `estimate --adapters` measure their error there and elsewhere.
HEAP_SLACK = {"none": 0.0, "full": 0.7, "adapter": 0.6, "grouped adapter": 0.35}
FIXED_SHARE = 0.3


@dataclass(frozen=True)
class Prediction:
    """Peak memory of training and of loading in bytes, and its parts. `pageable` may move from a
    card to the host."""

    train: float
    load: float
    framework: float
    weights: float
    gradients: float
    optimizer: float
    activations: float
    slack: float
    pageable: float = 0

    @property
    def peak(self) -> float:
        return max(self.train, self.load)


def on_cpu(counted: Any, recipe: dict[str, Any], *, framework: float, file_width: int) -> Prediction:
    """Predict the memory of a process that trains on a CPU.

    `framework` is the resident memory of a process that has loaded all libraries but no model.
    `file_width` is the bytes of a weight in its file. The file stays mapped until all used weights
    are converted or quantized.
    """
    # A float32 file stays mapped while one weight still lies in it. Its replaced weights then count
    # besides their replacements.
    mapped = 0 if counted.quantized or file_width != 4 else counted.replaced
    weights = counted.weights + mapped
    if file_width != 4:
        load = framework + weights + file_width * counted.parameters
    elif counted.quantized:
        # Quantized weights were read completely; the others were copied out of the file.
        load = framework + weights + file_width * counted.quantized
    else:
        # Mapped weights stay unread until they are used, except those that an adapter has read to
        # replace them.
        load = framework + 2 * mapped
    slack = HEAP_SLACK[_kind(counted, recipe)]
    # The slack is fitted to these two moments.
    moments = (counted.early, counted.late)
    heap = max(m.total - m.large for m in moments)
    largest = max(moments, key=lambda m: m.total)
    backward = max(m.large for m in moments)
    step = _large_gradients(counted) + transient_bytes(counted, recipe["optimizer"], on_card=False)
    varying = max(0.0, heap - counted.fixed)
    gaps = slack * (varying + FIXED_SHARE * min(heap, counted.fixed))
    train = framework + weights + counted.optimizer + heap + gaps + max(backward, step)
    return Prediction(
        train=train, load=load, framework=framework, weights=weights, gradients=largest.gradients, optimizer=counted.optimizer,
        activations=largest.activations, slack=train - framework - weights - counted.optimizer - largest.total,
    )  # fmt: skip


def _kind(counted: Any, recipe: dict[str, Any]) -> str:
    """The kind of heap. On a CPU, trainer/adapters.py computes some adapters together and leaves
    the others to PEFT."""
    traits = traits_of(recipe)
    if not traits.has_adapter:
        return "full" if traits.trains_all else "none"
    return "grouped adapter" if counted.grouped else "adapter"


def on_card(counted: Any, recipe: dict[str, Any]) -> Prediction:
    """Predict the memory handed out by the caching allocator
    (`torch.cuda.max_memory_allocated`), without CUDA's context."""
    pageable = counted.optimizer if recipe["optimizer"].startswith("paged") else 0
    states = counted.optimizer - pageable
    step = counted.trained_bytes() + transient_bytes(counted, recipe["optimizer"], on_card=True)
    largest = counted.peak
    train = counted.weights + states + max(step, largest.total)
    return Prediction(
        train=train, load=counted.weights, framework=0, weights=counted.weights, gradients=largest.gradients, optimizer=states,
        activations=largest.activations, slack=train - counted.weights - states - largest.total, pageable=pageable,
    )  # fmt: skip


def _large_gradients(counted: Any) -> float:
    """Bytes of gradients in large blocks of their own; usually only the embedding is that large."""
    return counted.largest if counted.largest >= 32 * 2**20 else 0
