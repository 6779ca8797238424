"""The fast path for the most common records: instruction, input and output as plain texts."""

from collections.abc import Mapping
from typing import Any

from pipelines.records.shapes import labels, media, reasoning, tools
from pipelines.records.shapes.names import METADATA_FIELDS, SYSTEM, TURNS, Mapped

_SPECIAL = frozenset(
    (*TURNS, *SYSTEM, *labels.OBJECTS, *media.FIELDS, *reasoning.FIELDS, "context", "history", "chosen", "tools")
)
_PLAIN = frozenset(("instruction", "input", "output", *METADATA_FIELDS))


def plain_pair(value: dict[Any, Any]) -> Mapped | None:
    """The result that the general mapping would give for an instruction, an input and an output
    that are plain texts.

    None if only the general mapping can decide. Most records of most files are plain, and this path
    is several times as fast.
    """
    instruction, context, answer = value.get("instruction"), value.get("input", ""), value.get("output")
    if not (type(instruction) is str and type(context) is str and type(answer) is str and _SPECIAL.isdisjoint(value)):
        return None
    if _may_say_more(instruction, context, answer):
        return None
    fields = value if _PLAIN.issuperset(value) else {name: value[name] for name in _PLAIN if name in value}
    shape = "instruction/input/output" if "input" in value else "instruction/output"
    plain = "language" not in fields and "topic" not in fields
    if len(fields) == len(value):
        return Mapped(shape, fields, plain=plain)
    return _with_extras(value, Mapped(shape, fields, plain=plain))


def _with_extras(value: dict[Any, Any], mapped: Mapped) -> Mapped | None:
    """The same with a note on each unused field; None if one of them may matter."""
    extra = [name for name in value if name not in _PLAIN]
    if labels.names_in(value) or any(str(name)[:3].lower() in media.BEGINNINGS for name in extra):
        return None
    notes = {f"field {name}": 1 for name in extra if holds_something(name, value, set())}
    return mapped._replace(notes=notes)


# complexity: one flat condition that runs for every record; calls would cost more than their names explain
def _may_say_more(instruction: str, context: str, answer: str) -> bool:
    """Whether the texts may have a mark of a picture, of a call or of reasoning.

    Runs for every record.
    """
    # Single characters come first: a search for one is many times as fast as for a word.
    if (
        "<" in instruction
        or "<" in context
        or "<" in answer
        or "[I" in instruction
        or "![" in instruction
        or "![" in context
        or "data:" in instruction
    ):
        return True
    if ">" in answer and ("think>" in answer or ") ->" in answer):
        return True
    if (":" in answer and ("Action" in answer or "Code:" in answer or "행동" in answer)) or ") →" in answer:
        return True
    if answer[:1] in "[{ \n":
        return True
    # A word for an empty input, or the name of a file.
    is_name = 0 < len(context) <= 12 or "." in context[-5:-2]
    return is_name or media.may_point(f"{instruction}\n{context}" if context else instruction)


def holds_something(name: Any, value: Mapping[Any, Any], used: set[str]) -> bool:
    return str(name).lower() not in used and tools.as_data(value[name]) not in (None, "", [], {})
