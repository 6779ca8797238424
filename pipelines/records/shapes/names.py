"""Field names that instruction files use, and the result of reading a record."""

from collections.abc import Mapping
from typing import Any, NamedTuple

PAIRS = (  # question and answer; the first pair that a record has counts
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
QUESTION_FIELDS = ("instruction", "prompt", "question", "query", "input")  # beside an answer that is called `chosen`
CONTEXTS = ("input", "context")
SYSTEM = ("system", "system_prompt")
TURNS = (
    "messages",
    "conversations",
    "conversation",
    "dialogue",
    "dialog",
    "contents",
)  # OpenAI's chat format, ShareGPT's
METADATA_FIELDS = ("language", "topic")
KNOWN = frozenset(name for pair in PAIRS for name in pair) | {*TURNS, "chosen", "chat", "text", "data"}
SHAPES = (
    "instruction, input, output; or prompt and completion, question and answer, messages, conversations, "
    "or a preference pair (prompt, chosen, rejected)"
)
NO_INPUT = ("<noinput>", "<no input>", "n/a", "no input", "none")  # Alpaca's words for an empty input


class Mapped(NamedTuple):
    """`fields` is what a record is checked by, `shape` the names it came under, `dropped_turns` how many turns could not be
    kept; `notes` counts what it holds that is not used, and what was changed; `reason` and `problem` say why it cannot be used;
    `plain`: the fields are texts and nothing else."""

    shape: str = "unknown"
    fields: Mapping[str, Any] = {}
    dropped_turns: int = 0
    notes: Mapping[str, int] = {}
    reason: str | None = None
    problem: str | None = None
    plain: bool = False
