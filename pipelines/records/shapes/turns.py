"""Chat turns of all formats as messages in one form: system, then user and assistant alternating, a
learned answer last."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.records.shapes import labels, media, reasoning, tools
from pipelines.records.shapes.options import Options, Unusable

ROLES = {
    "user": "user", "human": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant",
    "bot": "assistant", "chatbot": "assistant", "model": "assistant", "ai": "assistant", "system": "system", "developer": "system",
}  # fmt: skip
_XTUNER = {"system": "system", "input": "user", "output": "assistant"}
# The switch for learning a turn in the formats of OpenAI, LLaMA-Factory and Axolotl.
WEIGHTS = ("weight", "loss_weight", "train")
ARRAY = (list, tuple)
Message = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """One turn. `thought` is an assistant's reasoning, or None.

    `calls` are its tool calls. `learned` is false if the file marks an answer as context only. A
    turn without role and text is of an unknown kind.
    """

    role: str
    text: str
    thought: str | None = None
    calls: tuple[Message, ...] = ()
    learned: bool = True
    answers_call: Message | None = None

    @property
    def is_blank(self) -> bool:
        return not (self.text.strip() or self.calls)

    def message(self) -> Message:
        """The stored message, with `train: false` and `tool_calls` only if needed."""
        message: Message = {"role": self.role, "content": self.text}
        if self.calls:
            message["tool_calls"] = list(self.calls)
        if self.role == "assistant" and not self.learned:
            message["train"] = False
        return message | (self.answers_call or {})


@dataclass(frozen=True)
class Conversation:
    """The result of reading turns: the kept ones, the number of dropped ones, and notes."""

    turns: list[Turn]
    dropped: int
    notes: Counter[str]


def conversation(raw: Sequence[Any], options: Options) -> Conversation:
    """The turns in a form for chat templates: a system prompt first, then user and assistant
    alternating, an answer last.

    Adjacent turns of one role are joined, because most templates refuse them.

    Raises:
        Unusable: a turn has media, calls a tool (unless calls are kept) or has an unknown role, or
            there is no answer.
    """
    turns = [turn for place, value in enumerate(raw) for turn in _read(place, value, options)]
    notes: Counter[str] = Counter()
    turns = [_without_reasoning(turn, options, notes) for turn in turns]
    _require_answer(turns)
    ordered, dropped = _in_order(turns)
    _check_turns(turns, ordered)
    # Turns after the last learned answer teach nothing.
    while not (ordered[-1].role == "assistant" and ordered[-1].learned):
        ordered.pop()
        dropped += 1
    if context_only := sum(turn.role == "assistant" and not turn.learned for turn in ordered):
        notes["answers that are context only, as the file says"] += context_only
    return Conversation(ordered, dropped, notes)


def _check_turns(turns: Sequence[Turn], ordered: Sequence[Turn]) -> None:
    questions = [turn for turn in turns if turn.role == "user"]
    if questions and all(turn.is_blank for turn in questions):
        raise Unusable("empty", "nothing is asked: every turn of the user is blank")
    answers = [turn for turn in ordered if turn.role == "assistant"]
    if not answers:
        raise Unusable("schema", "no answer of an assistant to a user in it")
    if not any(turn.learned for turn in answers):
        raise Unusable("schema", f"no answer that is learned: {' or '.join(WEIGHTS)} switches every one off")


def _require_answer(turns: Sequence[Turn]) -> None:
    answers = [turn for turn in turns if turn.role == "assistant"]
    if answers and all(turn.is_blank for turn in answers):
        raise Unusable("empty", "every answer of the assistant is blank")


def _in_order(turns: Sequence[Turn]) -> tuple[list[Turn], int]:
    ordered: list[Turn] = []
    dropped = 0
    for turn in turns:
        has_question = any(before.role == "user" for before in ordered)
        before = ordered[-1] if ordered else None
        fits = {
            "user": True,
            "system": not has_question,
            "assistant": has_question,
            "tool": before is not None and (bool(before.calls) or before.role == "tool"),
        }.get(turn.role, False)
        if turn.is_blank and turn.role != "tool":
            fits = False
        if not fits:
            dropped += 1
        elif before and before.role == turn.role and _can_join(before, turn):
            ordered[-1] = replace(
                before, text=f"{before.text}\n\n{turn.text}" if before.text else turn.text, calls=turn.calls
            )
        else:
            ordered.append(turn)
    while ordered and ordered[-1].role != "assistant":
        ordered.pop()
        dropped += 1
    return ordered, dropped


def _can_join(one: Turn, other: Turn) -> bool:
    return one.role != "tool" and one.learned == other.learned and not one.calls


def _xtuners_pair(place: int, value: Message, options: Options) -> Iterator[Turn]:
    for spoken in ("system", "input", "output"):
        if value.get(spoken):
            yield from _read(place, {"role": _XTUNER[spoken], "content": value[spoken]}, options)


def _refuse_media(place: int, role: str, value: Message, parts: Iterable[Any]) -> None:
    if kind := next(filter(None, map(media.kind_of_part, parts)), None):
        raise Unusable("not_text", f"turn {place + 1} holds a part of the type {kind}")
    if (name := media.field_of(value)) and role in ROLES:
        raise Unusable("not_text", f"turn {place + 1} holds {name}")


def _read(place: int, value: Any, options: Options) -> Iterator[Turn]:
    """The turn, or several if a message has results of tools beside its text."""
    if not isinstance(value, dict):
        yield Turn("", "")
        return
    role = value.get("role", value.get("from"))
    if role is None and "input" in value and "output" in value:
        yield from _xtuners_pair(place, value, options)
        return
    # An item of OpenAI's Responses.
    if role is None and _kind(value) in (*tools.CALL_PARTS, *tools.RESULT_PARTS):
        role = "function_call" if _kind(value) in tools.CALL_PARTS else "tool"
        value = {"content": value.get("output") or json.dumps(value, default=str), **value}
    role_name = role.strip().lower() if isinstance(role, str) else ""
    text, parts = _text_of(value)
    _refuse_media(place, role_name, value, parts)
    if role_name in tools.CALL_ROLES:
        yield _check_call(place, Turn("assistant", "", calls=tuple(tools.calls_in(text))), options)
    elif role_name in tools.RESULT_ROLES:
        yield _check_call(place, _result(value, text), options)
    elif role_name in ROLES:
        yield from _spoken_turns(place, ROLES[role_name], text, value, options)
    elif text.strip():
        raise Unusable("schema", f"turn {place + 1}: its role is {role!r:.40}; expected one of {', '.join(ROLES)}")
    else:
        yield Turn("", "")


def _spoken_turns(place: int, role: str, text: str, value: Message, options: Options) -> Iterator[Turn]:
    """A turn of a speaker, and the tool calls and results in its parts."""
    parts = [part for part in _parts(value) if isinstance(part, dict)]
    for part in parts:
        if _kind(part) in tools.RESULT_PARTS:
            yield _check_call(place, _result(part, _as_text(part.get("content", part.get("output", "")))), options)
    if role != "assistant":
        yield Turn(role, text)
        return
    labels.refuse_bad(value, f"turn {place + 1}'s")
    calls = tools.calls_of(value)
    for part in parts:
        if _kind(part) in tools.CALL_PARTS:
            content = part.get("value", part.get("text"))
            calls.append(tools.call(content if content is not None else part))
        elif function_call := part.get("functionCall", part.get("function_call")):
            calls.append(tools.call(function_call))
    turn = Turn(role, text, _thought(value, parts), tuple(calls), _is_learned(value))
    if calls:
        _check_call(place, turn, options)
    if (mark := tools.written_in(text)) and options.tool_calls == "reject":
        raise Unusable("tool_calls", f"turn {place + 1} writes a call: {mark}")
    yield turn


def _kind(part: Message) -> str:
    """A part's type; "" if it has none, or if it is not a text."""
    kind = part.get("type")
    return kind if isinstance(kind, str) else ""


