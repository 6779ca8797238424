"""The mapping of a record in any shape to the project's field names, or to the reason why it cannot
be used.

The order of shapes: preference pairs (`chosen`, `rejected`), then turns (`messages`, ShareGPT's
`conversations`) and other dialogues, then a question and its answer under one of many names, with
earlier turns (`history`) and a system prompt.
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from pipelines.records.shapes import labels, media, reasoning, tools, transcripts
from pipelines.records.shapes.names import (
    CONTEXTS,
    KNOWN,
    METADATA_FIELDS,
    NO_INPUT,
    PAIRS,
    QUESTION_FIELDS,
    SHAPES,
    SYSTEM,
    TURNS,
    Mapped,
)
from pipelines.records.shapes.options import DEFAULT, Options, Unusable
from pipelines.records.shapes.plain import holds_something, plain_pair
from pipelines.records.shapes.turns import Conversation, conversation, reasoned


def map_fields(value: Any, options: Options = DEFAULT, columns: Mapping[str, str] | None = None) -> Mapped:
    """Map a record to the project's field names.

    `columns` names its fields; with it, no other field counts.
    """
    if not columns and type(value) is dict and (plain := plain_pair(value)):
        return plain
    if not isinstance(value, dict):
        return Mapped(problem=f"expected an object with named fields, got {kind(value)} {value!r:.60}")
    shape = "unknown"
    try:
        fields = _rename(value, columns) if columns else _in_lower_case(value)
        shape, read = _reader(fields)
        _check_media(fields)
        labels.refuse_bad(fields)
        content = read(fields, options)
    except Unusable as unusable:
        return Mapped(shape, reason=unusable.reason, problem=unusable.detail)
    used = {columns[name] for name in content.used if name in columns} if columns else content.used
    notes = dict(content.notes)
    for name in value.keys() - used:
        if holds_something(name, value, used):
            notes[f"field {name}"] = 1
    return Mapped(shape, content.fields, content.dropped, notes)


class _Content(NamedTuple):
    fields: dict[str, Any]
    used: set[str]
    dropped: int = 0
    notes: Mapping[str, int] = {}


def kind(value: Any) -> str:
    """The type of a value in words."""
    return {dict: "object", list: "list", str: "text", bool: "true or false", type(None): "null"}.get(
        type(value), "number"
    )


def _in_lower_case(value: dict[Any, Any]) -> dict[str, Any]:
    """The record with lower-case names, unless it already has a known name."""
    if not KNOWN.isdisjoint(value):
        return value
    lower = {str(name).strip().lower(): item for name, item in value.items()}
    return lower if len(lower) == len(value) else value


def _rename(value: dict[Any, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    if missing := [
        f"{theirs!r} (columns.{ours})" for ours, theirs in columns.items() if theirs not in value and ours in REQUIRED
    ]:
        names = ", ".join(map(str, value)) or "none"
        raise Unusable("schema", f"has no field {', '.join(missing)}; its fields are {names:.200}")
    return {ours: value[theirs] for ours, theirs in columns.items() if theirs in value}


REQUIRED = ("instruction", "output", "messages", "chosen")


def _reader(value: dict[str, Any]) -> tuple[str, Any]:
    """The name of the record's shape, and its reader."""
    if not isinstance(value.get("chosen"), bool | None):
        return _shape(value, *TURNS, *QUESTION_FIELDS, "chosen", "rejected"), _from_preference
    if name := next((name for name in TURNS if value.get(name) is not None), None):
        return name, partial(_from_turns, name=name)
    for name in ("chat", "text"):
        if (transcript := _transcript(value, name)).turns:
            return name, partial(_from_transcript, name=name, transcript=transcript)
    if _is_list_of_texts(value.get("data")):
        return "data", _from_texts
    if value.keys() >= {"query", "tools", "answers"}:
        return "query/tools/answers", _from_calls
    for question_field, answer_field in PAIRS:
        if question_field in value and answer_field in value:
            return _pair_shape(value, question_field, answer_field), partial(
                _from_pair, question_field=question_field, answer_field=answer_field
            )
    if "instruction" in value and _holds_pairs(value.get("instances")):
        return "instruction/instances", _from_instances
    raise _no_shape(value)


