"""An exchange: an answer that the model learns, the question right before it, and all turns before
the answer."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.clean import prose


@dataclass(frozen=True)
class Exchange:
    """One answer and what leads to it.

    `question`: instruction and input, or the user's last turn. `answer`: the text that is learned.
    `before`: all turns before the answer.
    """

    question: str
    answer: str
    before: str = ""

    @cached_property
    def answer_prose(self) -> str:
        return prose.prose(self.answer)

    @cached_property
    def is_code(self) -> bool:
        return prose.is_code(self.answer)

    @property
    def context(self) -> str:
        return self.before or self.question


def exchanges(row: Mapping[str, Any]) -> Iterator[Exchange]:
    """The exchange of every learned answer in a row of `staged`, in order."""
    if not row["messages"]:
        yield Exchange("\n".join(text for text in (row["instruction"], row["input"]) if text.strip()), row["output"])
        return
    before, question = [], ""
    for turn in json.loads(row["messages"]):
        if turn["role"] == "assistant" and turn.get("train") is not False and turn["content"].strip():
            yield Exchange(question, turn["content"], "\n".join(before))
        elif turn["role"] == "user":
            question = turn["content"]
        before.append(turn["content"])
