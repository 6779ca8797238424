"""The treatment of tool calls, and of reasoning in front of an answer."""

from dataclasses import dataclass
from typing import Literal

ToolCalls = Literal["reject", "keep"]
Reasoning = Literal["strip", "keep", "reject"]


@dataclass(frozen=True)
class Options:
    """`tool_calls`: reject records with calls, or keep the calls in one form.

    `reasoning`: strip the reasoning (in <think> tags or in `reasoning_content`), keep it in front
    of the answer in <think> tags, or reject the record.
    """

    tool_calls: ToolCalls = "reject"
    reasoning: Reasoning = "strip"


DEFAULT = Options()


class Unusable(Exception):
    """A record that cannot be used, with the `reason` code and a detail for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
