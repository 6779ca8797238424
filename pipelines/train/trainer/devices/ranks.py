"""The processes that train one cell together (ranks, one per device), and their communication.

Every rank holds the model and computes some of each optimizer step's micro-batches. Once per step,
before clipping, the gradients are summed over all ranks, so that every rank takes the same step on
the same bits.

A plain sum replaces torch's DDP class for three reasons. DDP needs the same number of passes on
every rank. It divides by the number of ranks rather than by learned tokens. And it finds the
participating parameters from the output of a forward pass, which `losses` bypasses.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pipelines.errors import UnavailableError
from pipelines.hardware.cuda_devices import VISIBLE
from pipelines.runs.deepspeed import ZERO_STAGES
from pipelines.runs.status import RENDEZVOUS
from pipelines.settings.methods import traits_of

# Gradients up to this size travel together: fewer messages, and a copy no larger than this.
BUCKET_BYTES = 32 * 2**20
# The longest wait for another rank, which may be loading, quantizing or writing a checkpoint.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process's number among `count`, and how the cell is divided among them."""

    rank: int = 0
    count: int = 1
    sharding: str = "none"

    @property
    def sharded(self) -> bool:
        """Whether weights or states are divided as well, so that all ranks must make equally many
        passes."""
        return self.sharding not in ("none", "ddp")

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Each of `numbers` summed over the ranks."""
        if self.count == 1:
            return list(numbers)
        import torch
        from torch import distributed

        totals = torch.tensor(list(numbers), dtype=torch.float64)
        distributed.all_reduce(totals)
        return totals.tolist()

    def each(self, number: float) -> list[float]:
        """Every rank's `number`, by rank."""
        return [own for (own,) in self.all_of([number])]

    def all_of(self, numbers: Sequence[float]) -> list[list[float]]:
        """Every rank's `numbers`, by rank; all ranks pass equally many."""
        own = [number if rank == self.rank else 0.0 for rank in range(self.count) for number in numbers]
        summed, width = self.sums(own), len(numbers)
        return [summed[rank * width : (rank + 1) * width] for rank in range(self.count)]

    def as_first_says(self, decision: bool) -> bool:
        """The first rank's `decision`, on every rank; by their own clocks the ranks would decide
        differently."""
        return bool(self.sums([float(decision and self.rank == 0)])[0])

    def wait(self) -> None:
        """Wait until every rank has arrived here."""
        self.sums([0.0])

    def sum_gradients(self, parameters: Sequence[Any]) -> None:
        """Sum the gradient of each of `parameters` over the ranks, in place; None counts as
        zero."""
        import torch

        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in parameters]):
            _sum(bucket)

    @property
    def holder(self) -> int:
        """The rank whose checkpoint file holds this rank's weights."""
        return self.rank if self.sharding == "fsdp" else 0


def require_divisible(recipe: Mapping[str, Any], sharding: str) -> None:
    """Raises UnavailableError if `sharding` cannot divide the recipe's weights or optimizer
    states."""
    if sharding in ("none", "ddp"):
        return
    advice = "use ddp for this method, in a profile of its own"
    if recipe["quantization"]:
        raise UnavailableError(f"sharding: {sharding} cannot divide {recipe['quantization']} weights: {advice}")
    traits = traits_of(recipe)
    if sharding in ZERO_STAGES and traits.has_adapter and not traits.is_short:
        raise UnavailableError(
            f"sharding: {sharding} would save only the trainable part of {traits.peft_type}, not the rest: {advice}"
        )
    if traits.moves_ranks or traits.virtual_tokens or recipe.get("loraplus_lr_ratio"):
        named = "loraplus_lr_ratio" if traits.peft_type == "LORA" else traits.peft_type
        raise UnavailableError(f"sharding: {sharding} has not been tried with {named}: {advice}")
    if recipe["optimizer"] != "adamw":
        raise UnavailableError(f"sharding: {sharding} cannot divide the states of {recipe['optimizer']}: {advice}")
    if sharding in ZERO_STAGES and isinstance(recipe["learning_rate"], list) and "search_cap" not in recipe:
        raise UnavailableError(
            f"sharding: {sharding} cannot restore the start to try several learning rates: name one, or use fsdp"
        )


def join(sharding: str) -> Ranks:
    """Join the other processes of this cell, if torchrun's environment names any, each with its own
    device.

    Raises:
        UnavailableError: this machine has fewer GPUs than the cell has processes, or torch cannot
            use them.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return Ranks()
    import torch
    from torch import distributed

    from pipelines.train.trainer.devices import card

    card.require_usable()
    rank, place = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if place >= (cards := torch.cuda.device_count()):
            raise UnavailableError(
                f"devices: {count}, but this machine has {cards} GPUs{_visible_hint()}: set devices to {cards} or fewer"
            )
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    meeting = os.environ.get(RENDEZVOUS, "env://")
    distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=count, timeout=PATIENCE)
    return Ranks(rank, count, sharding)


def _visible_hint() -> str:
    """A hint that the environment hides some of the machine's GPUs, or nothing."""
    visible = os.environ.get(VISIBLE)
    return "" if visible is None else f" (those of {VISIBLE}={visible})"


def leave() -> None:
    """Leave the process group after a run that succeeded."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def draw_apart(ranks: Ranks, seed: int) -> None:
    """Make random numbers (dropout's) differ by rank; the first rank keeps those of a single
    process."""
    if ranks.rank:
        import torch

        torch.manual_seed(seed + 2**32 * ranks.rank)


def local_part(tensor: Any) -> Any:
    """This rank's part of `tensor`: its shard of a sharded one, otherwise all of it."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def with_local_part(parameter: Any, part: Any) -> Any:
    """`part` on the device of `parameter`; for a sharded parameter, `part` is this rank's shard of
    the result."""
    if not hasattr(parameter, "to_local"):
        return part.to(parameter.device)
    from torch.distributed.tensor import DTensor

    spec = {"shape": parameter.shape, "stride": parameter.stride()}
    placed = part.to(parameter.to_local().device)
    return DTensor.from_local(placed, parameter.device_mesh, parameter.placements, run_check=False, **spec)


def _buckets(gradients: Sequence[Any]) -> list[list[Any]]:
    """Neighboring gradients of one dtype together, up to BUCKET_BYTES; a larger one alone."""
    buckets: list[list[Any]] = []
    room = 0
    for gradient in gradients:
        size = gradient.numel() * gradient.element_size()
        if buckets and size <= room and buckets[-1][0].dtype == gradient.dtype:
            buckets[-1].append(gradient)
            room -= size
        else:
            buckets.append([gradient])
            room = BUCKET_BYTES - size
    return buckets


def _sum(bucket: Sequence[Any]) -> None:
    import torch
    from torch import distributed

    if len(bucket) == 1 and bucket[0].is_contiguous():
        distributed.all_reduce(bucket[0])
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    distributed.all_reduce(flat)
    start = 0
    for gradient in bucket:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
