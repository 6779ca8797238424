"""The search for the best of several learning rates.

Each rate is tried for some steps from the same start, over the same examples, with its own warm-up.
Its loss on a slice held back from train decides. The evaluation records play no part.

Each rate of a list runs for `search_share` of the steps, with a cosine. `learning_rate: auto` uses
successive halving (`halving`) without a cosine, with all trials together within `search_cap` of the
steps. Each trial is written to disk when it ends, so a killed search resumes after it.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipelines.lake import disk
from pipelines.lake.files import read_jsonl
from pipelines.runs import checkpoints
from pipelines.runs.clock import Stopwatch
from pipelines.runs.worker import DivergedError
from pipelines.train.trainer import batches, checkpoint, halving
from pipelines.train.trainer.devices.ranks import local_part
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.halving import Trial
from pipelines.train.trainer.tensor_file import save_file

# auto judges by at least and at most this many examples, but by no more than the share MOST of
# train.
JUDGED = (16, 64)
MOST = 0.25
# (learning rate, loss or None if it diverged, steps), smaller rates first.
Tried = list[tuple[float, float | None, int]]


@dataclass(frozen=True)
class Chosen:
    """A learning rate and the trials that it was chosen from; without a search `tried` is empty.

    `source` replaces the spec's `learning_rate_source` if the search that it names did not take
    place.
    """

    rate: float
    tried: Tried
    source: str | None = None

    def measured(self) -> dict[str, Any]:
        """The row's columns."""
        rates, lengths = {rate for rate, _, _ in self.tried}, {steps for _, _, steps in self.tried}
        tried = [[rate, loss, steps][: 2 if len(lengths) == 1 else 3] for rate, loss, steps in self.tried]
        return {
            "learning_rate": self.rate,
            "learning_rate_at_edge": self.rate in (min(rates), max(rates)) if len(rates) > 1 else None,
            "learning_rates_tried": json.dumps(tried) if tried else None,
            "learning_rate_source": self.source,
        }

    def in_words(self) -> str:
        """Each rate with the loss of its longest trial."""
        longest = {rate: (loss, steps) for rate, loss, steps in sorted(self.tried, key=lambda one: one[2])}
        return ", ".join(f"{rate:g} ({_loss(*of)})" for rate, of in sorted(longest.items()))


def before_search(recipe: dict[str, Any]) -> Chosen:
    """The recipe's single rate, or a placeholder until the search has chosen one."""
    rate = recipe["learning_rate"]
    if is_auto(recipe):
        return Chosen(recipe["learning_rate_default"], [], "default")
    return Chosen(rate[0] if isinstance(rate, list) else rate, [])


def is_auto(recipe: dict[str, Any]) -> bool:
    return isinstance(recipe["learning_rate"], list) and "learning_rate_default" in recipe


def best(trials: Sequence[Trial], *, near: float = 0.0) -> Chosen:
    """The rate with the lowest loss among the longest trials; of the rates within `near` of that
    loss the smallest.

    `near` is a share of the lowest loss.

    Raises:
        DivergedError: every rate diverges.
    """
    winner = halving.chosen(trials, near=near)
    rows = sorted((trial.rate, trial.loss, trial.steps) for trial in trials)
    if winner.loss is None:
        rates = ", ".join(f"{rate:g}" for rate in sorted({trial.rate for trial in trials}))
        raise DivergedError(f"every learning rate tried diverges ({rates}): lower them")
    return Chosen(winner.rate, rows)


def hold_back(
    train: Sequence[Tokenized], validation: Sequence[Tokenized], recipe: dict[str, Any]
) -> tuple[list[Tokenized], list[Tokenized]]:
    """The examples that trials train on, and those that judge them: `validation`, else a slice of
    `train`.

    The many short trials of auto use only a part of a large slice, and more than `validation_share`
    of a small train.
    """
    least, most = JUDGED if is_auto(recipe) else (1, len(train) + len(validation))
    if validation:
        return list(train), list(validation[:most])
    share = recipe["validation_share"]
    if is_auto(recipe):
        count = min(most, max(least, round(share * len(train))))
        share = min(count / len(train), max(share, MOST))
    return batches.held_back(train, share)


@dataclass(frozen=True)
class SearchResult:
    """All trials of a search, and the seconds of those that an earlier process of the cell had
    run."""

    trials: list[Trial]
    earlier_seconds: float


