"""The few calls from the checks into the trainer's own functions.

When one of those changes, only this file must follow. Each function imports its own dependencies,
so that a check with few needs starts fast and fails alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipelines.train.trainer import chunked, losses, precision
from pipelines.train.trainer.batches import micro_batches
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.optimizers import make_optimizer

__all__ = [
    "head_loss",
    "loaded",
    "loss_and_gradients",
    "make_optimizer",
    "micro_batches",
    "packed",
    "pieces_of",
    "prediction_key",
    "predictions",
]
Recipe = dict[str, Any]


class _Quiet:
    """A worker for the trainer that reports to nobody."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec, self.root, self.folder = dict(spec), Path("/"), Path("/no such folder")
        self.report: dict[str, Any] = {"measured": {}}
        self.asked_to_stop = False

    def measure(self, **numbers: Any) -> None:
        self.report["measured"] |= numbers

    def say(self, _message: str) -> None: ...

    def save(self) -> None: ...

    def runs_on(self, _device: str) -> None: ...

    def stop_if_asked(self) -> None: ...


def loaded(folder: Path, recipe: Recipe) -> Any:
    """The model of `folder` on this machine's device as a cell trains it, including the adapter."""
    from pipelines.train.trainer import child

    return child.load(_Quiet({"recipe": recipe, "seed": 1, "weights": str(folder)}))  # pyright: ignore[reportArgumentType]


@contextmanager
def steps(model: Any, recipe: Recipe, device: torch.device) -> Iterator[Callable[[list[list[Tokenized]]], float]]:
    """The trainer's own optimizer step as a function of its micro-batches that returns the loss."""
    from pipelines.train.trainer.loop import Trainer

    trainer = Trainer(_Quiet({}), model, recipe, device)  # pyright: ignore[reportArgumentType]
    with losses.head_on_positions(model) as trainer._positions:
        yield lambda groups: trainer.step(groups, 1e-6)


def loss_and_gradients(
    model: Any, recipe: Recipe, batch: Sequence[Tokenized], device: torch.device
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss on a micro-batch, per learned token, and the gradient of every parameter that has
    one, in float32."""
    learned = sum(example.learned for example in batch)
    # Without dropout, so that two precisions compute the same
    model.eval()
    with losses.head_on_positions(model) as positions, precision.autocast(recipe, device):
        loss = losses.step_loss(model, batch, positions, device, learned=learned)
    loss.backward()
    gradients = {name: p.grad.detach().float() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.item(), gradients


def head_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean loss of `targets` (rows) by the trainer's output head: `hidden` (rows × width),
    `weight` (vocabulary × width)."""
    return chunked.summed_loss(hidden, weight, targets, cap=None, share=1 / len(targets))


@contextmanager
def pieces_of(rows: int | None) -> Iterator[None]:
    """Inside, the head computes `rows` rows at a time; with None the trainer's own choice."""
    plain = chunked._pieces
    if rows is not None:
        chunked._pieces = lambda count, *_, **__: [slice(at, min(count, at + rows)) for at in range(0, count, rows)]
    try:
        yield
    finally:
        chunked._pieces = plain


def packed(weight: torch.Tensor) -> torch.Tensor:
    """The bytes that the CPU's code packs `weight` into: nf4, blocks of 64."""
    from pipelines.train.trainer.cpu import four_bits

    return four_bits.pack(weight.cpu(), 64, "nf4", torch.uint8)[0].flatten()


def prediction_key(recipe: Recipe, *, dry: bool) -> str:
    """The key of the estimator's answer for this device: the number format that the card uses for
    `recipe`, or `cpu`."""
    from pipelines.estimate import cards

    card = None if dry else cards.here()
    return card.format(recipe) if card else "cpu"


def predictions(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The estimator's answers, in order. It runs on the CPU in a separate process. If it fails,
    cells still have their other figures."""
    from pipelines.errors import WorkError
    from pipelines.estimate import estimate

    try:
        return list(estimate.answers_to(questions))
    except WorkError as error:
        return [{"because": str(error)} for _ in questions]
