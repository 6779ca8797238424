"""Providers beside one another, on the topic cells that all of them were asked: what came back, what was kept, what it cost.

Shares are of the requests, with Wilson's 95 % intervals. Which answers are better as training data is decided downstream: a method
may train on one provider's records alone (`data: {provider: …}`), and its row of the comparison says what that was worth.
"""

from collections import defaultdict
from collections.abc import Collection
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
LEAST_FOR_P95 = 20


def provider_rows(data: DataRoot, experiments: Experiments) -> list[Row]:
    """One row per provider whose answers are trained on or that is asked, over the cells whose outcome is known for all of them.

    What is still under way, or in a batch, has no outcome yet. `reserved_usd` is charged without a known cost;
    `usd_per_accepted` counts it, and is None where a cost is not known at all. Nothing is accepted, or a duplicate, before it
    was cleaned: None.
    """
    names = [name for name in compared(experiments) if name in experiments.providers]
    if not names or not data.journal.exists():
        return []
    with request_source(data, experiments) as reading:
        calls = {row["key"]: row for row in reading.journal.rows() if _has_outcome(row)}
        asked = {name: [one for one in _requests(reading, name) if one.key in calls] for name in names}
        records = {one.request.key: record for name in names for one, record in reading.records(name)}
    valid = {key: record.value for key, record in records.items() if record.problem is None}
    asked = {name: found for name, found in asked.items() if found}
    common = set.intersection(*({request.cell for request in found} for found in asked.values())) if asked else set()
    fates, wins, used = _fates(data), _win_rates(duels(data, experiments)), sources_of(experiments)
    rows = []
    for name, found in asked.items():
        mine = [calls[request.key] for request in found if not common or request.cell in common]
        own = [valid[call["key"]] for call in mine if call["key"] in valid]
        notes = [] if common else ["no topic cell was asked of all providers: each is shown over its own cells"]
        if uncleaned := sum(call["status"] == "answered" and call["key"] not in fates for call in mine):
            why = "run `featherweight clean`" if name in used else f"sources.providers does not name {name}"
            notes.append(f"{uncleaned} answers are not among what was cleaned last: {why}")
        rows.append(
            {
                "provider": name,
                "model": experiments.provider(name).model,
                "kind": experiments.provider(name).kind,
                "trained_on": name in used,
                "cells": len({request.cell for request in found if not common or request.cell in common}),
                "note": "; ".join(notes) or None,
                "win_rate": wins.get(name),
                "distinct_1": distinct(own, 1),
                "distinct_2": distinct(own, 2),
                **_counts(mine, valid.keys(), None if uncleaned else fates),
            }
        )
    return rows


def _requests(reading: RequestSource, name: str) -> list[Request]:
    """What the provider is asked, with those requests that were given up as lost: they count against it."""
    experiments = reading.experiments
    found = requests_for(name, experiments.provider(name), experiments.generation, reading.prompts)
    return [asked.request for asked in found]


def _has_outcome(call: Row) -> bool:
    return call["purpose"] == "generate" and call["status"] != "in_flight"


def _counts(mine: list[Row], valid: Collection[str], fates: dict[str, str] | None) -> Row:
    """The numbers of these calls; `fates` None: what cleaning makes of them is not known."""
    answered = [call for call in mine if call["status"] == "answered"]
    latencies = [call["latency_ms"] for call in answered if call["latency_ms"] is not None]
    kept = None if fates is None else [fates.get(call["key"]) for call in answered]
    counts = {
        "answered": len(answered),
        "valid": sum(call["key"] in valid for call in answered),
        "refused": sum(call["stop_reason"] in REFUSALS for call in answered),
        "truncated": sum(call["stop_reason"] in TRUNCATIONS for call in answered),
        "duplicate": None if kept is None else sum(fate in DUPLICATES for fate in kept),
        "accepted": None if kept is None else kept.count(ACCEPTED),
    }
    row: Row = {"requested": len(mine), **counts}
    for name, count in counts.items():
        low, high = (None if count is None else wilson(count, len(mine))) or (None, None)
        share = None if count is None else count / len(mine)
        row |= {f"{name}_share": share, f"{name}_share_low": low, f"{name}_share_high": high}
    reserved = sum(call["reserved_usd"] for call in mine)
    known = all(call["cost_usd"] is not None or call["reserved_usd"] for call in answered)
    cost = sum(call["cost_usd"] or 0.0 for call in mine) if known else None
    for name in ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"):
        told = [call[name] for call in answered if call[name] is not None]
        row[name] = sum(told) if told else None
    return row | {
        "failed": sum(call["status"] == "failed" for call in mine),
        "in_doubt": sum(call["in_doubt_count"] > 0 for call in mine),
        "attempts": sum(call["attempts"] for call in mine),
        "cost_usd": cost,
        "reserved_usd": reserved,
        "usd_per_accepted": (cost + reserved) / counts["accepted"] if cost is not None and counts["accepted"] else None,
        "p50_latency_ms": percentile(latencies, 0.5),
        "p95_latency_ms": percentile(latencies, 0.95) if len(latencies) >= LEAST_FOR_P95 else None,
    }


def _fates(data: DataRoot) -> dict[str, str]:
    """What cleaning made of each call's record: `accepted`, or the reason why not."""
    cleaned = current_examples(data)
    if cleaned is None:
        return {}
    rejects = reading.table(cleaned.folder / "rejects.parquet", columns=["call_key", "reason"]).to_pylist()
    kept = reading.table(cleaned.folder / "examples.parquet", columns=["call_key"]).to_pylist()
    fates = {row["call_key"]: row["reason"] for row in rejects if row["call_key"]}
    return fates | {row["call_key"]: ACCEPTED for row in kept if row["call_key"]}


def _win_rates(found: list[Duel]) -> dict[str, float]:
    """Mean of a provider's win rates against the others it was compared with."""
    rates: dict[str, list[float]] = defaultdict(list)
    for duel in found:
        if duel.scores:
            rates[duel.one].append(fmean(duel.scores))
            rates[duel.other].append(1 - fmean(duel.scores))
    return {name: fmean(values) for name, values in rates.items()}


def duel_rows(data: DataRoot, experiments: Experiments) -> list[Row]:
    """One row per pair of providers and judge. A cell whose verdict changed with the order counts as a tie."""
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
    """Who wins, where neither the interval nor the sign test leaves a doubt."""
    if low is None or high is None:
        return "too few cells to tell"
    wins, losses = duel.scores.count(1.0), duel.scores.count(0.0)
    if low <= 0.5 <= high or sign_test(wins, losses) > 0.05:
        return "no clear winner"
    return f"{duel.one if wins > losses else duel.other} is better"
