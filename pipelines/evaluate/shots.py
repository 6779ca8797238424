"""Few-shot examples: train records in a fixed random order, the question's language first, as many
as the model's window holds."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.train.trainer.conversations import calls_tools, conversation
from pipelines.train.trainer.prompts import PromptFormat
from pipelines.train.trainer.templates import Unshown

Record = Mapping[str, Any]
SEED = 1


class Shots:
    """Up to `count` train records for an eval record. All records of a language get the same ones.

    `room` is the window in tokens.
    """

    def __init__(self, train: Sequence[Record], count: int, form: PromptFormat, *, room: int) -> None:
        ranked = sorted(train, key=lambda one: hashlib.sha256(f"shot {SEED}/{one['example_id']}".encode()).digest())
        self._form = form
        self._ranked = [one for one in ranked if self._can_show(one)]
        self._count = count
        self._room = room

    def _can_show(self, record: Record) -> bool:
        """Whether the record can be an example in another prompt: it calls no tool and can be
        tokenized."""
        try:
            return not calls_tools(conversation(record)) and bool(self._form.tokenize(record))
        except Unshown:
            return False

    def of(self, record: Record) -> list[Record]:
        """The record's shots, those of its language first; fewer if record and answer would not
        fit."""
        own = [one for one in self._ranked if one["language"] == record["language"]]
        rest = [one for one in self._ranked if one["language"] != record["language"]]
        shots = [*own, *rest][: self._count]
        while shots and max(map(len, self._form.tokenize(record, shots))) > self._room:
            shots.pop()
        return shots
