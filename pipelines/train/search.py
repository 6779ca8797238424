"""Which of several learning rates: each is tried for a share of the steps from the same start, over the same examples, with a
warm-up and a cosine of its own, and judged by its loss on a slice held back from train. What is evaluated on is never looked at.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import disk
from pipelines.runs import checkpoints
from pipelines.runs.worker import DivergedError
from pipelines.train import batches, checkpoint
from pipelines.train.examples import Tokenized
from pipelines.train.ranks import local_part
from pipelines.train.tensor_file import save_file

Tried = list[tuple[float, float | None]]  # (learning rate, loss), smaller rates first; None: it diverged


@dataclass(frozen=True)
class Chosen:
    """A learning rate and what it was chosen among; `tried` is empty where it was given."""

    rate: float
    tried: Tried

    def measured(self) -> dict[str, Any]:
        """The row's columns."""
        rates = [rate for rate, _ in self.tried]
        return {
            "learning_rate": self.rate,
            "learning_rate_at_edge": self.rate in (min(rates), max(rates)) if len(rates) > 1 else None,
            "learning_rates_tried": json.dumps(self.tried) if rates else None,
        }

    def in_words(self) -> str:
        return ", ".join(f"{rate:g} ({'diverged' if loss is None else f'{loss:.4f}'})" for rate, loss in self.tried)


def given(recipe: dict[str, Any]) -> Chosen:
    """The recipe's one rate, or the first of those that are still to be tried."""
    rate = recipe["learning_rate"]
    return Chosen(rate[0] if isinstance(rate, list) else rate, [])


def best(tried: Sequence[Sequence[Any]]) -> Chosen:
    """The rate with the lowest loss; of equal ones the smallest.

    Raises:
        DivergedError: none of them can be trained with.
    """
    rows: Tried = sorted((rate, loss) for rate, loss in tried)
    finite = [(loss, rate) for rate, loss in rows if loss is not None]
    if not finite:
        raise DivergedError(
            f"every learning rate tried diverges ({', '.join(f'{rate:g}' for rate, _ in rows)}): lower them"
        )
    return Chosen(min(finite)[1], rows)


def search(trainer: Any, train: Sequence[Tokenized], judged: Sequence[Tokenized]) -> Tried:
    """Try each of the recipe's learning rates on `train`, judged on `judged`; the weights end as they were. They are kept on disk
    meanwhile, so that no second set of them is in memory.

    Raises:
        ValueError: too few examples to hold any back.
        DiskFullError: the weights cannot be kept.
    """
    if not train:
        raise ValueError(
            "a search for the learning rate needs two training examples or more: bring more, or name one rate"
        )
    recipe, spec = trainer.recipe, trainer.worker.spec
    whole = batches.steps(train, epochs=recipe["epochs"], per_step=recipe["examples_per_step"], seed=spec["seed"])
    plan = whole[: max(1, math.ceil(recipe["search_share"] * len(whole)))]
    size = sum(p.numel() * p.element_size() for p in trainer.named.values())
    disk.require(trainer.worker.folder, size, "the weights to go back to after each learning rate that is tried")
    start = trainer.worker.folder / checkpoints.START
    start.mkdir(exist_ok=True)
    file = start / checkpoint.of_rank(checkpoint.TENSORS, trainer.ranks.rank)
    try:
        named = {f"weights/{name}": local_part(p).detach() for name, p in trainer.named.items()}
        save_file(named, file)
        return [_try(trainer, plan, rate, judged, start) for rate in sorted(recipe["learning_rate"])]
    finally:
        file.unlink(missing_ok=True)
        with suppress(OSError):  # another rank's is in it still
            start.rmdir()


def _try(
    trainer: Any, plan: list[list[Tokenized]], rate: float, judged: Sequence[Tokenized], start: Path
) -> tuple[float, float | None]:
    """Train `plan` with `rate` from the weights in `start`, on the same random numbers as the others, and go back to them."""
    before = checkpoint.Random.now()
    loss = trainer.loss_of_steps(plan, rate, judged)
    checkpoint.copy_weights(start, trainer.named, trainer.ranks.rank)
    trainer.reset_optimizer()
    before.set()
    found = loss if math.isfinite(loss) else None
    trainer.worker.say(
        f"learning rate {rate:g}: {'diverged' if found is None else f'{found:.4f}'} after {len(plan)} steps"
    )
    return rate, found
