"""Compare providers on the topic cells that all of them were asked: answers, accepted records and
costs.

Shares are of the requests, with Wilson's 95 % intervals. The comparison of cells shows which
answers are better training data: a method may train on the records of one provider alone
(`data: {provider: …}`).
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipelines.clean import reading
from pipelines.clean.results import ACCEPTED
from pipelines.clean.results import current as current_examples
from pipelines.evaluate.statistics import percentile, sign_test, smallest_difference, wilson, win_rate_interval
from pipelines.generate.answers import REFUSALS, TRUNCATIONS
from pipelines.generate.coverage import distinct
from pipelines.generate.journal import Request
from pipelines.generate.judge import Duel, compared, duels
from pipelines.generate.requests import RequestSource, request_source, requests_for
from pipelines.generate.trained_on import sources_of
from pipelines.lake.paths import DataRoot
from pipelines.settings.experiments import Experiments

Row = dict[str, Any]
DUPLICATES = ("exact_duplicate", "near_duplicate")
MIN_FOR_P95 = 20


def provider_rows(data: DataRoot, experiments: Experiments) -> list[Row]:
    """One row per provider that is asked or trained on, over the topic cells whose outcome is known
    for all of them.

    Requests under way or in a batch have no outcome yet. `reserved_usd` is charged without a known
    cost; `usd_per_accepted` includes it, and is None if a cost is not known at all. The accepted
    and duplicate numbers are None before cleaning.
    """
    names = [name for name in compared(experiments) if name in experiments.providers]
    if not names or not data.journal.exists():
        return []
    outcomes = _outcomes(data, experiments, names)
    common = _common_cells(outcomes.requests.values())
    fates, wins, used = _fates(data), _win_rates(duels(data, experiments)), sources_of(experiments)
    rows = []
    for name, requests in outcomes.requests.items():
        compared_requests = [request for request in requests if not common or request.cell in common]
        calls = [outcomes.calls[request.key] for request in compared_requests]
        own = [outcomes.valid[call["key"]] for call in calls if call["key"] in outcomes.valid]
        uncleaned = _uncleaned(calls, fates)
        rows.append(
            {
                "provider": name,
                "model": experiments.provider(name).model,
                "kind": experiments.provider(name).kind,
                "trained_on": name in used,
                "cells": len({request.cell for request in compared_requests}),
                "note": _note(name, has_common=bool(common), uncleaned=uncleaned, is_used=name in used),
                "win_rate": wins.get(name),
                "distinct_1": distinct(own, 1),
                "distinct_2": distinct(own, 2),
                **_counts(calls, outcomes.valid.keys(), None if uncleaned else fates),
            }
        )
    return rows


@dataclass(frozen=True)
class _Outcomes:
    """The requests with a known outcome by provider, and their calls and valid records by the
    request's key."""

    requests: dict[str, list[Request]]
    calls: dict[str, Row]
    valid: dict[str, Any]


def _outcomes(data: DataRoot, experiments: Experiments, names: Iterable[str]) -> _Outcomes:
    with request_source(data, experiments) as reading:
        calls = {row["key"]: row for row in reading.journal.rows() if _has_outcome(row)}
        requests = {name: [one for one in _requests(reading, name) if one.key in calls] for name in names}
        records = {one.request.key: record for name in names for one, record in reading.records(name)}
    valid = {key: record.value for key, record in records.items() if record.problem is None}
    return _Outcomes({name: some for name, some in requests.items() if some}, calls, valid)


def _common_cells(requests: Iterable[list[Request]]) -> set[Any]:
    """The topic cells that every provider was asked; may be empty."""
    cells = [{request.cell for request in some} for some in requests]
    return set.intersection(*cells) if cells else set()


def _uncleaned(calls: list[Row], fates: dict[str, str]) -> int:
    return sum(call["status"] == "answered" and call["key"] not in fates for call in calls)


def _note(name: str, *, has_common: bool, uncleaned: int, is_used: bool) -> str | None:
    notes = [] if has_common else ["no topic cell was asked of all providers: each is shown over its own cells"]
    if uncleaned:
        why = "run `featherweight clean`" if is_used else f"sources.providers does not name {name}"
        notes.append(f"{uncleaned} answers are not among what was cleaned last: {why}")
    return "; ".join(notes) or None


def _requests(reading: RequestSource, name: str) -> list[Request]:
    """The provider's requests. Requests given up as lost are included: they count against it."""
    experiments = reading.experiments
    planned = requests_for(name, experiments.provider(name), experiments.generation, reading.prompts)
    return [entry.request for entry in planned]


def _has_outcome(call: Row) -> bool:
    return call["purpose"] == "generate" and call["status"] != "in_flight"


