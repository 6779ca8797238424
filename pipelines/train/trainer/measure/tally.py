"""The progress of a run over all its attempts: steps, examples, and the time of each optimizer
step, counted once."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Tally:
    """Sums over the optimizer steps so far; `seconds` are those of optimizer steps alone.

    `stopped_seconds` are those in which a process stood still during a step; no other sum includes
    them. `other_seconds` pass between the steps: measuring the curve, writing checkpoints and the
    best step's weights. The first step of a process pays for warm-up and for the optimizer's
    states, so the steady sums exclude it. `told`: the last step's point is on the curve.
    """

    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    tokens: int = 0
    stopped_seconds: float = 0.0
    other_seconds: float = 0.0
    steady_seconds: float = 0.0
    steady_tokens: int = 0
    loss: float | None = None
    rate: float | None = None
    # Tokens per second of the last step.
    speed: float | None = None
    told: bool = True
    # The lowest loss on the slice that early stopping holds back from train.
    best: float | None = None
    # Evaluations since the best one.
    since_best: int = 0
    best_step: int | None = None
    # The loss on the held-out records at the best step.
    best_eval_loss: float | None = None
    # The loss of the first step, before it changed a weight.
    first_loss: float | None = None
    # The loss on the held-out records before the first step.
    first_eval_loss: float | None = None
    # The latest loss on the held-out records.
    eval_loss: float | None = None

    def note(self, validation_loss: float) -> bool:
        """Count an evaluation for early stopping; returns whether this step is the best so far."""
        if self.best is not None and validation_loss >= self.best:
            self.since_best += 1
            return False
        self.best, self.since_best = validation_loss, 0
        self.best_step, self.best_eval_loss = self.step, self.eval_loss
        return True

    def add(self, *, examples: int, tokens: int, seconds: float, first: bool) -> None:
        """Count an optimizer step that took `seconds`; `first` says whether it is this process's
        first."""
        self.step += 1
        self.examples += examples
        self.seconds += seconds
        self.tokens += tokens
        self.speed = tokens / seconds if seconds else None
        if not first:
            self.steady_seconds += seconds
            self.steady_tokens += tokens

    def measured(self) -> dict[str, Any]:
        """The row's columns."""
        return {
            "last_step": self.step,
            "best_step": self.best_step,
            "best_validation_loss": self.best,
            "train_loss": self.loss,
            "train_seconds": self.seconds,
            "stopped_seconds": self.stopped_seconds,
            "other_seconds": self.other_seconds,
            "tokens_per_second": self.steady_tokens / self.steady_seconds if self.steady_seconds else None,
            "trained_tokens": self.tokens,
        }
