"""Records as tokens: the prompt in the model's own format, the completion that is learned, and which tokens count."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_OPENING = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
ALPACA_TURN = "### Instruction:\n{instruction}\n\n### Response:\n"
ALPACA = (
    ALPACA_OPENING + ALPACA_TURN
)  # Stanford Alpaca's, which base models without a chat template are commonly tuned with


@dataclass(frozen=True)
class Tokenized:
    """One example. `labels[i]` is the token to learn at position i or -100; `scored[i]` says whether it counts in bits per
    byte (special tokens do not); `completion_bytes` is the UTF-8 length of the completions."""

    example_id: str
    input_ids: list[int]
    labels: list[int]
    scored: list[bool]
    completion_bytes: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def learned(self) -> int:
        return sum(label != IGNORE for label in self.labels)


IGNORE = -100
MARKER = "ANSWERED7F3A"
MARKED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARKER}]
Shots = Sequence[Mapping[str, Any]]


def longest(max_length: int, config: Any) -> int:
    """Tokens of an example at most: `max_length`, or what the model of that configuration can read where that is less."""
    return min(max_length, getattr(config, "max_position_embeddings", None) or max_length)


@dataclass(frozen=True)
class Segment:
    """A piece of text; an answer is followed by the token `end`, which is learned with it, unless it only shows how to answer."""

    text: str
    end: int | None = None
    only_shows: bool = False


class PromptFormat:
    """How one model wants to be asked: its chat template, or Alpaca's plain text with the model's BOS where it has one."""

    def __init__(self, tokenizer: Any, style: str) -> None:
        self.tokenizer = tokenizer
        self.style = style
        self._refuses_system: bool | None = None  # not known before the first record that has one
        if style == "chat" and not tokenizer.chat_template:
            raise ValueError("prompt: chat needs a tokenizer with a chat template; use prompt: alpaca for this model")
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token, so an answer's end cannot be learned")
        # what the tokenizer itself puts in front: OPT's </s>, Gemma's and Llama's BOS, nothing for GPT-2
        bare, full = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
        self.prefix: list[int] = full[:1] if len(full) > len(bare) and full[0] != bare[0] else []

    def prompt(self, record: Mapping[str, Any], shots: Shots = ()) -> list[int]:
        """Token ids to answer from. `shots` are records that come before it with their answers, in the same format."""
        if self.style == "alpaca":
            asked = self._alpaca_segments(record, shots)[:-1]
            return self._finish([token for segment in asked for token in self._tokens(segment)])
        messages = with_shots(conversation(record)[:-1], shots)
        return self._finish(self._ids(self._render(messages, ask=True)))

    def tokenize(self, record: Mapping[str, Any], shots: Shots = ()) -> Tokenized:
        """The example whole: nothing is cut; what does not fit is for the caller to count and leave out. Of `shots`, records that
        come before it with their answers, nothing is learned and nothing counts."""
        ids: list[int] = []
        labels: list[int] = []
        scored: list[bool] = []
        completion_bytes = 0
        for segment in self._segments_of(record, shots):
            tokens = self._tokens(segment)
            ids += tokens
            if segment.end is None or segment.only_shows:
                labels += [IGNORE] * len(tokens)
                scored += [False] * len(tokens)
            else:
                labels += tokens
                scored += [True] * (len(tokens) - 1) + [False]
                completion_bytes += len(segment.text.encode())
        finished = self._finish(ids)
        front = len(finished) - len(ids)
        return Tokenized(
            example_id=record["example_id"],
            input_ids=finished,
            labels=[IGNORE] * front + labels,
            scored=[False] * front + scored,
            completion_bytes=completion_bytes,
        )

    def _segments_of(self, record: Mapping[str, Any], shots: Shots) -> list[Segment]:
        try:
            return self._segments(record, shots)
        except ValueError as error:
            raise ValueError(f"record {record['example_id']}: {error}") from None

    def _segments(self, record: Mapping[str, Any], shots: Shots = ()) -> list[Segment]:
        if self.style == "alpaca":
            return self._alpaca_segments(record, shots)
        messages, segments, done = with_shots(conversation(record), shots), [], ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            asked = self._render(messages[:i], ask=True)
            if not asked.startswith(done):
                raise ValueError("the chat template rewrites earlier turns, so their tokens cannot be told apart")
            answered, end = asked + message["content"], self.end_of_answer
            segments += [Segment(asked.removeprefix(done)), Segment(message["content"], end, not is_learned(message))]
            done = answered + self.tokenizer.decode([end])
        shown = 2 * sum(message["role"] == "assistant" for message in with_shots([], shots))
        return [replace(segment, only_shows=True) for segment in segments[:shown]] + segments[shown:]

    def _alpaca_segments(self, record: Mapping[str, Any], shots: Shots) -> list[Segment]:
        before, segments = alpaca_shots(shots), []
        for asked, answer, learned in alpaca_turns(record):
            segments += [Segment(before + asked), Segment(answer, self.tokenizer.eos_token_id, only_shows=not learned)]
            before = "\n\n"
        return segments

    def _tokens(self, segment: Segment) -> list[int]:
        return self._ids(segment.text) + ([] if segment.end is None else [segment.end])

    @property
    def stop_tokens(self) -> list[int]:
        """The tokens that end an answer: the one that training teaches, and EOS."""
        return sorted({self.end_of_answer, self.tokenizer.eos_token_id})

    @cached_property
    def end_of_answer(self) -> int:
        """The token that training teaches to end an answer with: what the template writes behind one (<end_of_turn> for Gemma), EOS
        where it writes no special token there.

        It is looked for behind a marker: some templates put an empty think block or a space in front of the last answer, and then
        the whole rendering does not start with the prompt.
        """
        if self.style == "alpaca":
            return self.tokenizer.eos_token_id
        _, found, after = self._render(MARKED, ask=False).rpartition(MARKER)
        if not found:
            raise ValueError(
                "the chat template does not show the answer as it was written; prompt: alpaca asks without a template"
            )
        tokens = self._ids(after.lstrip())
        return tokens[0] if tokens and tokens[0] in self._special_ids else self.tokenizer.eos_token_id

    @cached_property
    def _special_ids(self) -> set[int]:
        """Every special token, also those without a named role, which `all_special_ids` leaves out."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {*self.tokenizer.all_special_ids, *(token for token, held in added if held.special)}

    def _render(self, messages: list[dict[str, str]], *, ask: bool) -> str:
        """A template that refuses system prompts (Gemma's) gets them at the head of the first question."""
        if self._refuses_system is None and messages[0]["role"] == "system":
            self._refuses_system = not self._takes(messages)
        if self._refuses_system:
            messages = without_system(messages)
        messages = spoken(messages)
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        except TemplateError as error:
            raise ValueError(
                f"the model's chat template refuses it: {error}; prompt: alpaca asks without a template"
            ) from None

    def _takes(self, messages: list[dict[str, str]]) -> bool:
        try:
            self.tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError:
            return False
        return True

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _finish(self, ids: list[int]) -> list[int]:
        """Exactly one BOS in front where the model wants one; a chat template may have written it already."""
        return ids if not self.prefix or ids[:1] == self.prefix else [*self.prefix, *ids]


