"""Records as examples that fit, and the records that a model's template or window leaves out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.train.left_out import HELD, MUCH, reasons
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.prompts import PromptFormat
from pipelines.train.trainer.templates import Unshown

# A larger share of records that the template cannot show is worth a warning.
MOST_UNSHOWN = 0.1


@dataclass(frozen=True)
class TokenizedRecords:
    """The examples of `records` records.

    `too_long` counts the records with an example of more than `limit` tokens. `unshown` holds, for
    each record that the template cannot show, the reason. `lengths` are the tokens of each record's
    longest example.
    """

    examples: list[Tokenized]
    records: int
    too_long: int
    unshown: list[str]
    limit: int
    lengths: list[int]

    @property
    def unshown_share(self) -> float:
        return len(self.unshown) / max(1, self.records)

    @property
    def left_out(self) -> int:
        """The number of records without any example."""
        return self.records - len({example.example_id for example in self.examples})

    @property
    def length_to_hold_most(self) -> int:
        """The max_length that would fit the share `HELD` of the records that the template shows."""
        return sorted(self.lengths)[math.ceil(HELD * len(self.lengths)) - 1] if self.lengths else 0

    def left_out_in_words(self, what: str) -> str:
        """How many records make no example, and why."""
        why = reasons(self.left_out - len(self.unshown), len(self.unshown), self.limit)
        return f"{self.left_out} of {self.records} {what} records are left out ({why})"

    def in_words(self, what: str) -> list[str]:
        """Log lines about everything that was left out or changed."""
        lines = []
        if self.too_long:
            warning = "WARNING: " if self.left_out > MUCH * self.records else ""
            partly = self.too_long + len(self.unshown) - self.left_out
            more = f"; of {partly} more only some answers are learned" if partly else ""
            enough = f"max_length {self.length_to_hold_most} would hold {HELD:.0%} of them"
            lines.append(f"{warning}{self.left_out_in_words(what)}{more}; {enough}")
        if self.unshown:
            warning = "WARNING: " if self.unshown_share > MOST_UNSHOWN else ""
            lines.append(
                f"{warning}the model's chat template cannot show {len(self.unshown)} of {self.records} {what} records, "
                f"which are left out; the first: {self.unshown[0]}"
            )
        if several := len({example.example_id for example in self.examples if example.turn is not None}):
            lines.append(
                f"the chat template rewrites earlier turns: {several} conversations of the {what} records make one example "
                "per answer"
            )
        if split := sum(example.split for example in self.examples):
            lines.append(
                f"{split} {what} examples: a token that would span prompt and answer was split where the prompt ends"
            )
        return lines


def tokenize(
    form: PromptFormat, records: Sequence[Mapping[str, Any]], limit: int, *, turns: str = "all"
) -> TokenizedRecords:
    """Every record as examples of at most `limit` tokens.

    `turns` chooses `all` examples of a conversation that makes several, or only the `last`.
    """
    examples: list[Tokenized] = []
    too_long, unshown, lengths = 0, [], []
    for record in records:
        try:
            record_examples = form.tokenize(record)
        except Unshown as error:
            unshown.append(str(error))
            continue
        record_examples = record_examples[-1:] if turns == "last" else record_examples
        fitting = [example for example in record_examples if len(example) <= limit]
        too_long += len(fitting) < len(record_examples)
        lengths.append(max(map(len, record_examples), default=0))
        examples += fitting
    return TokenizedRecords(examples, len(records), too_long, unshown, limit, lengths)
