"""Counts the bytes of live tensors, and their peaks, while code runs on fake tensors: the memory of
an allocator without waste.

PyTorch's FakeTensorMode runs every operator on shapes and dtypes only. A tensor's storage lives
exactly as long as in the real run, because autograd, views and Python hold it in the same way. So
the peak follows from the training code, for any architecture. Memory that an operator allocates and
frees internally is not counted.
"""
# ruff: noqa: TID253

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# From this size on, glibc always gives a block a mapping of its own (DEFAULT_MMAP_THRESHOLD_MAX).
LARGE = 32 * 2**20
Part = Literal["gradients", "activations"]


@dataclass(frozen=True)
class Moment:
    """Live bytes besides weights and optimizer states; `large` of them are in blocks of at least
    LARGE."""

    gradients: float = 0
    activations: float = 0
    large: float = 0

    @property
    def total(self) -> float:
        return self.gradients + self.activations


class Live:
    """The account of live bytes in a step with `trained` trained tensors.

    A step has several stretches: the forward pass of each micro-batch, its backward pass until half
    of the gradients exist, and the rest of it. `moments` holds the moment with the most live bytes
    of each stretch. The moment of a stretch grows about linearly with the number of layers; the
    largest of all moments does not.
    """

    def __init__(self, trained: int) -> None:
        self.moments: dict[str, Moment] = {}
        self._half = trained / 2
        self._gradients = self._activations = self._large = 0
        self._known: dict[int, tuple[Any, int, Part]] = {}
        self._stretch, self._missing = "", self._half

    @property
    def peak(self) -> Moment:
        return max(self.moments.values(), key=lambda moment: moment.total, default=Moment())

    def begin(self, stretch: str) -> None:
        """Begin `stretch`; all later counts belong to it."""
        self._stretch, self._missing = stretch, self._half
        self._update()

    def ignore(self, tensor: torch.Tensor) -> None:
        """Leave `tensor` out of the account; weights and buffers are counted elsewhere."""
        storage = tensor.untyped_storage()
        self._known[id(storage)] = (storage, 0, "activations")

    def gradient(self, tensor: torch.Tensor) -> None:
        """Count the storage of `tensor` as one more gradient of this stretch, whether new or
        accumulated."""
        self._missing -= 1
        self.add(tensor, "gradients")

    def add(self, tensor: torch.Tensor, part: Part = "activations") -> None:
        """Count the storage of `tensor`. A counted storage that turns out to be a gradient moves
        to the gradients."""
        storage = tensor.untyped_storage()
        place = id(storage)
        if known := self._known.get(place):
            if part == "activations" or known[2] == part:
                return
            self._count(known[1], known[2], -1)
            reference, size = known[0], known[1]
        else:
            reference, size = weakref.ref(storage, lambda _: self._drop(place)), storage.nbytes()
        self._known[place] = (reference, size, part)
        self._count(size, part, 1)
        self._update()

    def _count(self, size: int, part: Part, sign: int) -> None:
        if part == "gradients":
            self._gradients += sign * size
        else:
            self._activations += sign * size
        if size >= LARGE:
            self._large += sign * size

    def _drop(self, place: int) -> None:
        _, size, part = self._known.pop(place)
        self._count(size, part, -1)

    def _update(self) -> None:
        stretch = self._stretch if self._missing > 0 else f"{self._stretch}, later half"
        now = Moment(self._gradients, self._activations, self._large)
        if stretch not in self.moments or now.total > self.moments[stretch].total:
            self.moments[stretch] = now


class Counting(TorchDispatchMode):
    """While active, counts every tensor that an operator returns until its storage is freed."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self.live = live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            # The only number that a step reads is the scale of its loss.
            return 1.0
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            for dense in _dense(tensor):
                self.live.add(dense)
        return out


def _tensors(out: Any) -> Iterable[torch.Tensor]:
    if isinstance(out, torch.Tensor):
        return (out,)
    if isinstance(out, tuple | list):
        return (item for item in out if isinstance(item, torch.Tensor))
    return ()


def _dense(tensor: torch.Tensor) -> Iterable[torch.Tensor]:
    """The dense tensors with the bytes of `tensor`: itself, or the indices and values of a
    sparse tensor."""
    return (tensor._indices(), tensor._values()) if tensor.layout is torch.sparse_coo else (tensor,)
