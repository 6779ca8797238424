"""A Modelfile for Ollama beside a GGUF file: the prompt format of training in Go's template
language.

The shape of a conversation is found by applying the model's prompt format to placeholder turns. The
resulting template is rendered for every evaluation record and compared with the trained prompt, as
llama.cpp's tokens.
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
ALTERNATIVE = "--gguf alone writes the file; send it whole prompts then (`raw: true` of Ollama's API)"


def write_modelfile(
    form: PromptFormat, gguf: Path, path: Path, *, records: Sequence[Mapping[str, Any]], system: str | None
) -> Modelfile:
    """Write a Modelfile to `path`, so that Ollama prompts the model in `gguf` as in training.

    The template is checked on `records`. `system` is the common system prompt of the training
    records.

    Raises:
        UnavailableError: Ollama's templates cannot express this prompt, or llama.cpp tokenizes it
            differently.
    """
    shape = shape_of(form)
    sendable = [record for record in records if _can_be_sent(form, record)]
    with LlamaCpp(gguf, context=32, threads=1) as llama:
        template = _with_bos(form, shape, llama).to_go()
        for record in sendable:
            require_alike(form, template, record, llama)
    stops = [stop for token in sorted(form.ends) if is_sayable(stop := form.tokenizer.decode([token]))]
    sayable = system if system and is_sayable(system) else None
    notes = list(_notes(form, records, system=system, sayable=sayable))
    modelfile = Modelfile(gguf.name, template, stops, sayable, notes)
    write_text(path, modelfile.text())
    return modelfile


def shape_of(form: PromptFormat) -> Shape:
    """The shape of the model's conversations.

    Raises:
        UnavailableError: a Shape cannot express them.
    """
    if form.tells_the_day:
        raise UnavailableError(
            f"its prompt contains the current date, which a Modelfile cannot write in the same format: train with "
            f'models.<model>.template: {{{DAY}: "2025-07-08"}}, or leave --ollama out; {ALTERNATIVE}.'
        )
    try:
        return shape_of_text(lambda messages: form.prompt_text(_record(messages)))
    except Unshown as error:
        raise UnavailableError(f"Ollama's templates cannot express this prompt: {error}; {ALTERNATIVE}.") from None


def shape_of_text(text_of: Render) -> Shape:
    """The shape of the texts that `text_of` makes of messages ending in a question.

    Raises:
        Unshown: the format of a turn depends on its place in the conversation.
    """
    first, second, third = QUESTIONS
    one = _pieces(text_of, [first])
    two = _pieces(text_of, [first, ANSWERS[0], second])
    three = _pieces(text_of, [first, ANSWERS[0], second, ANSWERS[1], third])
    with_system = _pieces(text_of, [first], system=SYSTEM)
    long = _pieces(text_of, [first, ANSWERS[0], second], system=SYSTEM)
    shape = Shape(one[0], with_system[0], with_system[1], one[1], two[1], two[2])
    expected = {
        "with a second question": (two, [shape.opening, shape.answer, shape.question, shape.ask]),
        "with a third question": (
            three,
            [shape.opening, shape.answer, shape.question, shape.answer, shape.question, shape.ask],
        ),
        "with a system prompt": (with_system, [shape.before_system, shape.after_system, shape.ask]),
        "with a system prompt and a second question": (
            long,
            [shape.before_system, shape.after_system, shape.answer, shape.question, shape.ask],
        ),
    }
    for where, (actual, pieces) in expected.items():
        if actual != pieces:
            raise Unshown(f"{where} it formats a turn differently than alone")
    return shape


def _pieces(text_of: Render, turns: Sequence[str], system: str = "") -> list[str]:
    """The text before, between and after the turns."""
    roles = ("user", "assistant")
    messages: list[Message] = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    text, pieces = text_of(messages), []
    for message in messages:
        before, separator, text = text.partition(message["content"])
        if not separator or message["content"] in text:
            raise Unshown(f"it does not write every turn once, and in their order ({message['role']})")
        pieces.append(before)
    return [*pieces, text]


def _record(messages: Sequence[Message]) -> dict[str, Any]:
    """A record with these messages; its answer is a placeholder that is never used."""
    turns = [*messages, {"role": "assistant", "content": "a"}]
    return {"example_id": "shape", "messages": json.dumps(turns)}


def _with_bos(form: PromptFormat, shape: Shape, llama: LlamaCpp) -> Shape:
    """The shape with or without a BOS token, depending on whether llama.cpp adds one itself.

    Raises:
        UnavailableError: neither gives the trained tokens.
    """
    record = _record([{"role": "user", "content": "Hello there"}])
    expected, beginning = form.prompt(record), form.tokenizer.decode(form.prefix) if form.prefix else ""
    changes: list[Callable[[str], str]] = [
        lambda text: text,
        lambda text: text.removeprefix(beginning),
        lambda text: beginning + text,
    ]
    for change in changes:
        changed = replace(shape, opening=change(shape.opening), before_system=change(shape.before_system))
        if llama.tokenize(render(changed.to_go(), _prompt_messages(record)), add_special=True) == expected:
            return changed
    sent = llama.tokenize(render(shape.to_go(), _prompt_messages(record)), add_special=True)
    raise UnavailableError(
        f"llama.cpp would start its prompt with the tokens {sent[:3]}, but the model was trained with "
        f"{expected[:3]}: {ALTERNATIVE}."
    )


def require_alike(form: PromptFormat, template: str, record: Mapping[str, Any], llama: LlamaCpp) -> None:
    """Raise UnavailableError if Ollama's tokens for the record differ from those of training."""
    sent = render(template, _prompt_messages(record))
    if llama.tokenize(sent, add_special=True) != form.prompt(record):
        trained = form.prompt_text(record)
        same = next(
            (i for i, (a, b) in enumerate(zip(sent, trained, strict=False)) if a != b), min(len(sent), len(trained))
        )
        raise UnavailableError(
            f"Ollama would send record {record['example_id']} differently than in training: {sent[same : same + 40]!r} "
            f"instead of {trained[same : same + 40]!r}; {ALTERNATIVE}."
        )


def _prompt_messages(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The record's messages up to its last answer."""
    return [{"role": message["role"], "content": message["content"]} for message in conversation(record)[:-1]]


def _can_be_sent(form: PromptFormat, record: Mapping[str, Any]) -> bool:
    """Whether the record consists only of messages: no tools, and no separate block for an
    input."""
    if tools_of(record) or calls_tools(conversation(record)):
        return False
    return form.style == "chat" or bool(record.get("messages")) or not record["input"].strip()


def common_system(records: Iterable[Mapping[str, Any]]) -> str | None:
    """The common system prompt of all records; None if they have none or several."""
    prompts = {_system(record) for record in records}
    return prompts.pop() if len(prompts) == 1 else None


def _system(record: Mapping[str, Any]) -> str | None:
    first = conversation(record)[0]
    return first["content"] if first["role"] == "system" else None


def _notes(
    form: PromptFormat, records: Sequence[Mapping[str, Any]], *, system: str | None, sayable: str | None
) -> Iterable[str]:
    yield OURS
    if "tools" in str(form.tokenizer.chat_template or ""):
        yield "Tools are left out. If Ollama uses the file's chat template for them, OLLAMA_GO_TEMPLATE=1 selects this template."
    if form.style != "chat" and any((record.get("input") or "").strip() for record in records):
        yield "In training an input had a separate block, which a message cannot have: write it after the question."
    if system and not sayable:
        yield "A Modelfile cannot hold the system prompt of the training records: send it with each conversation."
