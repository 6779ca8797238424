"""What is done with what a plain question and answer does not have: tool calls, and the reasoning in front of an answer."""

from dataclasses import dataclass
from typing import Literal

ToolCalls = Literal["reject", "keep"]
Reasoning = Literal["strip", "keep", "reject"]


@dataclass(frozen=True)
class Options:
    """`tool_calls`: records with calls are rejected whole, or carried on in one form. `reasoning`: what stands in <think> tags or
    in `reasoning_content` is taken off the answer, kept in front of it in <think> tags, or a reason to reject the record."""

    tool_calls: ToolCalls = "reject"
    reasoning: Reasoning = "strip"


DEFAULT = Options()


class Unusable(Exception):
    """A record that cannot be used, with the `reason` code that it is rejected for and a detail for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