def _no_shape(value: dict[str, Any]) -> Unusable:
    """The error for a record without a known shape.

    Raises:
        Unusable: the record has a picture, in any field.
    """
    if name := next((name for name in ("tools", "functions", "function") if value.get(name)), None):
        return Unusable("tool_calls", f"the field {name} declares tools, in a shape that is not known")
    _check_media(value)
    if isinstance(value.get("text"), str):
        return Unusable(
            "schema",
            "its text holds no turns in a known template (ChatML, Llama, Gemma, ### Human:, ### Instruction:, Human:)",
        )
    names = ", ".join(map(str, value)) or "none"
    return Unusable("schema", f"its fields are {names:.200}; expected {SHAPES}")


def _transcript(value: Mapping[str, Any], name: str) -> transcripts.Transcript:
    """The dialogue in a text.

    Beside a question and its answer it is ignored, since it usually repeats them in a template.
    """
    paired = any(question_field in value and answer_field in value for question_field, answer_field in PAIRS)
    text = value.get(name)
    return transcripts.Transcript([]) if paired or not isinstance(text, str) else transcripts.read(text)


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _holds_pairs(instances: Any) -> bool:
    if not isinstance(instances, list) or not instances:
        return False
    return all(isinstance(each, dict) and "output" in each for each in instances)


def _shape(value: Mapping[str, Any], *names: str) -> str:
    """Those of the names that the record has; optional fields must not be empty."""
    optional = (*SYSTEM, "history")
    return "/".join(dict.fromkeys(name for name in names if (value.get(name) if name in optional else name in value)))


def _pair_shape(value: Mapping[str, Any], question_field: str, answer_field: str) -> str:
    if len(value) == 2 + ("input" in value) and question_field != "input":
        return f"{question_field}/input/{answer_field}" if "input" in value else f"{question_field}/{answer_field}"
    return _shape(value, *SYSTEM, "history", question_field, *CONTEXTS, answer_field)


def _check_media(value: Mapping[str, Any]) -> None:
    if name := media.field_of(value):
        raise Unusable("not_text", f"the field {name} holds {value[name]!r:.60}")


def _from_turns(value: dict[str, Any], options: Options, *, name: str) -> _Content:
    # CSV and some Parquet files have the list as JSON text.
    turns = tools.as_data(value[name])
    if not isinstance(turns, (list, tuple)):
        raise Unusable("schema", f"{name}: expected a list of turns (got {turns!r:.60})")
    system = _system(value)
    turns = _after_system(value, turns)
    used = {name, *labels.names_in(value), *METADATA_FIELDS, *((system,) if system else ())}
    return _from_conversation(value, conversation(turns, options), options, used)


def _from_transcript(
    value: dict[str, Any], options: Options, *, name: str, transcript: transcripts.Transcript
) -> _Content:
    """A dialogue in one text: Glaive's `chat`, and the `text` of files prepared for a trainer."""
    content = _from_turns({**value, "messages": transcript.turns}, options, name="messages")
    return content._replace(used=content.used | {name}, notes={**content.notes, **transcript.notes})


def _from_instances(value: dict[str, Any], options: Options) -> _Content:
    """An instruction with several inputs and outputs, as in self-instruct's seed tasks.

    Only the first pair is used.
    """
    first, *others = value["instances"]
    content = _from_pair({**value, **first}, options, question_field="instruction", answer_field="output")
    notes = {**content.notes, **({"further instances": len(others)} if others else {})}
    return content._replace(used=content.used | {"instances"}, notes=notes)


def _from_texts(value: dict[str, Any], options: Options) -> _Content:
    """Alternating texts of the user and the assistant, as in UltraChat."""
    roles = ("user", "assistant")
    turns = [{"role": roles[place % 2], "content": text} for place, text in enumerate(value["data"])]
    content = _from_turns({**value, "messages": turns}, options, name="messages")
    return content._replace(used=content.used | {"data"})


def _from_calls(value: dict[str, Any], options: Options) -> _Content:
    """A question and the calls that answer it, as in xLAM's data."""
    calls = tools.as_data(value["answers"])
    called = [tools.call(each) for each in (calls if isinstance(calls, list) else [calls])]
    turns = [{"role": "user", "content": value["query"]}, {"role": "assistant", "content": "", "tool_calls": called}]
    content = _from_turns({**value, "messages": turns}, options, name="messages")
    return content._replace(used=content.used | {"query", "answers"})


