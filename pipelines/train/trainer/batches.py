"""The examples of each optimizer step, and the cut of a step into micro-batches.

The steps are the same for every method, so that rows compare. The micro-batches only decide memory
and speed.
"""

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.settings.methods import traits_of
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.fast_paths import ARCHITECTURES, UNKNOWN

# Roughly, the numbers that a decoder layer keeps for the backward pass, per token and unit of
# width.
FLOATS_PER_WIDTH = 30


def steps(examples: Sequence[Tokenized], *, epochs: float, per_step: int, seed: int) -> list[list[Tokenized]]:
    """The examples of each optimizer step: every epoch shuffles anew; the last step takes the
    rest."""
    total = max(1, math.ceil(len(examples) * epochs))
    order: list[Tokenized] = []
    for epoch in range(math.ceil(epochs)):
        shuffled = list(examples)
        random.Random(f"{seed}/{epoch}").shuffle(shuffled)
        order += shuffled
    order = order[:total]
    return [order[start : start + per_step] for start in range(0, total, per_step)]


def held_back(examples: Sequence[Tokenized], share: float) -> tuple[list[Tokenized], list[Tokenized]]:
    """`examples` without a slice, and the slice: `share` of them, at least one, chosen by their ids
    alone."""
    ranked = sorted(examples, key=lambda e: hashlib.sha256(f"held back/{e.example_id}".encode()).digest())
    count = max(1, round(share * len(ranked)))
    held_ids = {example.example_id for example in ranked[:count]}
    return [e for e in examples if e.example_id not in held_ids], ranked[:count]


def micro_batches(examples: Sequence[Tokenized], *, max_tokens: int, virtual: int = 0) -> list[list[Tokenized]]:
    """`examples`, longest first, in groups whose padded size (rows × longest) is at most
    `max_tokens`.

    A longer example goes alone. An adapter's `virtual` tokens before each row count, too.
    """
    groups: list[list[Tokenized]] = []
    for example in sorted(examples, key=lambda e: (-len(e), e.name)):
        if groups and (len(groups[-1]) + 1) * (len(groups[-1][0]) + virtual) <= max_tokens:
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


def split_by_rank(
    examples: Sequence[Tokenized], *, max_tokens: int, ranks: int, virtual: int = 0
) -> list[list[list[Tokenized]]]:
    """The micro-batches of each of `ranks` processes, which together hold every example once.

    Each example, longest first, goes to the process with the fewest tokens so far. A single process
    gets `micro_batches`. If there are more processes than examples, some get nothing.
    """
    shares: list[list[Tokenized]] = [[] for _ in range(ranks)]
    token_counts = [0] * ranks
    for example in sorted(examples, key=lambda e: (-len(e), e.name)):
        rank = token_counts.index(min(token_counts))
        shares[rank].append(example)
        token_counts[rank] += len(example)
    return [micro_batches(share, max_tokens=max_tokens, virtual=virtual) for share in shares]


def heaviest(
    plan: Sequence[Sequence[Tokenized]], config: Any, recipe: Mapping[str, Any], *, ranks: int = 1
) -> list[list[Tokenized]]:
    """The micro-batches that need the most memory in `plan`, on any of `ranks`.

    These are the heaviest first micro-batch of a step and, if steps accumulate, the heaviest later
    one: the gradients of the first lie in memory beside it.
    """
    virtual = traits_of(recipe).virtual_tokens
    split_steps = [
        split_by_rank(step, max_tokens=recipe["micro_batch_tokens"], ranks=ranks, virtual=virtual) for step in plan
    ]
    parts = [part for rank_batches in split_steps for part in rank_batches if part]
    first, later = [part[0] for part in parts], [batch for part in parts for batch in part[1:]]

    def weight(batch: Sequence[Tokenized]) -> tuple[int, int]:
        """The numbers kept for the backward pass; equal ones rank by their learned tokens."""
        learned = sum(example.learned for example in batch)
        return kept_numbers(len(batch) * (len(batch[0]) + virtual), learned, config, recipe), learned

    return [max(batches, key=weight) for batches in (first, later) if batches]


def kept_numbers(tokens: int, learned: int, config: Any, recipe: Mapping[str, Any]) -> int:
    """Roughly, the numbers that a micro-batch of `tokens` padded tokens keeps for the backward
    pass.

    Logits, their log-softmax and their gradient count only if the architecture has no head that
    runs piece by piece.
    """
    layers = config.num_hidden_layers
    per_width = layers + FLOATS_PER_WIDTH if recipe["gradient_checkpointing"] else layers * FLOATS_PER_WIDTH
    in_pieces = ARCHITECTURES.get(config.model_type, UNKNOWN).head
    return tokens * config.hidden_size * per_width + (0 if in_pieces else 3 * learned * config.vocab_size)


def smaller(plan: Sequence[Sequence[Tokenized]], *, max_tokens: int, ranks: int = 1, virtual: int = 0) -> int | None:
    """`max_tokens`, halved until it cuts `plan` into smaller micro-batches, but at least the
    longest example.

    None if no micro-batch of `plan` is larger than the longest example.
    """
    parts = [part for step in plan for part in split_by_rank(step, max_tokens=max_tokens, ranks=ranks, virtual=virtual)]
    largest = max(len(batch) * (len(batch[0]) + virtual) for part in parts for batch in part)
    longest = max(len(example) + virtual for step in plan for example in step)
    if largest <= longest:
        return None
    halved = max_tokens // 2
    while halved >= largest:
        halved //= 2
    return max(halved, longest)


def learning_rate_share(step: int, *, total: int, warmup_share: float) -> float:
    """Linear warm-up, then half a cosine down to zero; `step` counts from 0. Between 0 and 1."""
    warmup = math.ceil(total * warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
