"""An exchange: an answer that the model learns, the question right before it, and everything the model sees before it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.clean import prose


@dataclass(frozen=True)
class Exchange:
    """`question`: instruction and input, or the user's last turn. `before`: all turns before the answer. `answer`: the text that is
    learned."""

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