def _after_system(value: Mapping[str, Any], turns: Any) -> Any:
    """The turns, with the record's own system prompt in front if they do not begin with one."""
    system = _system(value)
    return (
        [{"role": "system", "content": value[system]}, *turns] if system and not _begins_with_system(turns) else turns
    )


def _begins_with_system(turns: Any) -> bool:
    first = turns[0] if len(turns) else None
    return isinstance(first, dict) and str(first.get("role", first.get("from"))).lower() in ("system", "developer")


def _from_conversation(value: Mapping[str, Any], talk: Conversation, options: Options, used: set[str]) -> _Content:
    """The record of a conversation.

    A single question with its answer becomes an ordinary record.
    """
    for turn in talk.turns:
        if turn.role == "user" and (mark := media.mark_in(turn.text)):
            raise Unusable("not_text", f"a question holds {mark}")
    question = next(turn.text for turn in talk.turns if turn.role == "user")
    if words := media.pointed_at(question) if len(talk.turns) <= 3 else media.uploaded(question):
        raise Unusable("not_text", f"asks about a picture that is not there: {words}")
    fields: dict[str, Any] = {name: value[name] for name in METADATA_FIELDS if name in value}
    fields |= {"instruction": question, "output": talk.turns[-1].text}
    if len(talk.turns) > 2:
        fields["messages"] = [turn.message() for turn in talk.turns]
    if options.tool_calls == "keep" and (declared_tools := tools.declared(value.get("tools", value.get("functions")))):
        fields |= {"tools": declared_tools, "messages": [turn.message() for turn in talk.turns]}
        used |= {"tools", "functions"}
    return _Content(fields, used, dropped=talk.dropped, notes=talk.notes)


def _from_preference(value: dict[str, Any], options: Options) -> _Content:
    """A preference pair with the chosen answer as the answer. The rejected one is only counted."""
    chosen, prompt, names = tools.as_data(value["chosen"]), *_prompt_of(value)
    notes = {"rejected answers": 1} if value.get("rejected") is not None else {}
    used = {"chosen", "rejected", *names, *labels.names_in(value), *METADATA_FIELDS, *SYSTEM}
    if isinstance(chosen, str):
        if not prompt:
            transcript = _by_speaker(chosen)
            turns = transcript.turns
            notes |= transcript.notes
        elif isinstance(prompt, str):
            pair = {**value, "output": chosen}
            content = _from_pair(pair, options, question_field=names[0], answer_field="output")
            return _Content(
                content.fields, used | content.used, dropped=content.dropped, notes={**content.notes, **notes}
            )
        else:
            turns = [*prompt, {"role": "assistant", "content": chosen}]
    else:
        answer = [chosen] if isinstance(chosen, dict) else list(chosen) if isinstance(chosen, (list, tuple)) else []
        is_complete = bool(answer) and _role(answer[0]) in ("user", "human", "system", "developer")
        questions = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        answer = [
            {"role": "assistant", **turn} if isinstance(turn, dict) and not _role(turn) else turn for turn in answer
        ]
        turns = answer if is_complete else [*questions, *answer]
    talk = conversation(_after_system(value, turns), options)
    content = _from_conversation(value, talk, options, used)
    return _Content(content.fields, content.used, dropped=content.dropped, notes={**content.notes, **notes})


