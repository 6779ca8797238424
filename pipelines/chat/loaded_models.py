"""Models in the memory of the answering process. Members of one base share its weights; each
adapter is active only for its own answers.

Prompts, decoding and the end of an answer are those of the evaluation (`answering`, `PromptFormat`,
`Shots`). A greedy answer therefore equals the evaluation's answer to the same prompt, token for
token.
"""
# ruff: noqa: TID253

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pipelines.evaluate import answering
from pipelines.evaluate.answering import PromptedModel
from pipelines.evaluate.shots import Shots
from pipelines.runs.clock import Stopwatch
from pipelines.settings.methods import traits_of
from pipelines.train.trainer import loading, peft_adapter
from pipelines.train.trainer.prompts import PromptFormat

Json = dict[str, Any]
# PEFT's name of a model's first adapter.
FIRST = "default"
UNKNOWN_WINDOW = 1 << 30
# An incomplete UTF-8 character decodes to this.
REPLACEMENT = "\ufffd"


class StoppedError(Exception):
    """The user stopped this answer."""


class WindowFullError(Exception):
    """The conversation leaves no room for an answer."""


@dataclass(frozen=True)
class Question:
    """`messages` is the conversation so far; the last message is the user's. `limit` is the maximum
    number of new tokens. `temperature` 0 always picks the likeliest token."""

    messages: Sequence[Mapping[str, str]]
    limit: int
    temperature: float = 0.0


@dataclass(frozen=True)
class Answer:
    """`ended` is `itself`, `limit`, `window` (the model's window is full) or `stopped`."""

    text: str
    tokens: Sequence[int]
    seconds: float
    ended: str


class LoadedModels:
    """The loaded models by group, and the members that use them."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}
        # PEFT's adapter name of each member, by group.
        self._adapters: dict[str, dict[str, str]] = {}
        # Cached by member and room, since choosing shots reads every train record.
        self._shots: dict[tuple[str, int], Shots] = {}

    def has(self, member: Json) -> bool:
        """Whether the member can answer without loading."""
        held = member["group"] in self._models
        return held and (not _has_adapter(member) or member["name"] in self._adapters[member["group"]])

    def load(self, member: Json) -> None:
        """Load the member's model, or only its adapter if its base is loaded.

        Raises:
            UnavailableError, WorkError: as in loading for evaluation.
        """
        group, recipe, base = member["group"], member["recipe"], Path(member["folder"])
        trained = Path(member["trained"]) if member["trained"] else None
        if not member["shares_base"]:
            self._models[group] = loading.load_trained(base, recipe, trained)
            self._adapters[group] = {member["name"]: FIRST}
            return
        if group not in self._models:
            self._models[group] = loading.load_trained(base, recipe, None)
            self._adapters[group] = {}
        if trained:
            try:
                self._attach(group, member["name"], trained)
            except BaseException:
                # The model may have a partly loaded adapter.
                self.forget(group)
                raise

    def _attach(self, group: str, name: str, trained: Path) -> None:
        model, known = self._models[group], self._adapters[group]
        own = f"adapter{len(known)}" if known else FIRST
        if known:
            # `attach_trained` loads the first adapter in the same way.
            with loading._without_bitsandbytes():
                model.load_adapter(str(trained), adapter_name=own)
        else:
            model = self._models[group] = loading.attach_trained(model, trained)
        model.set_adapter(own)
        model.eval()
        peft_adapter.require_as_saved(model, trained)
        known[name] = own

    def forget(self, group: str) -> None:
        """Unload a model."""
        self._models.pop(group, None)
        self._adapters.pop(group, None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def answer(
        self, member: Json, question: Question, say: Callable[[str], None], stopped: Callable[[], bool]
    ) -> Answer:
        """The member's answer; `say` is called with each new piece of its text, `stopped` between
        tokens.

        Raises:
            WindowFullError: the model's window is full.
        """
        with self._active(member) as prompted_model:
            prompt = self._prompt(member, prompted_model, question)
            room = _window(prompted_model) - len(prompt)
            if room < 1:
                raise WindowFullError(
                    f"the conversation has {len(prompt)} tokens, and the model's window holds {_window(prompted_model)}: "
                    "start a new one"
                )
            limit = min(question.limit, room)
            stream = _Stream(prompted_model, say, stopped)
            clock, ended = Stopwatch(), ""
            try:
                (tokens,) = answering.answer(_with_stream(prompted_model, stream, question), [prompt], limit)
            except StoppedError:
                tokens, ended = stream.tokens, "stopped"
            seconds = clock.total()
            by_itself = answering.ended(prompted_model, tokens, limit)
        ended = ended or ("itself" if by_itself else "limit" if limit == question.limit else "window")
        return Answer(answering.text_of(prompted_model, tokens), tokens, seconds, ended)

    @contextmanager
    def _active(self, member: Json) -> Iterator[PromptedModel]:
        """The member's model with only its own adapter active inside the context."""
        model, recipe = self._models[member["group"]], member["recipe"]
        form = _form(member["folder"], recipe["prompt"], json.dumps(recipe.get("template")))
        prompted_model = PromptedModel(model, form, recipe, loading.device())
        if not member["shares_base"] or not self._adapters[member["group"]]:
            yield prompted_model
        elif _has_adapter(member):
            model.set_adapter(self._adapters[member["group"]][member["name"]])
            yield prompted_model
        else:
            with model.disable_adapter():
                yield replace(prompted_model, model=model.get_base_model())

    def _prompt(self, member: Json, prompted_model: PromptedModel, question: Question) -> list[int]:
        record, count = as_record(question.messages), prompted_model.recipe.get("shots")
        if not count:
            return prompted_model.form.prompt(record)
        train = _train(member["examples"], json.dumps(member["selection"]))
        room = _window(prompted_model) - question.limit
        if (member["name"], room) not in self._shots:
            self._shots[member["name"], room] = Shots(train, count, prompted_model.form, room=room)
        shots = self._shots[member["name"], room].of(_with_answer(record, question, train))
        return prompted_model.form.prompt(record, shots)