def _counts(calls: list[Row], valid: Collection[str], fates: dict[str, str] | None) -> Row:
    """The numbers of these calls. `fates` is None if the outcome of cleaning is not known."""
    answered = [call for call in calls if call["status"] == "answered"]
    outcomes = None if fates is None else [fates.get(call["key"]) for call in answered]
    counts = {
        "answered": len(answered),
        "valid": sum(call["key"] in valid for call in answered),
        "refused": sum(call["stop_reason"] in REFUSALS for call in answered),
        "truncated": sum(call["stop_reason"] in TRUNCATIONS for call in answered),
        "duplicate": None if outcomes is None else sum(fate in DUPLICATES for fate in outcomes),
        "accepted": None if outcomes is None else outcomes.count(ACCEPTED),
    }
    row: Row = {"requested": len(calls), **counts}
    for name, count in counts.items():
        row |= _share(name, count, len(calls))
    return row | {
        **_tokens(answered),
        "failed": sum(call["status"] == "failed" for call in calls),
        "in_doubt": sum(call["in_doubt_count"] > 0 for call in calls),
        "attempts": sum(call["attempts"] for call in calls),
        **_costs(calls, answered, counts["accepted"]),
        **_latencies(answered),
    }


def _share(name: str, count: int | None, requests: int) -> Row:
    low, high = (None if count is None else wilson(count, requests)) or (None, None)
    share = None if count is None else count / requests
    return {f"{name}_share": share, f"{name}_share_low": low, f"{name}_share_high": high}


def _tokens(answered: list[Row]) -> Row:
    names = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")
    counted = {name: [call[name] for call in answered if call[name] is not None] for name in names}
    return {name: sum(counts) if counts else None for name, counts in counted.items()}


def _costs(calls: list[Row], answered: list[Row], accepted: int | None) -> Row:
    reserved = sum(call["reserved_usd"] for call in calls)
    known = all(call["cost_usd"] is not None or call["reserved_usd"] for call in answered)
    cost = sum(call["cost_usd"] or 0.0 for call in calls) if known else None
    return {
        "cost_usd": cost,
        "reserved_usd": reserved,
        "usd_per_accepted": (cost + reserved) / accepted if cost is not None and accepted else None,
    }


def _latencies(answered: list[Row]) -> Row:
    latencies = [call["latency_ms"] for call in answered if call["latency_ms"] is not None]
    return {
        "p50_latency_ms": percentile(latencies, 0.5),
        "p95_latency_ms": percentile(latencies, 0.95) if len(latencies) >= MIN_FOR_P95 else None,
    }


def _fates(data: DataRoot) -> dict[str, str]:
    """The outcome of cleaning for each call's record: `accepted`, or the reason for dropping it."""
    cleaned = current_examples(data)
    if cleaned is None:
        return {}
    rejects = reading.table(cleaned.folder / "rejects.parquet", columns=["call_key", "reason"]).to_pylist()
    accepted = reading.table(cleaned.folder / "examples.parquet", columns=["call_key"]).to_pylist()
    fates = {row["call_key"]: row["reason"] for row in rejects if row["call_key"]}
    return fates | {row["call_key"]: ACCEPTED for row in accepted if row["call_key"]}


def _win_rates(results: list[Duel]) -> dict[str, float]:
    """The mean of each provider's win rates against the providers it was compared with."""
    rates: dict[str, list[float]] = defaultdict(list)
    for duel in results:
        if duel.scores:
            rates[duel.one].append(fmean(duel.scores))
            rates[duel.other].append(1 - fmean(duel.scores))
    return {name: fmean(values) for name, values in rates.items()}


def duel_rows(data: DataRoot, experiments: Experiments) -> list[Row]:
    """One row per pair of providers and judge. A cell counts as a tie if its verdict changed
    with the order."""
    rows = []
    for duel in duels(data, experiments):
        wins, losses, ties = (duel.scores.count(score) for score in (1.0, 0.0, 0.5))
        low, high = win_rate_interval(wins, losses, ties) or (None, None)
        rows.append(
            {
                "provider": duel.one,
                "against": duel.other,
                "judge": duel.judge,
                "judge_shares_family": duel.shares_family,
                "cells": len(duel.scores),
                "wins": wins,
                "losses": losses,
                "ties": ties,
                "order_disagreements": duel.disagreements,
                "unreadable": duel.unreadable,
                "win_rate": fmean(duel.scores) if duel.scores else None,
                "win_rate_low": low,
                "win_rate_high": high,
                "smallest_difference": smallest_difference(duel.scores),
                "verdict": _verdict(duel, low, high),
            }
        )
    return rows


def _verdict(duel: Duel, low: float | None, high: float | None) -> str:
    """The winner, if both the interval and the sign test are clear."""
    if low is None or high is None:
        return "too few cells to tell"
    wins, losses = duel.scores.count(1.0), duel.scores.count(0.0)
    if low <= 0.5 <= high or sign_test(wins, losses) > 0.05:
        return "no clear winner"
    return f"{duel.one if wins > losses else duel.other} is better"
