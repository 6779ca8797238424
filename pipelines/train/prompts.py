"""Records as tokens: the prompt in the model's own format, the completion that is learned, and which tokens count."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)  # the format of Stanford Alpaca, which base models without a chat template are commonly tuned with


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


@dataclass(frozen=True)
class Segment:
    """A piece of text; a learned one is followed by the token `end`, which is learned too."""

    text: str
    end: int | None = None


class PromptFormat:
    """How one model wants to be asked: its chat template, or Alpaca's plain text with the model's BOS where it has one."""

    def __init__(self, tokenizer: Any, style: str) -> None:
        self.tokenizer = tokenizer
        self.style = style
        if style == "chat" and not tokenizer.chat_template:
            raise ValueError("prompt: chat needs a tokenizer with a chat template; use prompt: alpaca for this model")
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token, so an answer's end cannot be learned")
        # what the tokenizer itself puts in front: OPT's </s>, Gemma's and Llama's BOS, nothing for GPT-2
        bare, full = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
        self.prefix: list[int] = full[:1] if len(full) > len(bare) and full[0] != bare[0] else []

    def prompt(self, record: Mapping[str, Any]) -> list[int]:
        """Token ids to answer from."""
        if self.style == "alpaca":
            return self._finish(self.tokenizer(alpaca_prompt(record), add_special_tokens=False).input_ids)
        messages = conversation(record)[:-1]
        return self._finish(self._ids(self._render(messages, ask=True)))

    def tokenize(self, record: Mapping[str, Any]) -> Tokenized:
        """The example whole: nothing is cut; what does not fit is for the caller to count and leave out."""
        ids: list[int] = []
        labels: list[int] = []
        scored: list[bool] = []
        completion_bytes = 0
        for segment in self._segments(record):
            tokens = self._ids(segment.text)
            ids += tokens
            if segment.end is not None:
                ids.append(segment.end)
                labels += [*tokens, segment.end]
                scored += [*(True for _ in tokens), False]
                completion_bytes += len(segment.text.encode())
            else:
                labels += [IGNORE] * len(tokens)
                scored += [False] * len(tokens)
        finished = self._finish(ids)
        front = len(finished) - len(ids)
        return Tokenized(
            example_id=record["example_id"],
            input_ids=finished,
            labels=[IGNORE] * front + labels,
            scored=[False] * front + scored,
            completion_bytes=completion_bytes,
        )

    def _segments(self, record: Mapping[str, Any]) -> list[Segment]:
        if self.style == "alpaca":
            return [Segment(alpaca_prompt(record)), Segment(record["output"], end=self.tokenizer.eos_token_id)]
        messages, segments, done = conversation(record), [], ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            asked = self._render(messages[:i], ask=True)
            if not asked.startswith(done):
                raise ValueError("the chat template rewrites earlier turns, so their tokens cannot be told apart")
            answered = asked + message["content"]
            end = self._end_of_turn(self._render(messages[: i + 1], ask=False).removeprefix(answered))
            segments += [Segment(asked.removeprefix(done)), Segment(message["content"], end=end)]
            done = answered + self.tokenizer.decode([end])
        return segments

    def _end_of_turn(self, after_the_answer: str) -> int:
        """The token that the template puts after an answer: EOS for most, <end_of_turn> for Gemma."""
        tokens = self._ids(after_the_answer)
        return tokens[0] if tokens and tokens[0] in self.tokenizer.all_special_ids else self.tokenizer.eos_token_id

    @property
    def stop_tokens(self) -> list[int]:
        """The tokens that end an answer: the one that training teaches, and EOS."""
        return sorted({self.end_of_answer, self.tokenizer.eos_token_id})

    @property
    def end_of_answer(self) -> int:
        """The token that training teaches to end an answer with."""
        record = {"instruction": "a", "input": "", "output": "b"}
        return next(segment.end for segment in self._segments(record) if segment.end is not None)

    def _render(self, messages: list[dict[str, str]], *, ask: bool) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _finish(self, ids: list[int]) -> list[int]:
        """Exactly one BOS in front where the model wants one; a chat template may have written it already."""
        return ids if not self.prefix or ids[:1] == self.prefix else [*self.prefix, *ids]


def alpaca_prompt(record: Mapping[str, Any]) -> str:
    form = ALPACA_WITH_INPUT if record["input"].strip() else ALPACA
    return form.format(instruction=record["instruction"], input=record["input"])


def conversation(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The record as chat messages, ending with the assistant's."""
    if record.get("messages"):
        return json.loads(record["messages"])
    asked = record["instruction"] + (f"\n\n{record['input']}" if record["input"].strip() else "")
    return [{"role": "user", "content": asked.strip()}, {"role": "assistant", "content": record["output"].strip()}]
