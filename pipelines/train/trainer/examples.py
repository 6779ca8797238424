"""One example as plain numbers, for training and for measuring."""

from dataclasses import dataclass
from typing import Any

IGNORE = -100


@dataclass(frozen=True)
class Tokenized:
    """One example.

    `labels[i]` is the token to learn at position i, or -100. `scored[i]` says whether it counts in
    bits per byte: the record's own text does, the template's additions do not. `completion_bytes`
    is the UTF-8 length of the scored text. `turn` is set if a record makes several examples.
    `split` counts prompts whose last token would merge with the answer's first if the text were
    tokenized as one.
    """

    example_id: str
    input_ids: list[int]
    labels: list[int]
    scored: list[bool]
    completion_bytes: int
    turn: int | None = None
    split: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def name(self) -> str:
        """A name that, unlike `example_id`, differs for every example of a record."""
        return self.example_id if self.turn is None else f"{self.example_id}#{self.turn}"

    @property
    def learned(self) -> int:
        return sum(label != IGNORE for label in self.labels)


def longest(max_length: int, config: Any, virtual: int = 0) -> int:
    """The most tokens of an example: `max_length`, or less if the model's window is smaller.

    An adapter's `virtual` tokens take their part of the window.
    """
    window = getattr(config, "max_position_embeddings", None)
    return min(max_length, window - virtual) if window else max_length
