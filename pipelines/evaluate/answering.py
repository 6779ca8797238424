"""Greedy answers, in batches or one at a time. The rules for the end of an answer are the same for
every model.

A batch is padded on the left, so that every row's next token comes from its last position.
Mask and positions exclude the padding.
"""
# ruff: noqa: TID253

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from pipelines.runs.clock import Stopwatch
from pipelines.train.trainer import virtual_tokens
from pipelines.train.trainer.conversations import ALPACA
from pipelines.train.trainer.prompts import PromptFormat

# A model that was not tuned to stop continues with the next block of its prompt format.
NEXT_BLOCK = ("### Instruction", ALPACA.split(".")[0])
# Number of last tokens of a row in which to look for such a text.
TAIL = 48


@dataclass(frozen=True)
class PromptedModel:
    """A model and its prompt format. `more` goes to every call of `generate`."""

    model: Any
    form: PromptFormat
    recipe: dict[str, Any]
    device: torch.device
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return NEXT_BLOCK if self.form.style == "alpaca" else ()


def answer(
    prompted_model: PromptedModel, prompts: Sequence[list[int]], limit: int, *, exactly: bool = False
) -> list[list[int]]:
    """The greedy continuation of each prompt, in one batch: at most `limit` new tokens, including
    the token that ends it.

    `exactly`: generate `limit` tokens and ignore every end, to measure speed.
    """
    form, longest = prompted_model.form, max(map(len, prompts))
    padding = form.tokenizer.eos_token_id
    ids = torch.full((len(prompts), longest), padding)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    stops = [] if exactly else form.stop_tokens
    texts = () if exactly else prompted_model.stop_texts
    # The sampling and penalty settings in a model's folder would make models incomparable.
    config = GenerationConfig(
        do_sample=False, max_new_tokens=limit, eos_token_id=stops or None, pad_token_id=padding, use_cache=True
    )
    prompted_model.model.generation_config = config
    by_embeddings = virtual_tokens.embedded(prompted_model.model) > 0
    # With input embeddings, `generate` returns only the new tokens.
    start = 0 if by_embeddings else longest
    ends = StoppingCriteriaList([_TextEnds(form.tokenizer, texts, start)] if texts else [])
    model, device = prompted_model.model, prompted_model.device
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    with torch.no_grad():
        if by_embeddings:
            embeds, mask = virtual_tokens.before_each_text(model, inputs["input_ids"], list(map(len, prompts)))
            model, inputs = model.get_base_model(), {"inputs_embeds": embeds, "attention_mask": mask}
            model.generation_config = config
        produced = model.generate(**inputs, generation_config=config, stopping_criteria=ends, **prompted_model.more)
    return [_until_its_end(row, stops, form, texts) for row in produced[:, start:].tolist()]


def _until_its_end(tokens: list[int], stops: Sequence[int], form: PromptFormat, texts: Sequence[str]) -> list[int]:
    """A row without the padding after its end. A row that a stop text ended has no end token."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    ended_by_text = texts and _first(form.tokenizer.decode(tokens[:end]), texts) is not None
    return tokens[:end] if ended_by_text else tokens[: end + 1]


def ended(prompted_model: PromptedModel, tokens: Sequence[int], limit: int) -> bool:
    """Whether an answer of at most `limit` tokens, as `answer` returns it, ended by itself."""
    if len(tokens) < limit or tokens[-1] in prompted_model.form.stop_tokens:
        return True
    return _first(prompted_model.form.tokenizer.decode(tokens), prompted_model.stop_texts) is not None


def text_of(prompted_model: PromptedModel, tokens: Sequence[int]) -> str:
    """The text of the tokens, without special tokens and without the next block."""
    text = prompted_model.form.tokenizer.decode(tokens, skip_special_tokens=True)
    return text[: _first(text, prompted_model.stop_texts)].strip()


def _first(text: str, marks: Sequence[str]) -> int | None:
    return min((place for mark in marks if (place := text.find(mark)) >= 0), default=None)


class _TextEnds(StoppingCriteria):
    """Ends each row whose new text holds one of `texts`."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], prompt_length: int) -> None:
        self._tokenizer, self._texts, self._start = tokenizer, texts, prompt_length

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        tails = input_ids[:, max(self._start, input_ids.shape[1] - TAIL) :].tolist()
        done = [_first(self._tokenizer.decode(tail), self._texts) is not None for tail in tails]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def groups(prompts: Sequence[list[int]], limit: int, *, max_tokens: int) -> list[list[int]]:
    """Indices of `prompts` by length, in groups of at most `max_tokens` (padded prompt and answer).

    A prompt that exceeds `max_tokens` forms a group of its own.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        size = (len(prompts[batches[-1][0]]) + limit) * (len(batches[-1]) + 1) if batches else 0
        if batches and size <= max_tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def answer_all(
    prompted_model: PromptedModel, prompts: Sequence[list[int]], limit: int, *, max_tokens: int
) -> list[list[int]]:
    """`answer` for any number of prompts."""
    answers: list[list[int]] = [[] for _ in prompts]
    for group in groups(prompts, limit, max_tokens=max_tokens):
        for place, tokens in zip(group, answer(prompted_model, [prompts[i] for i in group], limit), strict=True):
            answers[place] = tokens
    return answers


def latencies(prompted_model: PromptedModel, prompts: Sequence[list[int]], limit: int) -> list[float]:
    """Milliseconds for the answer to each prompt, one at a time, after an untimed warm-up call."""
    if prompts:
        answer(prompted_model, prompts[:1], 2)
    milliseconds = []
    for prompt in prompts:
        clock = Stopwatch()
        # The tokens are copied to the host, so a GPU has finished.
        answer(prompted_model, [prompt], limit)
        milliseconds.append(clock.total() * 1000)
    return milliseconds
