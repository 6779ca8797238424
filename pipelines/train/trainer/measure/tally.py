"""What a run has done so far, over all its attempts: steps, examples, and the time of each optimizer step once."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Tally:
    """Seconds are those of optimizer steps alone; `stopped_seconds` are those in which a process stood still meanwhile, and no part
    of the others. `other_seconds` are those between the steps: measuring the curve, writing checkpoints and the best step's
    weights. The first step of a process pays for warm-up and for the optimizer's state, so the steady sums leave it out. `told`:
    the last step's point is on the curve."""

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
    speed: float | None = None  # tokens per second of the last step
    told: bool = True
    best: float | None = None  # loss on the slice held back from train, where early stopping asks for it
    since_best: int = 0  # evaluations
    best_step: int | None = None
    best_eval_loss: float | None = None  # on the held-out records, at the best step
    first_loss: float | None = None  # of the first step, before it changed a weight
    first_eval_loss: float | None = None  # before the first step, on the held-out records
    eval_loss: float | None = None  # the last one

    def note(self, validation_loss: float) -> bool:
        """Count an evaluation for early stopping; returns whether this step is the best so far."""
        if self.best is not None and validation_loss >= self.best:
            self.since_best += 1
            return False
        self.best, self.since_best = validation_loss, 0
        self.best_step, self.best_eval_loss = self.step, self.eval_loss
        return True

    def add(self, *, examples: int, tokens: int, seconds: float, first: bool) -> None:
        """Count an optimizer step that took `seconds`; `first` of this process."""
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
