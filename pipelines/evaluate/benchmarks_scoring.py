"""How likely a model finds each choice behind its question, in nats, as lm-evaluation-harness scores multiple choice.

The harness reads question and choice anew for every choice, and makes the logits of all their tokens. Here a question is read once
and its choices go on from the cache; the output head sees the tokens of the choices alone.
"""
# ruff: noqa: TID253

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch

from pipelines.runs.worker import is_out_of_memory
from pipelines.train.trainer import virtual_tokens
from pipelines.train.trainer.batches import micro_batches
from pipelines.train.trainer.examples import IGNORE, Tokenized
from pipelines.train.trainer.losses import head_on_positions, token_losses

MAX_CHOICE_TOKENS = 1024  # tokens of choices in a batch: each has logits of the whole vocabulary
ROWS_AT_ONCE = 64
NOISE = {torch.float32: 1e-3}  # nats that two ways of adding up the same numbers may differ by; in half precision:
HALF_PRECISION_NOISE = 0.2


@dataclass(frozen=True)
class Prompted:
    """A question as tokens, and what may follow it: for each choice at least one token, and its UTF-8 bytes in `sizes`."""

    context: list[int]
    choices: list[list[int]]
    sizes: list[int]

    @property
    def longest(self) -> int:
        return len(self.context) + max(map(len, self.choices))

    @property
    def follow(self) -> int:
        """Tokens that the longest choice reads behind the question: all but its last one."""
        return max(map(len, self.choices)) - 1


@dataclass(frozen=True)
class Model:
    """A loaded model and where it computes. `max_tokens`: of one forward pass, padding included."""

    model: Any
    device: torch.device
    max_tokens: int

    @property
    def virtual(self) -> int:
        """Tokens that an adapter puts before every text."""
        return virtual_tokens.embedded(self.model) + virtual_tokens.cached(self.model)

    @property
    def noise(self) -> float:
        return NOISE.get(self.model.dtype, HALF_PRECISION_NOISE)


def prompted(tokenizer: Any, context: str, choices: Sequence[str], delimiter: str = " ") -> Prompted:
    """As the harness splits them: the tokens of question and choice together, without as many as the question has alone.

    Raises:
        ValueError: a choice has no token of its own behind the question.
    """
    front = tokenizer.encode(context)
    behind = [tokenizer.encode(context + delimiter + choice)[len(front) :] for choice in choices]
    if not front or not all(behind):
        raise ValueError(f"the tokens of {context[-40:]!r} and of its choices cannot be told apart")
    return Prompted(front, behind, [len(choice.encode()) for choice in choices])


def tokens_read(questions: Sequence[Prompted]) -> int:
    """Tokens that scoring reads, padding left out."""
    return sum(len(one.context) + sum(len(choice) - 1 for choice in one.choices) for one in questions)


def loglikelihoods(on: Model, questions: Sequence[Prompted], say: Callable[[str], None] = print) -> list[list[float]]:
    """Log-likelihood (nats) of every choice of every question.

    Questions are read once where that gives what reading every choice by itself gives, which is tried on one of the first batch.
    Choices of a question that lie closer together than rounding are scored again one by one, so that rounding picks none.

    Raises:
        ValueError: a question is longer than what the model reads, or a result is no number.
    """
    _require_room(on, questions)
    with head_on_positions(on.model) as head_positions, torch.no_grad():
        likelihoods = None if on.virtual else _all_shared(on, questions, head_positions, say)
        likelihoods = likelihoods or _separately(on, questions, head_positions)
        for place, scores in enumerate(likelihoods):
            if _is_close(questions[place], scores, on.noise):
                likelihoods[place] = _separately(on, [questions[place]], head_positions, alone=True)[0]
    if bad := sum(not all(map(isfinite, scores)) for scores in likelihoods):
        raise ValueError(
            f"the log-likelihoods of {bad} of {len(likelihoods)} questions are no numbers: the weights are not usable"
        )
    return likelihoods