def spoken(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Role and content of each message: what a template or a server takes."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def is_learned(message: Mapping[str, Any]) -> bool:
    """Whether an answer is learned, not only shown: a file may switch a turn off."""
    return message.get("train") is not False


def alpaca_turns(record: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """What is asked, what is answered, and whether that is learned, turn by turn. A conversation's later questions are blocks
    without the opening sentences, in place of which stands its system prompt, where it has one."""
    if not record.get("messages"):
        form = ALPACA_WITH_INPUT if record["input"].strip() else ALPACA
        return [(form.format(instruction=record["instruction"], input=record["input"]), record["output"], True)]
    turns, opening, asked = [], ALPACA_OPENING, ""
    for message in conversation(record):
        if message["role"] == "system":
            opening = f"{message['content']}\n\n"
        elif message["role"] == "assistant":
            turns.append((opening + ALPACA_TURN.format(instruction=asked), message["content"], is_learned(message)))
            opening = asked = ""
        else:
            asked = "\n\n".join(part for part in (asked, message["content"]) if part)
    return turns


def alpaca_shots(shots: Shots) -> str:
    """The shots as blocks of the same format, an empty line after each."""
    return "".join(f"{asked}{answer.strip()}\n\n" for shot in shots for asked, answer, _ in alpaca_turns(shot))


def with_shots(messages: Sequence[dict[str, str]], shots: Shots) -> list[dict[str, str]]:
    """`messages` with the shots as turns before the first question, after a system prompt; a shot's own is left out."""
    turns = [turn for shot in shots for turn in conversation(shot) if turn["role"] != "system"]
    first = 1 if messages and messages[0]["role"] == "system" else 0
    return [*messages[:first], *turns, *messages[first:]]


def without_system(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The messages with the system prompt, if there is one, at the head of the first question."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    told, *rest = messages
    first = next((i for i, message in enumerate(rest) if message["role"] == "user"), None)
    if first is None:
        return rest
    asked = {**rest[first], "content": f"{told['content']}\n\n{rest[first]['content']}"}
    return [*rest[:first], asked, *rest[first + 1 :]]


def conversation(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The record as chat messages, ending with the assistant's last."""
    if record.get("messages"):
        turns = [{**turn, "content": turn["content"].strip()} for turn in json.loads(record["messages"])]
        if any(turn.get("tool_calls") or turn["role"] == "tool" for turn in turns):
            raise ValueError(
                "it calls tools, which cannot be shown to a model yet; cleaning: {tool_calls: reject} leaves such records out"
            )
        last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        return turns[: last + 1]
    asked = record["instruction"] + (f"\n\n{record['input']}" if record["input"].strip() else "")
    return [{"role": "user", "content": asked.strip()}, {"role": "assistant", "content": record["output"].strip()}]


def question(record: Mapping[str, Any]) -> str:
    """What a person reads as the prompt."""
    if record.get("messages"):
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in conversation(record)[:-1])
    return "\n\n".join(part for part in (record["instruction"], record["input"]) if part)
