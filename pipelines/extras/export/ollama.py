"""A Modelfile for Ollama beside a GGUF file: the prompt that the model was trained with, in Go's template language.

How a conversation reads is found by showing the model's own prompt format questions and answers that stand for themselves. What
comes out is rendered for every evaluation record and compared with the trained prompt, as text and as llama.cpp's tokens.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError
from pipelines.extras.export.go_template import Shape, render
from pipelines.extras.export.modelfile import OURS, Modelfile, is_sayable
from pipelines.extras.export.native import LlamaCpp
from pipelines.lake.files import write_text
from pipelines.train.trainer.conversations import Message, calls_tools, conversation, tools_of
from pipelines.train.trainer.prompts import PromptFormat
from pipelines.train.trainer.templates import DAY, Unshown

SYSTEM, QUESTIONS, ANSWERS = "SYSTEM7F3A", ("QUESTION7F3A", "SECOND7F3A", "THIRD7F3A"), ("ANSWER7F3A", "AGAIN7F3A")
Render = Callable[[Sequence[Message]], str]
INSTEAD = "--gguf alone writes the file; send it whole prompts then (`raw: true` of Ollama's API)"


def write_modelfile(
    form: PromptFormat, gguf: Path, path: Path, *, records: Sequence[Mapping[str, Any]], system: str | None
) -> Modelfile:
    """Write to `path` how Ollama asks the model in `gguf` as it was trained. `records` are what that is checked on; `system` is the
    system prompt that every training record had.

    Raises:
        UnavailableError: Ollama's templates cannot say this prompt, or llama.cpp would make other tokens of it.
    """
    shape = shape_of(form)
    asked = [record for record in records if _can_be_sent(form, record)]
    with LlamaCpp(gguf, context=32, threads=1) as llama:
        template = _with_its_beginning(form, shape, llama).to_go()
        for record in asked:
            require_alike(form, template, record, llama)
    stops = [stop for token in sorted(form.ends) if is_sayable(stop := form.tokenizer.decode([token]))]
    sayable = system if system and is_sayable(system) else None
    notes = list(_notes(form, records, system=system, sayable=sayable))
    made = Modelfile(gguf.name, template, stops, sayable, notes)
    write_text(path, made.text())
    return made


def shape_of(form: PromptFormat) -> Shape:
    """How the model's conversations read.

    Raises:
        UnavailableError: not as a Shape can say it.
    """
    if form.tells_the_day:
        raise UnavailableError(
            f"its prompt holds the day it is sent on, which a Modelfile cannot say in the same words: train with "
            f'models.<model>.template: {{{DAY}: "2025-07-08"}}, or leave --ollama out; {INSTEAD}.'
        )
    try:
        return shape_of_text(lambda messages: form.prompt_text(_record(messages)))
    except Unshown as error:
        raise UnavailableError(f"Ollama's templates cannot say this prompt: {error}; {INSTEAD}.") from None


def shape_of_text(text_of: Render) -> Shape:
    """The shape of what `text_of` makes of messages that end in a question.

    Raises:
        Unshown: it writes a turn otherwise at another place of a conversation.
    """
    first, second, third = QUESTIONS
    one = _pieces(text_of, [first])
    two = _pieces(text_of, [first, ANSWERS[0], second])
    three = _pieces(text_of, [first, ANSWERS[0], second, ANSWERS[1], third])
    told = _pieces(text_of, [first], system=SYSTEM)
    long = _pieces(text_of, [first, ANSWERS[0], second], system=SYSTEM)
    shape = Shape(one[0], told[0], told[1], one[1], two[1], two[2])
    expected = {
        "with a second question": (two, [shape.opening, shape.answer, shape.question, shape.ask]),
        "with a third question": (
            three,
            [shape.opening, shape.answer, shape.question, shape.answer, shape.question, shape.ask],
        ),
        "with a system prompt": (told, [shape.before_system, shape.after_system, shape.ask]),
        "with a system prompt and a second question": (
            long,
            [shape.before_system, shape.after_system, shape.answer, shape.question, shape.ask],
        ),
    }
    for where, (found, wanted) in expected.items():
        if found != wanted:
            raise Unshown(f"{where} it writes a turn otherwise than where that stands alone")
    return shape


def _pieces(text_of: Render, turns: Sequence[str], system: str = "") -> list[str]:
    """What stands before, between and behind the turns."""
    roles = ("user", "assistant")
    messages: list[Message] = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    text, pieces = text_of(messages), []
    for message in messages:
        before, found, text = text.partition(message["content"])
        if not found or message["content"] in text:
            raise Unshown(f"it does not write every turn once, and in their order ({message['role']})")
        pieces.append(before)
    return [*pieces, text]


def _record(messages: Sequence[Message]) -> dict[str, Any]:
    """A record that asks so; its own answer is never looked at."""
    turns = [*messages, {"role": "assistant", "content": "a"}]
    return {"example_id": "shape", "messages": json.dumps(turns)}


def _with_its_beginning(form: PromptFormat, shape: Shape, llama: LlamaCpp) -> Shape:
    """The shape with or without the token that begins a text, as llama.cpp puts one there by itself or not.

    Raises:
        UnavailableError: neither makes the trained tokens.
    """
    record = _record([{"role": "user", "content": "Hello there"}])
    wanted, begins = form.prompt(record), form.tokenizer.decode(form.prefix) if form.prefix else ""
    changes: list[Callable[[str], str]] = [
        lambda text: text,
        lambda text: text.removeprefix(begins),
        lambda text: begins + text,
    ]
    for change in changes:
        changed = replace(shape, opening=change(shape.opening), before_system=change(shape.before_system))
        if llama.tokenize(render(changed.to_go(), _asked(record)), add_special=True) == wanted:
            return changed
    sent = llama.tokenize(render(shape.to_go(), _asked(record)), add_special=True)
    raise UnavailableError(
        f"llama.cpp would begin its prompt with the tokens {sent[:3]}, and the model was trained with {wanted[:3]}: {INSTEAD}."
    )


def require_alike(form: PromptFormat, template: str, record: Mapping[str, Any], llama: LlamaCpp) -> None:
    """Raises UnavailableError where Ollama would send other tokens for the record than training and evaluation did."""
    sent = render(template, _asked(record))
    if llama.tokenize(sent, add_special=True) != form.prompt(record):
        trained = form.prompt_text(record)
        same = next(
            (i for i, (a, b) in enumerate(zip(sent, trained, strict=False)) if a != b), min(len(sent), len(trained))
        )
        raise UnavailableError(
            f"Ollama would send record {record['example_id']} otherwise than it was trained: {sent[same : same + 40]!r} for "
            f"{trained[same : same + 40]!r}; {INSTEAD}."
        )


def _asked(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The record's messages up to its last answer."""
    return [{"role": message["role"], "content": message["content"]} for message in conversation(record)[:-1]]


