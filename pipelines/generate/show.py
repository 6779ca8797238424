"""A run of requests for people: a live bar on a terminal, occasional lines in a log, and a
summary."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from pipelines.generate.answers import LONGEST_MESSAGE
from pipelines.generate.coverage import Coverage
from pipelines.generate.generate import GenerationResult, ProviderResult
from pipelines.generate.send import Snapshot
from pipelines.generate.verdicts import ASK_AGAIN, on_one_line
from pipelines.records.foreign_text import one_line

LOG_SECONDS = 10.0
STOPPED, NOTE = " stopped: ", " warning: "


class ProgressBar:
    """One bar for all providers: records, requests a second, tokens, dollars of the budget,
    errors."""

    def __init__(self, budget_usd: float | None = None) -> None:
        self._budget = budget_usd
        # In a log, an occasional line is enough.
        calm = 0.2 if sys.stderr.isatty() else LOG_SECONDS
        self._bar = tqdm(desc="records", unit="record", file=sys.stderr, mininterval=calm, delay=0.01)

    def __call__(self, snapshot: Snapshot) -> None:
        tallies = list(snapshot.tallies.values())
        self._bar.total = sum(tally.total for tally in tallies)
        self._bar.set_postfix_str(_numbers(snapshot, self._budget), refresh=False)
        self._bar.update(sum(tally.answered for tally in tallies) - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class ProgressLines:
    """A line every ten seconds and one at the end, for a log such as Dagster's."""

    def __init__(self, say: Callable[[str], None], budget_usd: float | None = None) -> None:
        self._say, self._budget = say, budget_usd
        self._logged_at, self._logged = time.monotonic(), 0

    def __call__(self, snapshot: Snapshot) -> None:
        tallies = snapshot.tallies.values()
        done, total = sum(tally.answered for tally in tallies), sum(tally.total for tally in tallies)
        if done != self._logged and (done == total or time.monotonic() - self._logged_at > LOG_SECONDS):
            self._logged_at, self._logged = time.monotonic(), done
            self._say(f"{done} of {total} answers, {_numbers(snapshot, self._budget)}")


def _numbers(snapshot: Snapshot, budget: float | None) -> str:
    tallies = snapshot.tallies.values()
    answered, tokens = sum(tally.answered for tally in tallies), sum(tally.tokens for tally in tallies)
    errors = sum(tally.errors for tally in tallies)
    money = f"${snapshot.usd:.4f}" + (f" of ${budget:.4g}" if budget is not None else "")
    return f"{answered / max(snapshot.seconds, 0.001):.1f}/s, {tokens:,} tokens, {money}, {errors} errors"


def summary(result: GenerationResult) -> Iterator[str]:
    """A line per provider on the outcome of a run, then its problems and their remedies."""
    if result.orphans:
        yield (
            f"{result.orphans} requests were under way when an earlier run was killed: in doubt, still charged, sent again once"
        )
    for name, provider in result.providers.items():
        yield f"{name}: {_outcome(provider)}"
    for name, provider in result.providers.items():
        for note in provider.notes:
            yield f"{name}{NOTE}{one_line(note, LONGEST_MESSAGE)}"
    for name, why in result.stopped.items():
        yield f"{name}{STOPPED}{one_line(why, LONGEST_MESSAGE)}"
    for name, why in unreadable(result).items():
        yield f"{name}{NOTE}{why}"


def is_warning(line: str) -> bool:
    """Whether a line of `summary` reports a problem."""
    return STOPPED in line or NOTE in line


def unreadable(result: GenerationResult) -> dict[str, str]:
    """Judge → the number of its answers without a readable verdict, one of them, and the remedy."""
    return {
        name: f"{one.unreadable} answers hold no verdict that can be read, such as "
        f"“{on_one_line(one.unreadable_sample or '')}”; {ASK_AGAIN} asks for them once more"
        for name, one in result.providers.items()
        if one.unreadable
    }


def without_valid_records(result: GenerationResult, coverages: Sequence[Coverage]) -> dict[str, str]:
    """Provider whose answers contain no valid record → a sentence with the commonest reason."""
    reasons = {}
    for one in coverages:
        provider = result.providers[one.provider]
        answers = provider.answered + provider.reused
        if answers and not one.records:
            why = f", such as: {one_line(one.problem, 300)}" if one.problem else ""
            reasons[one.provider] = f"none of its {answers} answers is a valid record{why}"
    return reasons


def covered(coverages: Sequence[Coverage]) -> Iterator[str]:
    """A line per provider: coverage of the grid by its valid records, and their variety."""
    for one in coverages:
        varied = "" if one.distinct_2 is None else f", distinct-2 {one.distinct_2:.2f}"
        yield f"{one.provider}: {one.records} valid records in {one.cells} cells and {one.topics} topics{varied}"


def duels(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The judge's verdict on each pair of providers."""
    for row in rows:
        interval = (
            f", 95 % {row['win_rate_low']:.0%} to {row['win_rate_high']:.0%}" if row["win_rate_low"] is not None else ""
        )
        rate = "–" if row["win_rate"] is None else f"{row['win_rate']:.0%}"
        family = ", a judge of the same family as one of them" if row["judge_shares_family"] else ""
        yield (
            f"{row['provider']} against {row['against']}: {row['verdict']}; won {rate} of {row['cells']} cells{interval} "
            f"({row['ties']} ties, {row['order_disagreements']} of them because the verdict changed with the order; "
            f"judge {row['judge']}{family})"
        )
        if row["unreadable"]:
            yield f"  {row['unreadable']} cells are left out: the judge gave no readable verdict; {ASK_AGAIN} asks once more"
        if row["smallest_difference"] is not None:
            yield f"  this many cells can show a difference of {row['smallest_difference']:.0%} or more"


def _outcome(result: ProviderResult) -> str:
    parts = [f"{result.wanted} requests", f"{result.answered} answered now", f"{result.reused} reused from the journal"]
    for count, name in (
        (result.refused, "refused by the model"),
        (result.in_batch, "in a batch"),
        (result.failed, "failed"),
        (result.in_doubt, "given up as in doubt"),
    ):
        if count:
            parts.append(f"{count} {name}")
    if unsent := result.missing - result.in_batch - result.failed - result.in_doubt:
        parts.append(f"{unsent} not sent")
    money = f"${result.usd:.4f} charged"
    if result.reserved_usd:
        money += f" (${result.reserved_usd:.4f} of it for requests of unknown cost)"
    return ", ".join([*parts, money])
