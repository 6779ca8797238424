"""The shapes that instruction data comes in, and how their field names map onto instruction, input, output and messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PAIRS = (  # what is asked, what is answered; the first that a record has counts
    ("instruction", "output"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
)
CONTEXTS = ("input", "context")
SYSTEM = ("system", "system_prompt")
TURNS = ("messages", "conversations", "conversation")  # OpenAI's chat format, ShareGPT's
ROLES = {
    "user": "user", "human": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant",
    "bot": "assistant", "model": "assistant", "system": "system",
}  # fmt: skip
SHAPES = "instruction, input, output; or prompt and completion, question and answer, messages, or conversations"


@dataclass(frozen=True)
class Mapped:
    """`fields` is what a record is checked by, `shape` the names it came under, `dropped_turns` how many turns could not be
    kept; or the `problem` that it has none of the shapes."""

    shape: str = "unknown"
    fields: Mapping[str, Any] = field(default_factory=dict)
    dropped_turns: int = 0
    problem: str | None = None


def map_fields(value: Any) -> Mapped:
    """A record as it came, in whatever shape → the project's own field names."""
    if not isinstance(value, dict):
        return Mapped(fields=value)  # the check says what it is instead
    turns = next((name for name in TURNS if name in value), None)
    if turns and not ("instruction" in value and "output" in value):
        return _from_turns(turns, value)
    for asked, answered in PAIRS:
        if asked in value and answered in value:
            return _from_pair(asked, answered, value)
    if "instruction" in value or "output" in value:
        return Mapped(fields=value)  # the check says which of the two is missing
    names = ", ".join(map(str, value)) or "none"
    return Mapped(problem=f"its fields are {names:.200}; expected {SHAPES}")


def _from_pair(asked: str, answered: str, value: dict[str, Any]) -> Mapped:
    if isinstance(value[asked], list) and isinstance(value[answered], list):  # both as chat turns
        return _from_turns(f"{asked}/{answered}", value | {f"{asked}/{answered}": value[asked] + value[answered]})
    context = next((name for name in CONTEXTS if name in value), None)
    system = next((name for name in SYSTEM if value.get(name)), None)
    shape = "/".join(name for name in (system, asked, context, answered) if name)
    if (asked, answered) == ("instruction", "output") and context != "context" and not system:
        return Mapped(shape, value)
    fields = {name: value[name] for name in ("language", "topic") if name in value}
    fields |= {"instruction": value[asked], "output": value[answered]}
    fields |= {"input": value[context] if value[context] is not None else ""} if context else {}
    if system and not value.get("messages"):
        texts = [text for text in (fields["instruction"], fields.get("input")) if text]
        told = "\n\n".join(text for text in texts if isinstance(text, str))
        turns = (("system", value[system]), ("user", told), ("assistant", value[answered]))
        fields["messages"] = [{"role": role, "content": text} for role, text in turns]
    return Mapped(shape, fields)


def _from_turns(name: str, value: dict[str, Any]) -> Mapped:
    turns = value[name]
    if not isinstance(turns, list):
        return Mapped(name, problem=f"{name}: expected a list of turns (got {turns!r:.60})")
    kept, dropped = _conversation(turns)
    if not any(turn["role"] == "assistant" for turn in kept):
        return Mapped(name, dropped_turns=dropped, problem=f"{name}: no answer of an assistant to a user in it")
    texts = {role: [turn["content"] for turn in kept if turn["role"] == role] for role in ("user", "assistant")}
    fields = {key: value[key] for key in ("language", "topic") if key in value}
    fields |= {"instruction": texts["user"][0], "output": texts["assistant"][-1]}
    if len(kept) > 2:  # a single question and its answer is a record like any other
        fields["messages"] = kept
    return Mapped(name, fields, dropped)


def _conversation(turns: list[Any]) -> tuple[list[dict[str, str]], int]:
    """The turns that a chat template can show, and how many others there were: a system prompt in front, then user and
    assistant by turns, an answer last. Neighbours of one role are joined, since most templates refuse them."""
    kept: list[dict[str, str]] = []
    dropped = 0
    for turn in turns:
        role, text = _turn(turn)
        fits = text and (
            role == "user" or (role == "system" and not _asked(kept)) or (role == "assistant" and _asked(kept))
        )
        if not fits:
            dropped += 1
        elif kept and kept[-1]["role"] == role:
            kept[-1] = {"role": role, "content": f"{kept[-1]['content']}\n\n{text}"}
        else:
            kept.append({"role": role, "content": text})
    while kept and kept[-1]["role"] != "assistant":
        kept.pop()
        dropped += 1
    return kept, dropped


def _asked(kept: list[dict[str, str]]) -> bool:
    return any(turn["role"] == "user" for turn in kept)


def _turn(turn: Any) -> tuple[str, str]:
    """Role and text of a turn; both "" where it has none that we know."""
    if not isinstance(turn, dict):
        return "", ""
    role = turn.get("role", turn.get("from"))
    text = turn.get("content", turn.get("value"))
    if isinstance(text, list):  # parts of a message: its texts
        parts = [part.get("text") for part in text if isinstance(part, dict) and part.get("type") == "text"]
        text = "\n".join(part for part in parts if isinstance(part, str))
    known = ROLES.get(role.lower(), "") if isinstance(role, str) else ""
    return (known, text) if isinstance(text, str) and text.strip() else (known, "")