def _check_call(place: int, turn: Turn, options: Options) -> Turn:
    if options.tool_calls == "reject":
        action = f"calls {tools.names(list(turn.calls))}" if turn.calls else "is the result of a tool"
        raise Unusable("tool_calls", f"turn {place + 1} {action}")
    return turn


def _result(value: Message, text: str) -> Turn:
    fields = {"tool_call_id": value.get("tool_call_id") or value.get("tool_use_id"), "name": value.get("name")}
    return Turn("tool", text, answers_call={key: str(item) for key, item in fields.items() if item})


def _text_of(value: Message) -> tuple[str, list[Message]]:
    """The text of a turn, and its parts if its content is a list of parts."""
    # Gemini's name is `parts`.
    content = value.get("content", value.get("value", value.get("parts", value.get("text"))))
    if not isinstance(content, ARRAY):
        return (content if isinstance(content, str) else ""), []
    parts = [part for part in content if isinstance(part, dict)]
    texts = [part if isinstance(part, str) else _part_text(part) for part in content]
    return "\n".join(text for text in texts if text), parts


def _parts(value: Message) -> Sequence[Any]:
    content = value.get("content", value.get("value", value.get("parts")))
    return content if isinstance(content, ARRAY) else ()


def _part_text(part: Any) -> str:
    """A part's text: `text` in OpenAI's format, `value` in LLaMA-Factory's."""
    if not isinstance(part, dict) or part.get("type", "text") not in ("text", "input_text", "output_text"):
        return ""
    return _as_text(part.get("text", part.get("value")))


