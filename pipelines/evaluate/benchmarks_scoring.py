"""Log-likelihood of each choice after its question, in nats, as lm-evaluation-harness scores
multiple choice.

The harness reads question and choice anew for every choice and computes logits for all tokens.
Here each question is read once and its choices continue from the cache.
The output head sees only the tokens of the choices.
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

# Choice tokens per batch: each has logits over the whole vocabulary.
MAX_CHOICE_TOKENS = 1024
# Rows of logits that are converted to float32 at a time.
ROWS_AT_ONCE = 64
# Rounding error in nats: two summation orders of the same numbers may differ by this much.
NOISE = {torch.float32: 1e-3}
HALF_PRECISION_NOISE = 0.2


@dataclass(frozen=True)
class Prompted:
    """A question as tokens, and its choices: at least one token each, with UTF-8 bytes in
    `sizes`."""

    context: list[int]
    choices: list[list[int]]
    sizes: list[int]

    @property
    def longest(self) -> int:
        return len(self.context) + max(map(len, self.choices))

    @property
    def follow(self) -> int:
        """Tokens that the longest choice feeds after the question: all but its last one."""
        return max(map(len, self.choices)) - 1


@dataclass(frozen=True)
class Model:
    """A loaded model and its device. `max_tokens` limits one forward pass, padding included."""

    model: Any
    device: torch.device
    max_tokens: int

    @property
    def virtual(self) -> int:
        """Virtual tokens that an adapter puts before every text."""
        return virtual_tokens.embedded(self.model) + virtual_tokens.cached(self.model)

    @property
    def noise(self) -> float:
        return NOISE.get(self.model.dtype, HALF_PRECISION_NOISE)


def prompted(tokenizer: Any, context: str, choices: Sequence[str], delimiter: str = " ") -> Prompted:
    """Tokenize as the harness does: encode question and choice together, then drop as many tokens
    as the question has alone.

    Raises:
        ValueError: a choice has no token of its own after the question.
    """
    front = tokenizer.encode(context)
    behind = [tokenizer.encode(context + delimiter + choice)[len(front) :] for choice in choices]
    if not front or not all(behind):
        raise ValueError(f"the tokens of {context[-40:]!r} and of its choices cannot be told apart")
    return Prompted(front, behind, [len(choice.encode()) for choice in choices])


def tokens_read(questions: Sequence[Prompted]) -> int:
    """Tokens that scoring reads, without padding."""
    return sum(len(one.context) + sum(len(choice) - 1 for choice in one.choices) for one in questions)


def loglikelihoods(on: Model, questions: Sequence[Prompted], say: Callable[[str], None] = print) -> list[list[float]]:
    """Log-likelihood (nats) of every choice of every question.

    Each question is read once if that gives the same result as reading every choice separately.
    One question of the first batch checks this. If the choices of a question lie within rounding
    error of each other, each is scored again alone, so that rounding decides nothing.

    Raises:
        ValueError: a question exceeds the model's window, or a result is not a finite number.
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
            f"the log-likelihoods of {bad} of {len(likelihoods)} questions are not finite: the weights are not usable"
        )
    return likelihoods


def _all_shared(
    on: Model, questions: Sequence[Prompted], head_positions: list[torch.Tensor], say: Callable[[str], None]
) -> list[list[float]] | None:
    """All questions by `_shared`; None, after a message, if the first batch fails or disagrees."""
    likelihoods: dict[int, list[float]] = {}
    for number, places in enumerate(_groups(questions, on.max_tokens)):
        group, scores = [questions[place] for place in places], []
        try:
            scores = _shared(on, group, head_positions)
            why = _cache_mismatch(on, group, scores, head_positions) if number == 0 else None
        except Exception as error:
            # Some architectures have a cache of another kind.
            if number or is_out_of_memory(error):
                raise
            why = f"{type(error).__name__}: {error}"
        if why:
            say(f"benchmarks: every choice is read separately, since continuing from the question's cache fails: {why}")
            return None
        likelihoods |= dict(zip(places, scores, strict=True))
    return [likelihoods[place] for place in range(len(questions))]


def _require_room(on: Model, questions: Sequence[Prompted]) -> None:
    window = getattr(on.model.config, "max_position_embeddings", None)
    longest = max((one.longest for one in questions), default=0) + on.virtual
    if window and longest > window:
        raise ValueError(f"a question of {longest} tokens, and the model reads {window}: ask with fewer shots")


def _groups(questions: Sequence[Prompted], max_tokens: int) -> Iterator[list[int]]:
    """Indices of `questions` by length, longest first, in groups that fit both forward passes."""
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
    """Scores of a group. Each question is read once, padded on the left; its choices, padded on the
    right, continue from its cache."""
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
    """Log-probability of each of `tokens` in its row of `logits` (positions × vocabulary).

    Only ROWS_AT_ONCE rows are in float32 at a time.
    """
    total = torch.cat([part.float().logsumexp(-1) for part in logits.split(ROWS_AT_ONCE)])
    at = torch.tensor(rows, device=logits.device)
    log_probabilities = logits[at, torch.tensor(tokens, device=logits.device)].float() - total[at]
    return log_probabilities.double().tolist()


def _continuations(
    continued: Sequence[tuple[int, int, list[int]]], rows: torch.Tensor, mask: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The inputs that continue the cached `rows` with all but the last token of each choice, and
    the target tokens."""
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
    """Logits (positions × vocabulary) at `positions`, which index the flattened batch; and the
    cache."""
    base = on.model.get_base_model() if hasattr(on.model, "get_base_model") else on.model
    accepted = inspect.signature(base.forward).parameters
    arguments = {name: value.to(on.device) for name, value in inputs.items() if name in accepted}
    head_positions[:] = [positions.to(on.device)]
    out = on.model(**arguments, past_key_values=cache, use_cache=True)
    return out.logits, out.past_key_values


def _separately(
    on: Model, questions: Sequence[Prompted], head_positions: list[torch.Tensor], *, alone: bool = False
) -> list[list[float]]:
    """Scores with every choice read after its own copy of the question.

    `alone`: one at a time without padding, as the harness does by default.
    """
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
    """Why this model's cache cannot be used; None if both ways agree on the group's last question.

    That question has the most padding before it.
    """
    (plain,) = _separately(on, group[-1:], head_positions)
    largest_gap = max(abs(one - other) for one, other in zip(scores[-1], plain, strict=True))
    return None if largest_gap <= on.noise else f"the two differ by {largest_gap:.3g} nats"


def _is_close(question: Prompted, scores: Sequence[float], noise: float) -> bool:
    """Whether rounding may decide which choice is the likeliest, in total or per byte."""
    by_byte = [score / size for score, size in zip(scores, question.sizes, strict=True)]
    for values, scale in ((scores, 1), (by_byte, min(question.sizes))):
        ranked = sorted(values, reverse=True)
        if len(ranked) > 1 and (ranked[0] - ranked[1]) * scale <= noise:
            return True
    return False
