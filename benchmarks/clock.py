"""Seconds of a call: the best of several, since other work on the machine only ever adds."""

import time
from collections.abc import Callable


def best_seconds(work: Callable[[], object], *, rounds: int) -> float:
    work()
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
