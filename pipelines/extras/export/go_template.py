"""Writing and rendering of the part of Go's template language (text/template) that our Modelfiles
use.

Rendering parses the template's text, so the check against the trained prompt covers exactly what
Ollama gets. Ollama passes the joined system prompts (`.System`) and the messages (`.Messages`) to a
template. It merges neighbouring messages of one role.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Message = Mapping[str, str]
LAST = "eq (len (slice $.Messages $i)) 1"
_ACTION = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)
# Characters that are not plain text there: a brace may open an action, and a quotation mark may end
# the Modelfile's value.
_UNSAFE = re.compile(r'[{"]+')


@dataclass(frozen=True)
class Shape:
    """The text parts around the turns of a conversation.

    The last question is followed by `ask`, and every earlier one by `answer` and its answer. An
    answer is followed by `question` and the next question. A conversation starts with `opening`, or
    with `before_system`, the system prompt and `after_system`.
    """

    opening: str
    before_system: str
    after_system: str
    ask: str
    answer: str
    question: str

    def to_go(self) -> str:
        """The template for this shape."""
        literals = {name: literal(value) for name, value in vars(self).items()}
        return (
            "{{ if .System }}%(before_system)s{{ .System }}%(after_system)s{{ else }}%(opening)s{{ end }}"
            "{{ range $i, $_ := .Messages }}"
            '{{ if eq .Role "user" }}{{ .Content }}{{ if LAST }}%(ask)s{{ else }}%(answer)s{{ end }}{{ end }}'
            '{{ if eq .Role "assistant" }}{{ .Content }}{{ if LAST }}{{ else }}%(question)s{{ end }}{{ end }}'
            "{{ end }}"
        ).replace("LAST", LAST) % literals


def literal(text: str) -> str:
    """`text` for a template. Pieces with a special meaning, and pieces that Ollama's reader of
    Modelfiles would drop, become Go strings."""
    pieces = re.split(r'([{"]+|[^\n\t\x20-\x7e]+)', text)
    return "".join(f"{{{{ {_go_string(piece)} }}}}" if _must_be_quoted(piece) else piece for piece in pieces)


def _must_be_quoted(piece: str) -> bool:
    return bool(_UNSAFE.search(piece)) or not piece.replace("\n", "").replace("\t", "").isprintable()


def _go_string(text: str) -> str:
    """A Go string without inner quotation marks: three in a row would end a Modelfile's value."""
    return f'"{"".join(_go_character(letter) for letter in text)}"'


def _go_character(letter: str) -> str:
    if letter.isprintable() and letter not in '"\\{':
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"


def render(template: str, messages: Sequence[Message]) -> str:
    """The prompt that Ollama sends for the messages with one of our templates.

    Raises:
        ValueError: the template has an unsupported action.
    """
    system, merged = _collated(messages)
    pieces = _ACTION.split(template)
    program, end = _block(pieces, 0)
    if end != len(pieces):
        raise ValueError(f"an end without a beginning at piece {end}")
    return "".join(_run(program, {"system": system, "messages": merged, "i": 0, "message": {}}))


def _collated(messages: Sequence[Message]) -> tuple[str, list[dict[str, str]]]:
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    merged: list[dict[str, str]] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            merged[-1]["content"] += "\n\n" + message["content"]
        else:
            merged.append({"role": message["role"], "content": message["content"]})
    return system, merged


Program = list[tuple]


def _block(pieces: Sequence[str], place: int) -> tuple[Program, int]:
    """The pieces (text, action, text, …) from `place` to the end of their block, as a program."""
    program: Program = []
    while place < len(pieces):
        if place % 2 == 0:
            program.append(("text", pieces[place]))
            place += 1
            continue
        action = pieces[place]
        if action in ("else", "end"):
            return program, place
        word, _, rest = action.partition(" ")
        if word not in ("if", "range"):
            program.append(("value", action))
            place += 1
            continue
        first, place = _block(pieces, place + 1)
        second: Program = []
        if pieces[place : place + 1] == ["else"]:
            second, place = _block(pieces, place + 1)
        if pieces[place : place + 1] != ["end"]:
            raise ValueError(f"{action}: its end is missing")
        program.append((word, rest, first, second))
        place += 1
    return program, place


def _run(program: Program, scope: dict) -> list[str]:
    pieces: list[str] = []
    for kind, *operands in program:
        if kind == "text":
            pieces.append(operands[0])
        elif kind == "value":
            pieces.append(_value(operands[0], scope))
        elif kind == "if":
            condition, first, second = operands
            pieces += _run(first if _holds(condition, scope) else second, scope)
        elif operands[0] == "$i, $_ := .Messages":
            for i, message in enumerate(scope["messages"]):
                pieces += _run(operands[1], {**scope, "i": i, "message": message})
        else:
            raise ValueError(f"range {operands[0]}: not known here")
    return pieces


def _value(action: str, scope: Mapping) -> str:
    if action == ".System":
        return scope["system"]
    if action == ".Content":
        return scope["message"]["content"]
    if action.startswith('"'):
        long = re.sub(r"\\U([0-9a-f]{8})", lambda match: chr(int(match[1], 16)), action)
        return json.loads(long)
    raise ValueError(f"{action}: not known here")


def _holds(condition: str, scope: Mapping) -> bool:
    if condition == ".System":
        return bool(scope["system"])
    if condition == LAST:
        return scope["i"] == len(scope["messages"]) - 1
    if match := re.fullmatch(r'eq \.Role "(\w+)"', condition):
        return scope["message"]["role"] == match[1]
    raise ValueError(f"if {condition}: not known here")
