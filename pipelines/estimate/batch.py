"""The micro-batches whose memory counts: the heaviest ones that a cell's examples and settings make."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.train.trainer import batches
from pipelines.train.trainer.examples import IGNORE, Tokenized


@dataclass(frozen=True)
class Batch:
    """A padded micro-batch: rows × length tokens, `learned` of them with a loss."""

    rows: int
    length: int
    learned: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def __str__(self) -> str:
        return f"{self.rows} × {self.length} tokens, {self.learned} learned"

    def examples(self) -> list[Tokenized]:
        """Rows of that size, the learned tokens spread over them and at each row's end."""
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
    """The micro-batches that the probe of training takes, of all seeds' runs. Examples over max_length are left out, as in
    training; [] where none fits."""
    fitting = [example for example in examples if len(example) <= recipe["max_length"]]
    plan = [
        step
        for seed in seeds
        for step in batches.steps(fitting, epochs=recipe["epochs"], per_step=recipe["examples_per_step"], seed=seed)
    ]
    return [batch_of(group) for group in batches.heaviest(plan, config, recipe)] if fitting else []


def allowed(recipe: dict[str, Any]) -> list[Batch]:
    """The largest micro-batch that the settings allow, every token learned: what memory can come to with other examples. Twice,
    where an optimizer step has more examples than that."""
    length = min(recipe["max_length"], recipe["micro_batch_tokens"])
    rows = max(1, min(recipe["examples_per_step"], recipe["micro_batch_tokens"] // length))
    return [Batch(rows, length, rows * (length - 1))] * (2 if recipe["examples_per_step"] > rows else 1)