def _can_be_sent(form: PromptFormat, record: Mapping[str, Any]) -> bool:
    """Whether the record is messages alone: no tools, and no block of its own for an input."""
    if tools_of(record) or calls_tools(conversation(record)):
        return False
    return form.style == "chat" or bool(record.get("messages")) or not record["input"].strip()


def common_system(records: Iterable[Mapping[str, Any]]) -> str | None:
    """The system prompt that all records begin with; None where they have none, or several."""
    found = {_system(record) for record in records}
    return found.pop() if len(found) == 1 else None


def _system(record: Mapping[str, Any]) -> str | None:
    first = conversation(record)[0]
    return first["content"] if first["role"] == "system" else None


def _notes(
    form: PromptFormat, records: Sequence[Mapping[str, Any]], *, system: str | None, sayable: str | None
) -> Iterable[str]:
    yield OURS
    if "tools" in str(form.tokenizer.chat_template or ""):
        yield "Tools are left out. Where Ollama takes the file's own chat template for them, OLLAMA_GO_TEMPLATE=1 keeps to this."
    if form.style != "chat" and any((record.get("input") or "").strip() for record in records):
        yield "In training an input had a block of its own, which a message cannot have: write it behind the question."
    if system and not sayable:
        yield "The system prompt of the training records holds what a Modelfile cannot: send it with each conversation."
