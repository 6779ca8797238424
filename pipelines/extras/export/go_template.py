"""The part of Go's template language (text/template) that a Modelfile of ours is written in: writing it, and rendering it.

Rendering goes by the text, so that what is checked against the trained prompt is what Ollama gets. Ollama hands a template the
system prompts joined (`.System`) and the messages (`.Messages`), of which neighbours of one role are merged.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Message = Mapping[str, str]
LAST = "eq (len (slice $.Messages $i)) 1"
_ACTION = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)
# What is no plain text there: a brace may open an action, a quotation mark may end the Modelfile's value
_UNSAFE = re.compile(r'[{"]+')


@dataclass(frozen=True)
class Shape:
    """A conversation as text. Every question is followed by `ask` where an answer is to come, by `answer` where one is there; an
    answer is followed by `question` and the next question. In front of the first one stands `opening`, or, with a system prompt,
    `before_system`, that prompt and `after_system`."""

    opening: str
    before_system: str
    after_system: str
    ask: str
    answer: str
    question: str

    def to_go(self) -> str:
        """The template that renders it."""
        told = {name: literal(value) for name, value in vars(self).items()}
        return (
            "{{ if .System }}%(before_system)s{{ .System }}%(after_system)s{{ else }}%(opening)s{{ end }}"
            "{{ range $i, $_ := .Messages }}"
            '{{ if eq .Role "user" }}{{ .Content }}{{ if LAST }}%(ask)s{{ else }}%(answer)s{{ end }}{{ end }}'
            '{{ if eq .Role "assistant" }}{{ .Content }}{{ if LAST }}{{ else }}%(question)s{{ end }}{{ end }}'
            "{{ end }}"
        ).replace("LAST", LAST) % told


def literal(text: str) -> str:
    """`text` as a template writes it: as it stands, and as a string of Go where something of it would mean more than itself, or
    Ollama's reader of Modelfiles would drop it."""
    pieces = re.split(r'([{"]+|[^\n\t\x20-\x7e]+)', text)
    return "".join(f"{{{{ {_go_string(piece)} }}}}" if _must_be_quoted(piece) else piece for piece in pieces)


def _must_be_quoted(piece: str) -> bool:
    return bool(_UNSAFE.search(piece)) or not piece.replace("\n", "").replace("\t", "").isprintable()


def _go_string(text: str) -> str:
    """No quotation mark stands inside: three in a row would end a Modelfile's value."""
    return f'"{"".join(_go_character(letter) for letter in text)}"'


def _go_character(letter: str) -> str:
    if letter.isprintable() and letter not in '"\\{':
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"


def render(template: str, messages: Sequence[Message]) -> str:
    """What Ollama sends for the messages by a template of ours.

    Raises:
        ValueError: the template holds an action that is not of the part written here.
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
    said: list[str] = []
    for kind, *told in program:
        if kind == "text":
            said.append(told[0])
        elif kind == "value":
            said.append(_value(told[0], scope))
        elif kind == "if":
            condition, first, second = told
            said += _run(first if _holds(condition, scope) else second, scope)
        elif told[0] == "$i, $_ := .Messages":
            for i, message in enumerate(scope["messages"]):
                said += _run(told[1], {**scope, "i": i, "message": message})
        else:
            raise ValueError(f"range {told[0]}: not known here")
    return said


def _value(action: str, scope: Mapping) -> str:
    if action == ".System":
        return scope["system"]
    if action == ".Content":
        return scope["message"]["content"]
    if action.startswith('"'):
        long = re.sub(r"\\U([0-9a-f]{8})", lambda found: chr(int(found[1], 16)), action)
        return json.loads(long)
    raise ValueError(f"{action}: not known here")


def _holds(condition: str, scope: Mapping) -> bool:
    if condition == ".System":
        return bool(scope["system"])
    if condition == LAST:
        return scope["i"] == len(scope["messages"]) - 1
    if found := re.fullmatch(r'eq \.Role "(\w+)"', condition):
        return scope["message"]["role"] == found[1]
    raise ValueError(f"if {condition}: not known here")
