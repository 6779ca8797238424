"""Models in memory, in the process that answers: those of one base share it, and an adapter is switched on for its own answers.

What is asked, how an answer is computed and when it ends is evaluation's (`answering`, `PromptFormat`, `Shots`), so that a greedy
answer is token for token what evaluation gives to the same prompt.
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
FIRST = "default"  # PEFT's name of a model's first adapter
UNKNOWN_WINDOW = 1 << 30
REPLACEMENT = "\ufffd"  # what the first bytes of a character decode to


class StoppedError(Exception):
    """Somebody asked for this answer to end."""


class WindowFullError(Exception):
    """The conversation leaves no room for an answer."""


@dataclass(frozen=True)
class Question:
    """`messages`: the conversation so far, the last one the user's. `limit`: the most new tokens. `temperature` 0: the likeliest
    token each time."""

    messages: Sequence[Mapping[str, str]]
    limit: int
    temperature: float = 0.0


@dataclass(frozen=True)
class Answer:
    """`ended`: by itself, by the `limit`, by the model's `window`, or `stopped`."""

    text: str
    tokens: Sequence[int]
    seconds: float
    ended: str


class LoadedModels:
    """The models that this process holds, by group, and the members that answer with them."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}
        self._adapters: dict[str, dict[str, str]] = {}  # of each group, PEFT's name of each member's
        self._shots: dict[tuple[str, int], Shots] = {}  # by member and room: choosing them looks at every train record

    def has(self, member: Json) -> bool:
        """Whether the member can answer at once."""
        held = member["group"] in self._models
        return held and (not _has_adapter(member) or member["name"] in self._adapters[member["group"]])

    def load(self, member: Json) -> None:
        """Bring the member's model, or only its adapter where its base is here.

        Raises:
            UnavailableError, WorkError: as loading for evaluation does.
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
                self.forget(group)  # half of an adapter may be on it
                raise

    def _attach(self, group: str, name: str, trained: Path) -> None:
        model, known = self._models[group], self._adapters[group]
        own = f"adapter{len(known)}" if known else FIRST
        if known:
            with loading._without_bitsandbytes():  # as `attach_trained` loads the first
                model.load_adapter(str(trained), adapter_name=own)
        else:
            model = self._models[group] = loading.attach_trained(model, trained)
        model.set_adapter(own)
        model.eval()
        peft_adapter.require_as_saved(model, trained)
        known[name] = own

    def forget(self, group: str) -> None:
        """Let go of a model."""
        self._models.pop(group, None)
        self._adapters.pop(group, None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def answer(
        self, member: Json, question: Question, say: Callable[[str], None], stopped: Callable[[], bool]
    ) -> Answer:
        """The member's answer; `say` is called with each new piece of its text, `stopped` between tokens.

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
        """The member's model, its adapter and no other one switched on inside."""
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
    """Tokens of prompt and answer that the model can read, without those that its adapter puts before them."""
    positions = getattr(prompted_model.model.config, "max_position_embeddings", None) or UNKNOWN_WINDOW
    return positions - traits_of(prompted_model.recipe).virtual_tokens


def as_record(messages: Sequence[Mapping[str, str]]) -> Json:
    """The conversation as a record whose answer is still open: one question is a record as training has them."""
    question = messages[-1]["content"].strip()
    if len(messages) == 1:
        return {"example_id": "chat", "instruction": question, "input": "", "output": ""}
    turns = [*messages, {"role": "assistant", "content": ""}]
    return {"example_id": "chat", "messages": json.dumps(turns, ensure_ascii=False)}


def _with_answer(record: Json, question: Question, train: Sequence[Json]) -> Json:
    """The record as the choice of its examples needs it, which measures what has an answer: a short one, in the place of none."""
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
    """Which of the known languages the text is most likely in."""
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
    """What `generate` hands each new token to; says the text that they make as far as no further token can change it."""

    def __init__(self, prompted_model: PromptedModel, say: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        self._prompted_model, self._say, self._stopped = prompted_model, say, stopped
        self._is_prompt = True
        self._emitted = ""
        self.tokens: list[int] = []

    def put(self, value: Any) -> None:
        if self._is_prompt:  # it is handed over first
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
        """Nothing is kept back that the whole answer does not say."""


def _settled(text: str, marks: Sequence[str]) -> str:
    """The text without half a character at its end, and without what may be the beginning of a mark that ends the answer."""
    text = text.rstrip(REPLACEMENT)
    overlaps = [n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n])]
    return text[: len(text) - max(overlaps, default=0)].rstrip()
