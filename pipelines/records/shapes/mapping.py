"""A record in whatever shape → the project's field names, what of it is not used, or the reason why it cannot be used.

Shapes are tried in this order: turns (`messages`, ShareGPT's `conversations`), preference pairs (`chosen`, `rejected`), then a
question and its answer under one of many names, with turns before it (`history`) and a system prompt where it has them.
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from pipelines.records.shapes import labels, media, reasoning, tools, transcripts
from pipelines.records.shapes.names import (
    ASKED,
    CARRIED,
    CONTEXTS,
    KNOWN,
    NO_INPUT,
    PAIRS,
    SHAPES,
    SYSTEM,
    TURNS,
    Mapped,
)
from pipelines.records.shapes.options import DEFAULT, Options, Unusable
from pipelines.records.shapes.plain import holds_something, plain_pair
from pipelines.records.shapes.turns import Conversation, conversation, reasoned


def map_fields(value: Any, options: Options = DEFAULT, columns: Mapping[str, str] | None = None) -> Mapped:
    """A record as it came → the project's own field names. `columns` says which of its fields is what; no other then counts."""
    if not columns and type(value) is dict and (plain := plain_pair(value)):
        return plain
    if not isinstance(value, dict):
        return Mapped(problem=f"expected an object with named fields, got {kind(value)} {value!r:.60}")
    shape = "unknown"
    try:
        named = _renamed(value, columns) if columns else _in_lower_case(value)
        shape, read = _reader(named)
        _check_media(named)
        labels.refuse_bad(named)
        found = read(named, options)
    except Unusable as unusable:
        return Mapped(shape, reason=unusable.reason, problem=unusable.detail)
    used = {columns[name] for name in found.used if name in columns} if columns else found.used
    notes = dict(found.notes)
    for name in value.keys() - used:
        if holds_something(name, value, used):
            notes[f"field {name}"] = 1
    return Mapped(shape, found.fields, found.dropped, notes)


class _Found(NamedTuple):
    fields: dict[str, Any]
    used: set[str]
    dropped: int = 0
    notes: Mapping[str, int] = {}


def kind(value: Any) -> str:
    """What a value is, in words."""
    return {dict: "object", list: "list", str: "text", bool: "true or false", type(None): "null"}.get(
        type(value), "number"
    )


def _in_lower_case(value: dict[Any, Any]) -> dict[str, Any]:
    """The record under names in lower case, where none of them is a name that we know and those in lower case are."""
    if not KNOWN.isdisjoint(value):
        return value
    lower = {str(name).strip().lower(): held for name, held in value.items()}
    return lower if len(lower) == len(value) else value


