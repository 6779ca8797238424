"""What rules about single answers look at: an answer, what was asked right before it, and all that stood before it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.clean import prose


@dataclass(frozen=True)
class Exchange:
    """`question` is what was asked last (instruction and input, or the user's turn), `before` all that the model sees before
    it answers, `answer` what it learns to say."""

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
    """Every answer of a row of `staged` that is learned, in its order."""
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
