"""Which examples make one optimizer step, and how a step is cut into micro-batches. The first is the same for every
method, so that rows compare; the second only decides memory and speed."""

import hashlib
import math
import random
from collections.abc import Sequence

from pipelines.train.examples import Tokenized


def steps(examples: Sequence[Tokenized], *, epochs: float, per_step: int, seed: int) -> list[list[Tokenized]]:
    """The examples of each optimizer step: shuffled anew each epoch, `per_step` at a time, the last step the rest."""
    total = max(1, math.ceil(len(examples) * epochs))
    order: list[Tokenized] = []
    for epoch in range(math.ceil(epochs)):
        deck = list(examples)
        random.Random(f"{seed}/{epoch}").shuffle(deck)
        order += deck
    order = order[:total]
    return [order[start : start + per_step] for start in range(0, total, per_step)]


def held_back(examples: Sequence[Tokenized], share: float) -> tuple[list[Tokenized], list[Tokenized]]:
    """`examples` without a slice, and that slice: `share` of them, at least one, chosen by their ids alone."""
    ranked = sorted(examples, key=lambda e: hashlib.sha256(f"held back/{e.example_id}".encode()).digest())
    count = max(1, round(share * len(ranked)))
    away = {example.example_id for example in ranked[:count]}
    return [e for e in examples if e.example_id not in away], ranked[:count]


def micro_batches(examples: Sequence[Tokenized], *, max_tokens: int) -> list[list[Tokenized]]:
    """`examples` by length, longest first, in groups whose padded size (rows × longest) is at most `max_tokens`; an
    example longer than that goes alone."""
    groups: list[list[Tokenized]] = []
    for example in sorted(examples, key=lambda e: (-len(e), e.name)):
        if groups and (len(groups[-1]) + 1) * len(groups[-1][0]) <= max_tokens:
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


def dealt(examples: Sequence[Tokenized], *, max_tokens: int, ranks: int) -> list[list[list[Tokenized]]]:
    """The micro-batches of each of `ranks` processes, which together hold every example once: longest first, each goes to the
    process with the fewest tokens so far. One process gets `micro_batches`; of more than there are examples some get none."""
    hands: list[list[Tokenized]] = [[] for _ in range(ranks)]
    held = [0] * ranks
    for example in sorted(examples, key=lambda e: (-len(e), e.name)):
        rank = held.index(min(held))
        hands[rank].append(example)
        held[rank] += len(example)
    return [micro_batches(hand, max_tokens=max_tokens) for hand in hands]


def learning_rate_share(step: int, *, total: int, warmup_share: float) -> float:
    """Linear warm-up, then half a cosine down to zero; `step` counts from 0. Between 0 and 1."""
    warmup = math.ceil(total * warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