def _renamed(value: dict[Any, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    if missing := [
        f"{theirs!r} (columns.{ours})" for ours, theirs in columns.items() if theirs not in value and ours in REQUIRED
    ]:
        names = ", ".join(map(str, value)) or "none"
        raise Unusable("schema", f"has no field {', '.join(missing)}; its fields are {names:.200}")
    return {ours: value[theirs] for ours, theirs in columns.items() if theirs in value}


REQUIRED = ("instruction", "output", "messages", "chosen")


def _reader(value: dict[str, Any]) -> tuple[str, Any]:
    """The name of the record's shape, and what reads it."""
    if not isinstance(value.get("chosen"), bool | None):
        return _shape(value, *TURNS, *ASKED, "chosen", "rejected"), _from_preference
    if name := next((name for name in TURNS if value.get(name) is not None), None):
        return name, partial(_from_turns, name=name)
    for name in ("chat", "text"):
        if (held := _transcript(value, name)).turns:
            return name, partial(_from_transcript, name=name, held=held)
    if _is_list_of_texts(value.get("data")):
        return "data", _from_texts
    if value.keys() >= {"query", "tools", "answers"}:
        return "query/tools/answers", _from_calls
    for asked, answered in PAIRS:
        if asked in value and answered in value:
            return _pair_shape(value, asked, answered), partial(_from_pair, asked=asked, answered=answered)
    if "instruction" in value and _holds_pairs(value.get("instances")):
        return "instruction/instances", _from_instances
    raise _no_shape(value)


def _no_shape(value: dict[str, Any]) -> Unusable:
    """Why no shape fits.

    Raises:
        Unusable: a picture and a question about it, in whatever fields.
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
    """The dialogue that a text holds. Beside a question and its answer, it is the two of them in a template, or something else."""
    paired = any(asked in value and answered in value for asked, answered in PAIRS)
    held = value.get(name)
    return transcripts.Transcript([]) if paired or not isinstance(held, str) else transcripts.read(held)


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _holds_pairs(instances: Any) -> bool:
    if not isinstance(instances, list) or not instances:
        return False
    return all(isinstance(each, dict) and "output" in each for each in instances)


def _shape(value: Mapping[str, Any], *names: str) -> str:
    """Those of the names that the record has; of optional ones only those that hold something."""
    optional = (*SYSTEM, "history")
    return "/".join(dict.fromkeys(name for name in names if (value.get(name) if name in optional else name in value)))


def _pair_shape(value: Mapping[str, Any], asked: str, answered: str) -> str:
    if len(value) == 2 + ("input" in value) and asked != "input":
        return f"{asked}/input/{answered}" if "input" in value else f"{asked}/{answered}"
    return _shape(value, *SYSTEM, "history", asked, *CONTEXTS, answered)


def _check_media(value: Mapping[str, Any]) -> None:
    if name := media.field_of(value):
        raise Unusable("not_text", f"the field {name} holds {value[name]!r:.60}")


def _from_turns(value: dict[str, Any], options: Options, *, name: str) -> _Found:
    turns = tools.as_data(value[name])  # CSV and some Parquet files hold the list as a text of JSON
    if not isinstance(turns, (list, tuple)):
        raise Unusable("schema", f"{name}: expected a list of turns (got {turns!r:.60})")
    system = _system(value)
    turns = _after_system(value, turns)
    used = {name, *labels.names_in(value), *CARRIED, *((system,) if system else ())}
    return _spoken(value, conversation(turns, options), options, used)


def _from_transcript(value: dict[str, Any], options: Options, *, name: str, held: transcripts.Transcript) -> _Found:
    """A dialogue in one text: Glaive's `chat`, and the `text` of files that are ready for a trainer."""
    found = _from_turns({**value, "messages": held.turns}, options, name="messages")
    return found._replace(used=found.used | {name}, notes={**found.notes, **held.notes})


def _from_instances(value: dict[str, Any], options: Options) -> _Found:
    """An instruction with several inputs and outputs, as self-instruct's seed tasks have it: the first is used."""
    first, *others = value["instances"]
    found = _from_pair({**value, **first}, options, asked="instruction", answered="output")
    notes = {**found.notes, **({"further instances": len(others)} if others else {})}
    return found._replace(used=found.used | {"instances"}, notes=notes)


def _from_texts(value: dict[str, Any], options: Options) -> _Found:
    """Texts of the user and the assistant by turns, as UltraChat has them."""
    roles = ("user", "assistant")
    turns = [{"role": roles[place % 2], "content": text} for place, text in enumerate(value["data"])]
    found = _from_turns({**value, "messages": turns}, options, name="messages")
    return found._replace(used=found.used | {"data"})


def _from_calls(value: dict[str, Any], options: Options) -> _Found:
    """A question and the calls that answer it, as xLAM's data has them."""
    calls = tools.as_data(value["answers"])
    called = [tools.call(each) for each in (calls if isinstance(calls, list) else [calls])]
    turns = [{"role": "user", "content": value["query"]}, {"role": "assistant", "content": "", "tool_calls": called}]
    found = _from_turns({**value, "messages": turns}, options, name="messages")
    return found._replace(used=found.used | {"query", "answers"})


def _after_system(value: Mapping[str, Any], turns: Any) -> Any:
    """The turns after the record's own system prompt, where it has one and they begin with none."""
    system = _system(value)
    return (
        [{"role": "system", "content": value[system]}, *turns] if system and not _begins_with_system(turns) else turns
    )


def _begins_with_system(turns: Any) -> bool:
    first = turns[0] if len(turns) else None
    return isinstance(first, dict) and str(first.get("role", first.get("from"))).lower() in ("system", "developer")


def _spoken(value: Mapping[str, Any], talk: Conversation, options: Options, used: set[str]) -> _Found:
    """The record of a conversation. A single question and its answer is a record like any other."""
    for turn in talk.turns:
        if turn.role == "user" and (mark := media.mark_in(turn.text)):
            raise Unusable("not_text", f"a question holds {mark}")
    asked = next(turn.text for turn in talk.turns if turn.role == "user")
    if words := media.pointed_at(asked) if len(talk.turns) <= 3 else media.uploaded(asked):
        raise Unusable("not_text", f"asks about a picture that is not there: {words}")
    fields: dict[str, Any] = {name: value[name] for name in CARRIED if name in value}
    fields |= {"instruction": asked, "output": talk.turns[-1].text}
    if len(talk.turns) > 2:
        fields["messages"] = [turn.message() for turn in talk.turns]
    if options.tool_calls == "keep" and (held := tools.declared(value.get("tools", value.get("functions")))):
        fields |= {"tools": held, "messages": [turn.message() for turn in talk.turns]}
        used |= {"tools", "functions"}
    return _Found(fields, used, dropped=talk.dropped, notes=talk.notes)


def _from_preference(value: dict[str, Any], options: Options) -> _Found:
    """A pair's chosen answer as the answer; the rejected one teaches nothing here and is counted."""
    chosen, before, names = tools.as_data(value["chosen"]), *_asked_before(value)
    notes = {"rejected answers": 1} if value.get("rejected") is not None else {}
    used = {"chosen", "rejected", *names, *labels.names_in(value), *CARRIED, *SYSTEM}
    if isinstance(chosen, str):
        if not before:
            held = _by_speaker(chosen)
            turns = held.turns
            notes |= held.notes
        elif isinstance(before, str):
            pair = {**value, "output": chosen}
            found = _from_pair(pair, options, asked=names[0], answered="output")
            return _Found(found.fields, used | found.used, dropped=found.dropped, notes={**found.notes, **notes})
        else:
            turns = [*before, {"role": "assistant", "content": chosen}]
    else:
        answer = [chosen] if isinstance(chosen, dict) else list(chosen) if isinstance(chosen, (list, tuple)) else []
        whole = bool(answer) and _role(answer[0]) in ("user", "human", "system", "developer")
        asked = [{"role": "user", "content": before}] if isinstance(before, str) else before
        answer = [
            {"role": "assistant", **turn} if isinstance(turn, dict) and not _role(turn) else turn for turn in answer
        ]
        turns = answer if whole else [*asked, *answer]
    talk = conversation(_after_system(value, turns), options)
    found = _spoken(value, talk, options, used)
    return _Found(found.fields, found.used, dropped=found.dropped, notes={**found.notes, **notes})


def _asked_before(value: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """What a preference pair's answers answer: turns or a text, and the names it stands under."""
    for name in (*TURNS, *ASKED):
        held = tools.as_data(value.get(name))
        if isinstance(held, (list, tuple)) or (isinstance(held, str) and name in ASKED):
            return (list(held) if isinstance(held, (list, tuple)) else held), [name]
    return [], []


def _role(turn: Any) -> str:
    return str(turn.get("role", turn.get("from")) or "").lower() if isinstance(turn, dict) else ""


def _by_speaker(text: str) -> transcripts.Transcript:
    """The turns of a preference pair's text that says "Human:" and "Assistant:" in front of each."""
    held = transcripts.read(text)
    if not held.turns:
        raise Unusable("schema", "chosen is a text without a question; expected prompt beside it, or turns")
    return held


def _context(value: dict[str, Any], asked: str) -> str | None:
    """The name of the field that the question is about."""
    if "input" in value and asked != "input":
        return "input"
    return "context" if "context" in value else None


def _input(held: Any) -> Any:
    given = _text(held)
    return "" if isinstance(given, str) and given.strip().lower() in NO_INPUT else given


def _from_pair(value: dict[str, Any], options: Options, *, asked: str, answered: str) -> _Found:
    question, answer = value[asked], value[answered]
    if isinstance(question, list) and isinstance(answer, list):  # both as chat turns
        talk = conversation([*question, *answer], options)
        return _spoken(value, talk, options, {asked, answered, *labels.names_in(value), *CARRIED})
    context = _context(value, asked)
    system = _system(value)
    used = {asked, answered, *labels.names_in(value), *CARRIED}
    used.update(name for name in (context, system) if name)
    notes: Counter[str] = Counter()
    fields: dict[str, Any] = {"instruction": _text(question), "output": _text(answer)}
    fields.update((name, value[name]) for name in CARRIED if name in value)
    if context:
        fields["input"] = _input(value[context])
    if isinstance(fields["output"], str):
        fields["output"] = _answer(value, fields["output"], options, notes, used, asked=str(question))
    _check_question(fields)
    history = tools.as_data(value.get("history"))
    if system or history:
        used |= {"history"} if history else set()
        return _with_turns(value, fields, value[system] if system else None, history or [], options, used, notes)
    return _Found(fields, used, notes=notes)


def _system(value: Mapping[str, Any]) -> str | None:
    """The field that holds a system prompt."""
    for name in SYSTEM:
        if isinstance(held := value.get(name), str) and held.strip():
            return name
    return None


def _text(value: Any) -> Any:
    """The value; "" for null, and for pandas' NaN, which is how files say that a text is empty."""
    return "" if value is None or value != value else value


def _answer(
    value: Mapping[str, Any], text: str, options: Options, notes: Counter[str], used: set[str], *, asked: str
) -> str:
    """The answer without what is no answer: its reasoning, as the setting has it."""
    if (mark := tools.written_in(text, asked)) and options.tool_calls == "reject":
        raise Unusable("tool_calls", f"the answer writes a call: {mark}")
    inside, answer = reasoning.split(text)
    beside = next((name for name in reasoning.FIELDS if isinstance(value.get(name), str) and value[name].strip()), None)
    if inside is None and not beside:
        return text
    used |= {beside} if beside else set()
    told = "\n\n".join(thought for thought in (value[beside] if beside else None, inside) if thought)
    return reasoned(told, answer, options, notes)


def _check_question(fields: Mapping[str, Any]) -> None:
    asked, given = fields["instruction"], fields.get("input") or ""
    for text in (asked, given):
        if isinstance(text, str) and (mark := media.mark_in(text)):
            raise Unusable("not_text", f"the question holds {mark}")
    if isinstance(asked, str) and isinstance(given, str) and (words := media.pointed_at(f"{asked}\n{given}")):
        raise Unusable("not_text", f"asks about a picture that is not there: {words}")


def _with_turns(
    value: Mapping[str, Any], fields: dict[str, Any], system: str | None, history: Any, options: Options, used: set[str],
    notes: Counter[str],
) -> _Found:  # fmt: skip
    """The pair as the last exchange of a conversation: after a system prompt, and after the turns of LLaMA-Factory's `history`."""
    turns: list[Any] = [{"role": "system", "content": system}] if system else []
    if not isinstance(history, (list, tuple)) or not all(
        isinstance(each, (list, tuple)) and len(each) == 2 for each in history
    ):
        raise Unusable("schema", f"history: expected a list of pairs [question, answer] (got {history!r:.60})")
    for question, answer in history:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    told = "\n\n".join(text for text in (fields["instruction"], fields.get("input")) if isinstance(text, str) and text)
    turns += [{"role": "user", "content": told}, {"role": "assistant", "content": fields["output"]}]
    if not isinstance(fields["output"], str) or not fields["output"].strip() or not told.strip():
        return _Found(fields, used, notes=notes)  # the check and the rules say what is wrong with it
    talk = conversation(turns, options)
    messages = [turn.message() for turn in talk.turns]
    return _Found({**fields, "messages": messages}, used, dropped=talk.dropped, notes={**notes, **talk.notes})