def _prompt_of(value: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The prompt of a preference pair, as turns or a text, and the names of its fields."""
    for name in (*TURNS, *QUESTION_FIELDS):
        prompt = tools.as_data(value.get(name))
        if isinstance(prompt, (list, tuple)) or (isinstance(prompt, str) and name in QUESTION_FIELDS):
            return (list(prompt) if isinstance(prompt, (list, tuple)) else prompt), [name]
    return [], []


def _role(turn: Any) -> str:
    return str(turn.get("role", turn.get("from")) or "").lower() if isinstance(turn, dict) else ""


def _by_speaker(text: str) -> transcripts.Transcript:
    """The turns of a preference pair's text with "Human:" or "Assistant:" in front of each."""
    transcript = transcripts.read(text)
    if not transcript.turns:
        raise Unusable("schema", "chosen is a text without a question; expected prompt beside it, or turns")
    return transcript


def _context(value: dict[str, Any], question_field: str) -> str | None:
    """The name of the field with the context of the question, or None."""
    if "input" in value and question_field != "input":
        return "input"
    return "context" if "context" in value else None


def _input(value: Any) -> Any:
    text = _text(value)
    return "" if isinstance(text, str) and text.strip().lower() in NO_INPUT else text


def _from_pair(value: dict[str, Any], options: Options, *, question_field: str, answer_field: str) -> _Content:
    question, answer = value[question_field], value[answer_field]
    # Both are lists of chat turns.
    if isinstance(question, list) and isinstance(answer, list):
        talk = conversation([*question, *answer], options)
        return _from_conversation(
            value, talk, options, {question_field, answer_field, *labels.names_in(value), *METADATA_FIELDS}
        )
    context = _context(value, question_field)
    system = _system(value)
    used = {question_field, answer_field, *labels.names_in(value), *METADATA_FIELDS}
    used.update(name for name in (context, system) if name)
    notes: Counter[str] = Counter()
    fields: dict[str, Any] = {"instruction": _text(question), "output": _text(answer)}
    fields.update((name, value[name]) for name in METADATA_FIELDS if name in value)
    if context:
        fields["input"] = _input(value[context])
    if isinstance(fields["output"], str):
        fields["output"] = _answer(value, fields["output"], options, notes, used, question=str(question))
    _check_question(fields)
    history = tools.as_data(value.get("history"))
    if system or history:
        used |= {"history"} if history else set()
        return _with_turns(value, fields, value[system] if system else None, history or [], options, used, notes)
    return _Content(fields, used, notes=notes)


def _system(value: Mapping[str, Any]) -> str | None:
    """The name of the field with a system prompt, or None."""
    for name in SYSTEM:
        if isinstance(prompt := value.get(name), str) and prompt.strip():
            return name
    return None


def _text(value: Any) -> Any:
    """The value; "" for null and for pandas' NaN, which stand for an empty text in files."""
    return "" if value is None or value != value else value


def _answer(
    value: Mapping[str, Any], text: str, options: Options, notes: Counter[str], used: set[str], *, question: str
) -> str:
    """The answer, with its reasoning treated according to the setting."""
    if (mark := tools.written_in(text, question)) and options.tool_calls == "reject":
        raise Unusable("tool_calls", f"the answer writes a call: {mark}")
    inside, answer = reasoning.split(text)
    field = next((name for name in reasoning.FIELDS if isinstance(value.get(name), str) and value[name].strip()), None)
    if inside is None and not field:
        return text
    used |= {field} if field else set()
    thought = "\n\n".join(thought for thought in (value[field] if field else None, inside) if thought)
    return reasoned(thought, answer, options, notes)


def _check_question(fields: Mapping[str, Any]) -> None:
    instruction, context = fields["instruction"], fields.get("input") or ""
    for text in (instruction, context):
        if isinstance(text, str) and (mark := media.mark_in(text)):
            raise Unusable("not_text", f"the question holds {mark}")
    if (
        isinstance(instruction, str)
        and isinstance(context, str)
        and (words := media.pointed_at(f"{instruction}\n{context}"))
    ):
        raise Unusable("not_text", f"asks about a picture that is not there: {words}")


def _with_turns(
    value: Mapping[str, Any], fields: dict[str, Any], system: str | None, history: Any, options: Options, used: set[str],
    notes: Counter[str],
) -> _Content:  # fmt: skip
    """The pair as the last exchange of a conversation, after a system prompt and the turns of
    LLaMA-Factory's `history`."""
    turns: list[Any] = [{"role": "system", "content": system}] if system else []
    if not isinstance(history, (list, tuple)) or not all(
        isinstance(each, (list, tuple)) and len(each) == 2 for each in history
    ):
        raise Unusable("schema", f"history: expected a list of pairs [question, answer] (got {history!r:.60})")
    for question, answer in history:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    prompt = "\n\n".join(
        text for text in (fields["instruction"], fields.get("input")) if isinstance(text, str) and text
    )
    turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": fields["output"]}]
    if not isinstance(fields["output"], str) or not fields["output"].strip() or not prompt.strip():
        # The validation and the rules report the problem.
        return _Content(fields, used, notes=notes)
    talk = conversation(turns, options)
    messages = [turn.message() for turn in talk.turns]
    return _Content({**fields, "messages": messages}, used, dropped=talk.dropped, notes={**notes, **talk.notes})