def search(trainer: Any, train: Sequence[Tokenized], judging: Sequence[Tokenized]) -> SearchResult:
    """Try the recipe's learning rates on `train`, judged on `judging`; the weights end as they
    were.

    The trainable weights of the start are kept on disk, so memory never holds two sets of them. If
    auto has too few steps, there are no trials.

    Raises:
        ValueError: there are too few examples to hold any back.
        DiskFullError: there is too little disk for the weights.
    """
    if not train and is_auto(trainer.recipe):
        return SearchResult([], 0.0)
    if not train:
        raise ValueError(
            "a search for the learning rate needs two training examples or more: bring more, or name one rate"
        )
    recipe, spec = trainer.recipe, trainer.worker.spec
    plan = batches.steps(train, epochs=recipe["epochs"], per_step=recipe["examples_per_step"], seed=spec["seed"])
    rates = sorted(recipe["learning_rate"])
    budget = math.floor(recipe["search_cap"] * trainer.planned_steps) if is_auto(recipe) else 0
    expected = sum(halving.rounds(len(rates), budget)) if is_auto(recipe) else len(rates)
    with Trials(trainer, plan, judging, expected=expected) as trials:
        if is_auto(recipe):
            results = halving.halve(rates, budget, trials.measure)
        else:
            steps = max(1, math.ceil(recipe["search_share"] * len(plan)))
            results = [Trial(rate, trials.measure(rate, steps), steps) for rate in rates]
        return SearchResult(results, trials.earlier_seconds)


class Trials:
    """Runs trials, each from the weights of the start and with the same random numbers.

    Inside its context the weights of the start are on disk. A trial depends only on its rate and
    its steps. So one that an earlier process of the cell has finished does not run again.
    """

    def __init__(
        self, trainer: Any, plan: list[list[Tokenized]], judging: Sequence[Tokenized], *, expected: int
    ) -> None:
        """`expected`: the probable number of trials, for the progress display."""
        self._trainer, self._plan, self._judging, self._expected = trainer, plan, judging, expected
        worker = trainer.worker
        self._file = worker.folder / checkpoints.SEARCH
        self._conditions = {
            "versions": worker.report["versions"], "micro_batch_tokens": trainer.recipe["micro_batch_tokens"],
            "ranks": trainer.ranks.count,
        }  # fmt: skip
        self._losses: dict[tuple[float, int], float | None] = {}
        self.earlier_seconds = 0.0
        self._start = worker.folder / checkpoints.START
        self._weights = self._start / checkpoint.rank_file(checkpoint.TENSORS, trainer.ranks.rank)
        self._start_is_kept = False
        self._count = 0

    def __enter__(self) -> "Trials":
        self._take_over()
        return self

    def __exit__(self, *_: object) -> None:
        self._trainer.worker.report.pop("doing", None)
        self._weights.unlink(missing_ok=True)
        # The folder was never made, or still holds another rank's file.
        with suppress(OSError):
            self._start.rmdir()

    def measure(self, rate: float, steps: int) -> float | None:
        """The loss after `steps` steps with the peak rate `rate`; None if it diverges."""
        self._count += 1
        worker = self._trainer.worker
        # Rates past an end of the range come on top of the expected trials.
        of = f" of {self._expected}" if self._expected >= self._count else ""
        worker.report["doing"] = f"learning rate {self._count}{of}: {rate:g} for {steps} steps"
        worker.save()
        if (rate, steps) not in self._losses:
            clock = Stopwatch()
            self._losses[rate, steps] = loss = self._try(rate, steps)
            self._append({"rate": rate, "steps": steps, "loss": loss, "seconds": clock.total(), **self._conditions})
        loss = self._losses[rate, steps]
        worker.say(f"learning rate {rate:g}: {_loss(loss, steps)}")
        return loss

    def _take_over(self) -> None:
        """Take over the trials of an earlier process of the cell that ran under the same
        conditions."""
        worker = self._trainer.worker
        if not (earlier := worker.spec.get("searched")):
            return
        for row in read_jsonl(worker.root / earlier):
            if isinstance(row, dict) and all(row.get(name) == value for name, value in self._conditions.items()):
                self._losses[row["rate"], row["steps"]] = row["loss"]
                self.earlier_seconds += row["seconds"]
                self._append(row)
        if self._losses:
            worker.say(f"resuming the search for a learning rate after {len(self._losses)} trials")

    def _append(self, row: dict[str, Any]) -> None:
        if self._trainer.ranks.rank == 0:
            with self._file.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row, allow_nan=False) + "\n")

    def _try(self, rate: float, steps: int) -> float | None:
        trainer, before = self._trainer, checkpoint.Random.now()
        self._keep_start()
        loss = trainer.loss_of_steps(self._plan[:steps], rate, self._judging)
        checkpoint.copy_weights(self._start, trainer.named, trainer.ranks.rank)
        trainer.reset_optimizer()
        before.set()
        return loss if math.isfinite(loss) else None

    def _keep_start(self) -> None:
        """Write the trainable weights before the first trial."""
        if self._start_is_kept:
            return
        trainer = self._trainer
        size = sum(p.numel() * p.element_size() for p in trainer.named.values())
        disk.require(trainer.worker.folder, size, "the weights to restore after each trial of a learning rate")
        self._start.mkdir(exist_ok=True)
        named = {f"weights/{name}": local_part(p).detach() for name, p in trainer.named.items()}
        save_file(named, self._weights)
        self._start_is_kept = True


def _loss(loss: float | None, steps: int) -> str:
    return "diverged" if loss is None else f"{loss:.4f} after {steps} steps"