def _all_shared(
    on: Model, questions: Sequence[Prompted], head_positions: list[torch.Tensor], say: Callable[[str], None]
) -> list[list[float]] | None:
    """All questions by `_shared`; None, and a word on why, where that fails on the first ones or gives something else."""
    likelihoods: dict[int, list[float]] = {}
    for number, places in enumerate(_groups(questions, on.max_tokens)):
        group, scores = [questions[place] for place in places], []
        try:
            scores = _shared(on, group, head_positions)
            why = _cache_mismatch(on, group, scores, head_positions) if number == 0 else None
        except Exception as error:  # an architecture whose cache is another kind
            if number or is_out_of_memory(error):
                raise
            why = f"{type(error).__name__}: {error}"
        if why:
            say(f"benchmarks: every choice is read by itself, since going on from the question's cache fails: {why}")
            return None
        likelihoods |= dict(zip(places, scores, strict=True))
    return [likelihoods[place] for place in range(len(questions))]


def _require_room(on: Model, questions: Sequence[Prompted]) -> None:
    window = getattr(on.model.config, "max_position_embeddings", None)
    longest = max((one.longest for one in questions), default=0) + on.virtual
    if window and longest > window:
        raise ValueError(f"a question of {longest} tokens, and the model reads {window}: ask with fewer shots")