def _has_adapter(member: Json) -> bool:
    return bool(member["trained"]) and traits_of(member["recipe"]).has_adapter


@cache
def _form(folder: str, prompt: str, template: str) -> PromptFormat:
    return PromptFormat.of(Path(folder), {"prompt": prompt, "template": json.loads(template)})


def _window(prompted_model: PromptedModel) -> int:
    """Maximum tokens of prompt and answer, without the virtual tokens of the adapter."""
    positions = getattr(prompted_model.model.config, "max_position_embeddings", None) or UNKNOWN_WINDOW
    return positions - traits_of(prompted_model.recipe).virtual_tokens


def as_record(messages: Sequence[Mapping[str, str]]) -> Json:
    """The conversation as a record without an answer. A single question becomes a single-turn
    record, as in training."""
    question = messages[-1]["content"].strip()
    if len(messages) == 1:
        return {"example_id": "chat", "instruction": question, "input": "", "output": ""}
    turns = [*messages, {"role": "assistant", "content": ""}]
    return {"example_id": "chat", "messages": json.dumps(turns, ensure_ascii=False)}


def _with_answer(record: Json, question: Question, train: Sequence[Json]) -> Json:
    """The record with a short placeholder answer, because `Shots` measures only records with
    answers."""
    turns = [{**turn, "content": turn["content"].strip() or "?"} for turn in question.messages]
    messages = json.dumps([*turns, {"role": "assistant", "content": "?"}], ensure_ascii=False)
    language = _language(
        question.messages[-1]["content"], sorted({one["language"] for one in train if one["language"]})
    )
    return {**record, "messages": messages, "language": language}


@cache
def _train(examples: str, selection: str) -> list[Json]:
    from pipelines.clean.select import Selection, select

    return list(select(Path(examples), Selection(**json.loads(selection))).train)


def _language(text: str, known: Sequence[str]) -> str | None:
    """The most likely language of the text among `known`."""
    if len(known) < 2:
        return known[0] if known else None
    identifier = _identifier()
    identifier.set_languages(list(known))
    return identifier.classify(text)[0]


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _with_stream(prompted_model: PromptedModel, stream: "_Stream", question: Question) -> PromptedModel:
    more: Json = {"streamer": stream}
    if question.temperature > 0:
        more |= {"do_sample": True, "temperature": question.temperature, "top_k": 0, "top_p": 1.0}
    return replace(prompted_model, more=more)


class _Stream:
    """The streamer for `generate`. Emits the part of the text that no further token can change."""

    def __init__(self, prompted_model: PromptedModel, say: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        self._prompted_model, self._say, self._stopped = prompted_model, say, stopped
        self._is_prompt = True
        self._emitted = ""
        self.tokens: list[int] = []

    def put(self, value: Any) -> None:
        # `generate` passes the prompt first.
        if self._is_prompt:
            self._is_prompt = False
            return
        self.tokens += value.flatten().tolist()
        text = _settled(answering.text_of(self._prompted_model, self.tokens), self._prompted_model.stop_texts)
        if len(text) > len(self._emitted) and text.startswith(self._emitted):
            self._say(text[len(self._emitted) :])
            self._emitted = text
        if self._stopped():
            raise StoppedError

    def end(self) -> None:
        """Emit nothing: the complete answer contains the remaining text."""


def _settled(text: str, marks: Sequence[str]) -> str:
    """The text without an incomplete character and without a possible start of a stop text at its
    end."""
    text = text.rstrip(REPLACEMENT)
    overlaps = [n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n])]
    return text[: len(text) - max(overlaps, default=0)].rstrip()
