"""Numbers of quality from plain values: bits per byte, chrF, percentiles."""

import math
from collections.abc import Sequence

import sacrebleu


def bits_per_byte(nats: float, completion_bytes: int) -> float:
    """Σ negative log-likelihood of the completions' ordinary tokens / (ln 2 × their UTF-8 bytes); models with different
    tokenizers compare by it."""
    return nats / (math.log(2) * completion_bytes)


def chrf(answer: str, reference: str) -> float:
    """chrF (Popović 2015), 0 to 100, as sacrebleu computes it; character n-grams suit Korean and English alike."""
    return sacrebleu.sentence_chrf(answer, [reference]).score


def corpus_chrf(answers: Sequence[str], references: Sequence[str]) -> float | None:
    return sacrebleu.corpus_chrf(list(answers), [list(references)]).score if answers else None


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value at `share` (0..1) of the sorted values, linear between neighbours; None of nothing."""
    if not values:
        return None
    ordered, place = sorted(values), share * (len(values) - 1)
    below, above = math.floor(place), math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