def _groups(questions: Sequence[Prompted], max_tokens: int) -> Iterator[list[int]]:
    """Places of `questions` by length, longest first, as many together as both forward passes may hold."""
    group: list[int] = []
    for place in sorted(range(len(questions)), key=lambda one: (-len(questions[one].context), one)):
        together = [questions[one] for one in (*group, place)]
        read = len(together) * len(together[0].context)
        continued = sum(len(one.choices) for one in together) * max(one.follow for one in together)
        if group and (max(read, continued) > max_tokens or continued > MAX_CHOICE_TOKENS):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def _padded_left(contexts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, each (contexts, tokens of the longest)."""
    longest = max(map(len, contexts))
    ids = torch.zeros((len(contexts), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, context in enumerate(contexts):
        ids[row, longest - len(context) :] = torch.tensor(context)
        mask[row, longest - len(context) :] = 1
    return ids, mask


def _shared(on: Model, group: Sequence[Prompted], head_positions: list[torch.Tensor]) -> list[list[float]]:
    """Each question read once, padded on the left; its choices, padded on the right, go on from its cache."""
    ids, mask = _padded_left([one.context for one in group])
    last = torch.arange(1, len(group) + 1) * ids.shape[1] - 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    first, cache = _forward(
        on, {"input_ids": ids, "attention_mask": mask, "position_ids": positions}, last, head_positions
    )
    first_tokens = [(row, choice[0]) for row, one in enumerate(group) for choice in one.choices]
    first_scores = iter(
        _log_probabilities(first, [row for row, _ in first_tokens], [token for _, token in first_tokens])
    )
    scores = [[next(first_scores) for _ in one.choices] for one in group]
    continued = [
        (row, place, choice) for row, one in enumerate(group) for place, choice in enumerate(one.choices) if choice[1:]
    ]
    if not continued:
        return scores
    rows = torch.tensor([row for row, _, _ in continued])
    cache.batch_select_indices(rows.to(on.device))
    inputs, targets = _continuations(continued, rows, mask)
    behind = (targets.flatten() != IGNORE).nonzero().squeeze(1)
    logits, _ = _forward(on, inputs, behind, head_positions, cache)
    each = iter(_log_probabilities(logits, list(range(len(behind))), targets.flatten()[behind].tolist()))
    for row, place, choice in continued:
        scores[row][place] += sum(next(each) for _ in choice[1:])
    return scores


def _log_probabilities(logits: torch.Tensor, rows: list[int], tokens: list[int]) -> list[float]:
    """Log-probability of each of `tokens` in its row of `logits` (positions × vocabulary), some rows in float32 at a time."""
    total = torch.cat([part.float().logsumexp(-1) for part in logits.split(ROWS_AT_ONCE)])
    at = torch.tensor(rows, device=logits.device)
    log_probabilities = logits[at, torch.tensor(tokens, device=logits.device)].float() - total[at]
    return log_probabilities.double().tolist()


def _continuations(
    continued: Sequence[tuple[int, int, list[int]]], rows: torch.Tensor, mask: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The inputs that continue the cached `rows` with all but the last token of each choice, and the tokens to find there."""
    width = max(len(choice) for _, _, choice in continued) - 1
    ids = torch.zeros((len(continued), width), dtype=torch.long)
    targets = torch.full_like(ids, IGNORE)
    own = torch.zeros_like(ids)
    for row, (_, _, choice) in enumerate(continued):
        ids[row, : len(choice) - 1] = torch.tensor(choice[:-1])
        targets[row, : len(choice) - 1] = torch.tensor(choice[1:])
        own[row, : len(choice) - 1] = 1
    behind = mask[rows].sum(-1, keepdim=True) + torch.arange(width)
    return {"input_ids": ids, "attention_mask": torch.cat((mask[rows], own), 1), "position_ids": behind}, targets


def _forward(
    on: Model,
    inputs: dict[str, torch.Tensor],
    positions: torch.Tensor,
    head_positions: list[torch.Tensor],
    cache: Any = None,
) -> tuple[torch.Tensor, Any]:
    """Logits (positions × vocabulary) at `positions`, counted through all rows; and the cache."""
    base = on.model.get_base_model() if hasattr(on.model, "get_base_model") else on.model
    accepted = inspect.signature(base.forward).parameters
    arguments = {name: value.to(on.device) for name, value in inputs.items() if name in accepted}
    head_positions[:] = [positions.to(on.device)]
    out = on.model(**arguments, past_key_values=cache, use_cache=True)
    return out.logits, out.past_key_values


def _separately(
    on: Model, questions: Sequence[Prompted], head_positions: list[torch.Tensor], *, alone: bool = False
) -> list[list[float]]:
    """Every choice read behind its question; `alone`: one at a time, without padding, as the harness does unless told otherwise."""
    examples = [
        Tokenized(
            example_id=f"{number}/{place}",
            input_ids=[*one.context, *choice],
            labels=[*([IGNORE] * len(one.context)), *choice],
            scored=[False] * (len(one.context) + len(choice)),
            completion_bytes=0,
        )
        for number, one in enumerate(questions)
        for place, choice in enumerate(one.choices)
    ]
    size = 1 if alone else on.max_tokens
    likelihoods = {}
    for batch in micro_batches(examples, max_tokens=size, virtual=on.virtual):
        losses = token_losses(on.model, batch, head_positions, on.device).double().cpu()
        start = 0
        for example in batch:
            likelihoods[example.example_id] = -float(losses[start : start + example.learned].sum())
            start += example.learned
    return [
        [likelihoods[f"{number}/{place}"] for place in range(len(one.choices))] for number, one in enumerate(questions)
    ]


def _cache_mismatch(
    on: Model, group: Sequence[Prompted], scores: Sequence[Sequence[float]], head_positions: list[torch.Tensor]
) -> str | None:
    """Why this model's cache is not gone on from; None where both ways agree on the group's last question, the one with the most
    padding before it."""
    (plain,) = _separately(on, group[-1:], head_positions)
    largest_gap = max(abs(one - other) for one, other in zip(scores[-1], plain, strict=True))
    return None if largest_gap <= on.noise else f"the two differ by {largest_gap:.3g} nats"


def _is_close(question: Prompted, scores: Sequence[float], noise: float) -> bool:
    """Whether rounding may decide which choice is the likeliest, as a whole or for each of its bytes."""
    by_byte = [score / size for score, size in zip(scores, question.sizes, strict=True)]
    for values, scale in ((scores, 1), (by_byte, min(question.sizes))):
        ranked = sorted(values, reverse=True)
        if len(ranked) > 1 and (ranked[0] - ranked[1]) * scale <= noise:
            return True
    return False