def _as_text(value: Any) -> str:
    if isinstance(value, ARRAY):
        return "\n".join(
            filter(None, (_part_text(part) if isinstance(part, dict) else _as_text(part) for part in value))
        )
    return value if isinstance(value, str) else ""


def _thought(value: Message, parts: Sequence[Message]) -> str | None:
    """The reasoning beside an answer, in a field of the message or in parts of its content."""
    part_texts = [part.get("value", part.get("text", part.get("thinking"))) for part in parts
              if part.get("type") in ("reasoning", "thinking")]  # fmt: skip
    texts = [_as_text(each) for each in (*(value.get(name) for name in reasoning.FIELDS), *part_texts)]
    return "\n\n".join(filter(None, texts)) or None


def _without_reasoning(turn: Turn, options: Options, notes: Counter[str]) -> Turn:
    if turn.role != "assistant":
        return turn
    inside, answer = reasoning.split(turn.text)
    thoughts = [thought for thought in (turn.thought, inside) if thought]
    if inside is None and not thoughts:
        return turn
    thought = "\n\n".join(thoughts)
    return replace(turn, text=reasoned(thought, answer, options, notes), thought=thought)


def reasoned(thought: str, answer: str, options: Options, notes: Counter[str]) -> str:
    """The answer, with its reasoning treated according to the setting.

    Raises:
        Unusable: the setting rejects records with reasoning.
    """
    if options.reasoning == "reject" and thought:
        raise Unusable("reasoning", "the answer holds reasoning, which cleaning.reasoning rejects")
    is_kept = options.reasoning == "keep" and bool(thought)
    notes["answers with reasoning in front, kept" if is_kept else "answers whose reasoning was taken off"] += 1
    return reasoning.joined(thought, answer) if is_kept else answer


def _is_learned(value: Message) -> bool:
    """Whether the file marks the turn as learned: OpenAI's `weight`, LLaMA-Factory's `loss_weight`,
    Axolotl's `train`."""
    weights = [value[name] for name in WEIGHTS if value.get(name) is not None]
    return not any(
        weight is False or weight == 0 or str(weight).strip().lower() in ("false", "0", "0.0") for weight in weights
    )
