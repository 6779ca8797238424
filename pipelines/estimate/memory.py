"""From counted bytes to the memory that a process, or a card, is seen to use. All in bytes unless a name says otherwise.

On a CPU, resident memory = the process before it loads a model + weights + optimizer states + the heap at its largest (small
blocks; glibc hardly gives any of it back, and fragments it) + large blocks, which come and go. On a card, the allocator's
peak is the larger of the backward pass and the optimizer's step.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pipelines.estimate.optimizer import transient_bytes
from pipelines.settings.methods import traits_of

Device = Literal["cpu", "cuda"]
# Share of the small activations and gradients that the heap holds beside them once it has grown to its size, which takes some
# steps. glibc's free blocks do not fit the same request again (it asks for more than it uses, to align it); PEFT's own adapters
# break the heap up far more, having many short-lived tensors among the kept ones, than those that trainer/adapters.py
# computes together. Blocks of the same sizes in every micro-batch, as merged weights are, fit again better. FIXED_SHARE for them
# lies between SHiRA's copies, which leave no gaps, and FourierFT's spectra, which leave many. Fitted to SmolLM2's cells;
# `python -m benchmarks estimate` and `estimate --adapters` measure what it comes to, there and elsewhere.
HEAP_SLACK = {"none": 0.0, "full": 0.7, "adapter": 0.6, "grouped adapter": 0.35}
FIXED_SHARE = 0.3


@dataclass(frozen=True)
class Prediction:
    """Peak memory in bytes, of training and of loading, and what it is made of. `pageable` may leave a card for the host."""

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
    """`framework` is the resident memory of a process that has loaded all libraries and no model; `file_width` the bytes of a
    weight in its file, which stays mapped until all of it that is used was converted or quantized."""
    # A float32 file stays mapped while one weight lies in it: what was read there counts beside what took its place
    mapped = 0 if counted.quantized or file_width != 4 else counted.replaced
    weights = counted.weights + mapped
    if file_width != 4:
        load = framework + weights + file_width * counted.parameters
    elif counted.quantized:  # what is quantized was read whole, the rest copied out of the file
        load = framework + weights + file_width * counted.quantized
    else:  # what is read as it is stays unread until it is used; an adapter that replaces it has read it
        load = framework + 2 * mapped
    slack = HEAP_SLACK[_kind(counted, recipe)]
    moments = (counted.early, counted.late)  # the slack is fitted to these
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
    """Whose heap it is like; of adapters on a CPU trainer/adapters.py computes some, and leaves the others to PEFT."""
    traits = traits_of(recipe)
    if not traits.has_adapter:
        return "full" if traits.trains_all else "none"
    return "grouped adapter" if counted.grouped else "adapter"


def on_card(counted: Any, recipe: dict[str, Any]) -> Prediction:
    """What the caching allocator has handed out (`torch.cuda.max_memory_allocated`), without CUDA's own context."""
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
    """Gradients in blocks of their own: the embedding's, as a rule the only parameter that large."""
    return counted.largest if counted.largest >= 32 * 2**20 else 0
