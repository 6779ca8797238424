"""The micro-batches that decide memory: the heaviest ones that a cell's examples and settings
produce."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.train.trainer import batches
from pipelines.train.trainer.examples import IGNORE, Tokenized


@dataclass(frozen=True)
class Batch:
    """A padded micro-batch of rows × length tokens, of which `learned` have a loss."""

    rows: int
    length: int
    learned: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def __str__(self) -> str:
        return f"{self.rows} × {self.length} tokens, {self.learned} learned"

    def examples(self) -> list[Tokenized]:
        """Examples of this size. The learned tokens are spread over the rows and lie at each
        row's end."""
        share, extra = divmod(self.learned, self.rows)
        examples = []
        for row in range(self.rows):
            learned = min(self.length - 1, share + (row < extra))
            labels = [IGNORE] * (self.length - learned) + [1] * learned
            examples.append(Tokenized(str(row), [1] * self.length, labels, [True] * self.length, 1))
        return examples


def batch_of(examples: Sequence[Tokenized]) -> Batch:
    return Batch(len(examples), max(len(e) for e in examples), sum(e.learned for e in examples))


def heaviest(examples: Sequence[Tokenized], recipe: dict[str, Any], seeds: Sequence[int], config: Any) -> list[Batch]:
    """The micro-batches that the training probe would take, over the runs of all seeds.

    Examples over max_length are left out, as in training. The list is empty if none fits.
    """
    fitting = [example for example in examples if len(example) <= recipe["max_length"]]
    plan = [
        step
        for seed in seeds
        for step in batches.steps(fitting, epochs=recipe["epochs"], per_step=recipe["examples_per_step"], seed=seed)
    ]
    return [batch_of(group) for group in batches.heaviest(plan, config, recipe)] if fitting else []


def allowed(recipe: dict[str, Any]) -> list[Batch]:
    """The largest micro-batch that the settings allow, with a loss on every token.

    It gives the largest memory for any examples. It is listed twice if an optimizer step has more
    examples than it holds.
    """
    length = min(recipe["max_length"], recipe["micro_batch_tokens"])
    rows = max(1, min(recipe["examples_per_step"], recipe["micro_batch_tokens"] // length))
    return [Batch(rows, length, rows * (length - 1))] * (2 if recipe["examples_per_step"] > rows else 1)
