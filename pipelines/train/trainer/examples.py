"""What training and measuring work on: one example as plain numbers."""

from dataclasses import dataclass
from typing import Any

IGNORE = -100


@dataclass(frozen=True)
class Tokenized:
    """One example. `labels[i]` is the token to learn at position i or -100; `scored[i]` says whether it counts in bits per
    byte: what the record itself says does, what its template adds does not. `completion_bytes` is the UTF-8 length of that.
    `turn` is set where a record makes several examples; `split` counts prompts whose last token the whole text would merge with
    the answer's first."""

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
        """Unlike `example_id` different for every example of a record."""
        return self.example_id if self.turn is None else f"{self.example_id}#{self.turn}"

    @property
    def learned(self) -> int:
        return sum(label != IGNORE for label in self.labels)


def longest(max_length: int, config: Any, virtual: int = 0) -> int:
    """Tokens of an example at most: `max_length`, or what the model of that configuration can read behind an adapter's `virtual`
    tokens where that is less."""
    window = getattr(config, "max_position_embeddings", None)
    return min(max_length, window - virtual) if window else max_length
