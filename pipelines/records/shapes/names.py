"""Field names in instruction files, and the result of mapping a record."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# Names of question and answer. The first pair that a record has counts.
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("instruction", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("question", "output"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("input", "output"),
    ("inputs", "targets"),
    ("input", "target"),
    ("q", "a"),
    ("user", "assistant"),
    ("human", "assistant"),
)
# Names of the question beside an answer with the name `chosen`.
QUESTION_FIELDS = ("instruction", "prompt", "question", "query", "input")
CONTEXTS = ("input", "context")
SYSTEM = ("system", "system_prompt")
# Names of lists of turns in OpenAI's chat format and in ShareGPT's.
TURNS = (
    "messages",
    "conversations",
    "conversation",
    "dialogue",
    "dialog",
    "contents",
)
METADATA_FIELDS = ("language", "topic")
KNOWN = frozenset(name for pair in PAIRS for name in pair) | {*TURNS, "chosen", "chat", "text", "data"}
SHAPES = (
    "instruction, input, output; or prompt and completion, question and answer, messages, conversations, "
    "or a preference pair (prompt, chosen, rejected)"
)
# Alpaca's words for an empty input.
NO_INPUT = ("<noinput>", "<no input>", "n/a", "no input", "none")


class Mapped(NamedTuple):
    """The result of mapping a record.

    `fields` has the project's field names, and `shape` the record's own names. `dropped_turns` is
    the number of dropped turns. `notes` counts unused fields and changes. `reason` and `problem`
    say why the record cannot be used. `plain` means that all fields are plain texts.
    """

    shape: str = "unknown"
    fields: Mapping[str, Any] = {}
    dropped_turns: int = 0
    notes: Mapping[str, int] = {}
    reason: str | None = None
    problem: str | None = None
    plain: bool = False
