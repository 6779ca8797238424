"""Which rows may be compared, which of them nothing beats, and the three that people ask for."""

from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.compare.columns.comparison import PICKS
from pipelines.compare.left_out import TOO_MUCH, leaves_out_too_much, left_out_in_words
from pipelines.compare.quality import Interval, Qualities

Row = dict[str, Any]
MEMORY_NOISE = 0.02  # equal runs peaked within 1 % of each other
TIME_NOISE = 0.10  # and took times within a few per cent, on a machine of their own
AT_ONCE = 8  # rivals: the first few settle most rows
AXES = ("eval_bits_per_byte", "peak_memory_gb", "train_seconds")
MUST_MATCH = {
    "data_fingerprint": "data",
    "eval_set": "evaluation records",
    "device": "device",
    "memory_budget_gb": "memory budget",
}
SAME_BATCH = "micro_batch_tokens"  # decides memory and speed, and no quality: it must match where costs are compared
CLEAR, UNCLEAR, ONLY, NOTHING = "clear", "no clear winner", "the only one", "nothing to pick"


def incomparable(one: Row, other: Row) -> str | None:
    """What keeps two rows from being compared: other data, evaluation records, device or memory budget; of one model, other
    weights."""
    if one["model"] == other["model"] and one["weights_fingerprint"] != other["weights_fingerprint"]:
        return "weights"
    return next((called for name, called in MUST_MATCH.items() if one[name] != other[name]), None)


def other_costs(one: Row, other: Row) -> str | None:
    """What keeps memory and speed of two comparable rows from being compared: other micro-batches."""
    return None if one[SAME_BATCH] == other[SAME_BATCH] else SAME_BATCH


def of_equal_batches(rows: Sequence[Row]) -> list[Row]:
    """The rows whose memory and speed may be compared: those with the largest micro-batches. Smaller ones need less memory, so that
    a row with them cannot be said to need less than these."""
    among = [row for row in rows if stands(row)] or rows
    largest = max((row[SAME_BATCH] or 0 for row in among), default=0)
    return [row for row in rows if (row[SAME_BATCH] or 0) == largest]


def mark_pareto(rows: Sequence[Row], qualities: Qualities) -> None:
    """Set `is_pareto` of every ok row that has all three of quality, memory and time; of the others it stays None.

    A row is off the front when a comparable one with equal micro-batches dominates it: that one needs no more memory and no more
    time, is not clearly worse in quality, and is clearly better in at least one of the three. Clearly, in quality: the 95 %
    interval of the paired difference lies on one side of zero; in memory and time: by more than `MEMORY_NOISE` and `TIME_NOISE`.
    So rows that are equal, or that differ within noise, stay on the front together, and a lower number within another's interval
    beats nobody (dominance under uncertainty as in Teich 2001, EMO, LNCS 1993, with confidence intervals). Memory and time are
    ordered as measured, so no circle of rows can dominate one another: the front is never empty.
    """
    complete = [row for row in rows if _is_ranked(row, qualities) and all(row[axis] is not None for axis in AXES)]
    for row in complete:
        rivals = [other for other in complete if other is not row and _costs_no_more(other, row)]
        rivals = [other for other in rivals if not incomparable(row, other) and not other_costs(row, other)]
        row["is_pareto"] = not _is_dominated(row, rivals, qualities)


def _is_ranked(row: Row, qualities: Qualities) -> bool:
    return row["status"] == "ok" and qualities.of(row) is not None


def _costs_no_more(one: Row, other: Row) -> bool:
    return one["peak_memory_gb"] <= other["peak_memory_gb"] and one["train_seconds"] <= other["train_seconds"]


def _costs_clearly_less(one: Row, other: Row) -> bool:
    return (
        one["peak_memory_gb"] < other["peak_memory_gb"] * (1 - MEMORY_NOISE)
        or one["train_seconds"] < other["train_seconds"] * (1 - TIME_NOISE)
    )  # fmt: skip


def _is_dominated(row: Row, rivals: Sequence[Row], qualities: Qualities) -> bool:
    """`rivals` cost no more. One that is no worse by its number and clearly cheaper needs no interval."""
    bits = row["eval_bits_per_byte"]
    if any(rival["eval_bits_per_byte"] <= bits and _costs_clearly_less(rival, row) for rival in rivals):
        return True
    likeliest = sorted(rivals, key=lambda rival: rival["eval_bits_per_byte"])
    return any(_one_dominates(row, some, qualities) for some in _batched(likeliest, AT_ONCE))


def _one_dominates(row: Row, rivals: Sequence[Row], qualities: Qualities) -> bool:
    differences = qualities.differences(rivals, row)
    return any(
        difference is not None
        and not difference.above
        and (difference.below or _costs_clearly_less(rival, row))
        for rival, difference in zip(rivals, differences, strict=True)
    )  # fmt: skip


def _batched(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def comparable_rows(rows: Sequence[Row], qualities: Qualities) -> list[Row]:
    """The trained ok rows that picks are taken among: of the groups that can be compared within themselves, the one with the most
    rows that stand, then with the most rows, then with the newest. Of a model's rows those of one set of weights count, chosen
    alike. Not among them is a row whose cell left out too many records."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        measured = _is_ranked(row, qualities) and row["eval_bits_per_byte"] is not None
        if measured and row["trainable_params"] != 0 and not leaves_out_too_much(row):
            groups.setdefault(tuple(row[name] for name in MUST_MATCH), []).append(row)
    return max(map(_of_one_base, groups.values()), key=_standing, default=[])


def _of_one_base(group: Sequence[Row]) -> list[Row]:
    """The rows without those of a model's other weights."""
    by_weights: dict[str, dict[str | None, list[Row]]] = {}
    for row in group:
        by_weights.setdefault(row["model"], {}).setdefault(row["weights_fingerprint"], []).append(row)
    chosen = {id(row) for found in by_weights.values() for row in max(found.values(), key=_standing)}
    return [row for row in group if id(row) in chosen]


def stands(row: Row) -> bool:
    """Whether the row is current, or stale by the code alone, as after an upgrade."""
    return not row["is_stale"] or row["stale_because"] == "code"


def _standing(group: Sequence[Row]) -> tuple[int, int, str]:
    return sum(stands(row) for row in group), len(group), max(str(row["finished_at"] or "") for row in group)


def make_picks(rows: Sequence[Row], qualities: Qualities) -> list[Row]:
    """The rows of table `picks`: best quality, best value, least memory, each with its reason; where the numbers cannot tell
    candidates apart, none of them is picked and the verdict says so.

    best quality: the row that every other is clearly worse than (paired 95 % interval above zero).
    best value: of the rows that are not clearly worse than the best one, the one with the smallest peak memory × training time;
        costs within `TIME_NOISE` are a tie (the idea of the one-standard-error rule: the cheapest within the
        noise of the best; Breiman et al. 1984, section 3.4.3).
    least memory: the row with the lowest peak; of peaks within `MEMORY_NOISE`, those that are clearly worse in quality drop out.
    The last two compare costs, so they are taken among rows with equal micro-batches.
    """
    choice = Choice(comparable_rows(rows, qualities), rows, qualities)
    return [choice.best_quality(), choice.best_value(), choice.least_memory()]


class Choice:
    """Picks among `group`, told with `rows` in sight."""

    def __init__(self, group: Sequence[Row], rows: Sequence[Row], qualities: Qualities) -> None:
        self._group = sorted(group, key=lambda row: row["eval_bits_per_byte"])
        self._rows, self._qualities = rows, qualities
        self._several = len({row["model"] for row in rows}) > 1
        self._apart = dict(zip(map(id, self._group), self._from_best(self._group), strict=True))

    def _from_best(self, group: Sequence[Row]) -> list[Interval | None]:
        return self._qualities.differences(group, group[0]) if group else []

    def best_quality(self) -> Row:
        if not self._group:
            return self._picked("best quality", [], "")
        best, *others = self._as_good()
        if others:
            return self._picked("best quality", [best, *others], self._not_apart(best, others))
        following = f"; {self._told_apart(self._group[1])}" if len(self._group) > 1 else "; it is the only one"
        return self._picked("best quality", [best], f"{best['eval_bits_per_byte']:.4f} bits per byte{following}")

    def best_value(self) -> Row:
        known = [row for row in self._as_good() if row["peak_memory_gb"] and row["train_seconds"]]
        measured = of_equal_batches(known)
        if not measured:
            return self._picked("best value", [], "")
        cheapest = min(measured, key=_cost)
        tied = [row for row in measured if _cost(row) <= _cost(cheapest) / (1 - TIME_NOISE)]
        left = len(known) - len(measured)
        if len(tied) > 1:
            names = " and ".join(f"{self.name(row)} ({_price(row)})" for row in tied)
            return self._picked(
                "best value", tied, f"{names} cost the same within {TIME_NOISE:.0%}", other_batches=left
            )
        reason = f"{_price(cheapest)}; {self._standing_of(cheapest)}"
        return self._picked("best value", [cheapest], reason, other_batches=left)

    def least_memory(self) -> Row:
        known = [row for row in self._group if row["peak_memory_gb"]]
        measured = of_equal_batches(known)
        if not measured:
            return self._picked("least memory", [], "")
        smallest = min(row["peak_memory_gb"] for row in measured)
        tied = [row for row in measured if row["peak_memory_gb"] <= smallest / (1 - MEMORY_NOISE)]
        differences = self._qualities.differences(tied, tied[0])
        tied = [row for row, apart in zip(tied, differences, strict=True) if apart is None or not apart.above]
        left = len(known) - len(measured)
        if len(tied) > 1:
            names = " and ".join(f"{self.name(row)} ({row['peak_memory_gb']:.2f} GB)" for row in tied)
            return self._picked(
                "least memory", tied, f"{names} need the same within {MEMORY_NOISE:.0%}", other_batches=left
            )
        reason = f"{tied[0]['peak_memory_gb']:.2f} GB at its peak; {self._standing_of(tied[0])}"
        return self._picked("least memory", tied, reason, other_batches=left)

    def name(self, row: Row) -> str:
        return f"{row['model']} × {row['method']}" if self._several else row["method"]

    def _as_good(self) -> list[Row]:
        """The rows that are not clearly worse than the best, the best first. A row without interval may be as good."""
        return [row for row in self._group if (apart := self._apart[id(row)]) is None or not apart.above]

    def _not_apart(self, best: Row, others: Sequence[Row]) -> str:
        told = [f"{self.name(row)} {_signed(self._apart[id(row)])}" for row in others[:3]]
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        lowest = f"{self.name(best)} is lowest with {best['eval_bits_per_byte']:.4f} bits per byte"
        return f"{lowest}, but {_records(best)} do not tell it apart from {', '.join(told)}{more}"

    def _told_apart(self, row: Row) -> str:
        return f"{self.name(row)}, the next, has {_signed(self._apart[id(row)])} on the same {_records(row)}"

    def _standing_of(self, row: Row) -> str:
        best, apart = self._group[0], self._apart[id(row)]
        if row is best:
            return "it has the lowest bits per byte too"
        if apart is not None and apart.above:
            return f"its quality is worse than that of {self.name(best)}: {_signed(apart)} bits per byte"
        return f"its quality is not told apart from that of {self.name(best)}: {_signed(apart)} bits per byte"

    def _picked(self, pick: str, found: Sequence[Row], reason: str, *, other_batches: int = 0) -> Row:
        """`other_batches`: how many of the group were not compared for the sake of their micro-batches."""
        compared = len(self._group) - other_batches
        row = PICKS.empty() | {"pick": pick, "compared": compared, "left_out": self._left_out(other_batches)}
        if not found:
            return row | {"verdict": NOTHING, "reason": self._why_nothing()}
        row["candidates"] = ", ".join(self.name(one) for one in found)
        row["eval_records"] = found[0]["eval_records"]
        if len(found) > 1:
            return row | {"verdict": UNCLEAR, "reason": reason}
        copied = {name: found[0][name] for name in PICKS.by_name if name in found[0] and row[name] is None}
        return (
            row
            | copied
            | {
                "verdict": CLEAR if compared > 1 else ONLY,
                "reason": "; ".join(filter(None, (reason + _against_base(found[0]), left_out_in_words(found[0])))),
            }
        )

    def _why_nothing(self) -> str:
        if self._group:
            return "memory or time was not measured"
        trained = [row for row in self._rows if row["status"] == "ok" and row["trainable_params"] != 0]
        aside = sum(map(leaves_out_too_much, trained))
        told = f"; {aside} with {TOO_MUCH}" if aside else ""
        return f"no cell has trained, been evaluated and kept its values per record{told}"

    def _left_out(self, other_batches: int) -> str | None:
        """Why the other trained cells are not among those compared."""
        inside = {id(row) for row in self._group}
        why: dict[str, int] = {}
        for row in self._rows:
            if id(row) in inside or row["trainable_params"] == 0:
                continue
            because = row["status"]
            if because == "ok" and leaves_out_too_much(row):
                because = f"with {TOO_MUCH}"
            elif because == "ok":
                other = next(filter(None, (incomparable(row, one) for one in self._group)), None)
                because = f"measured with other {other}" if other else "without values per record"
            why[because] = why.get(because, 0) + 1
        if other_batches:
            why[f"measured with other {SAME_BATCH}"] = other_batches
        return ", ".join(f"{count} {because}" for because, count in why.items()) or None


def _cost(row: Row) -> float:
    """GB × seconds: what it keeps busy, for how long."""
    return row["peak_memory_gb"] * row["train_seconds"]


def _price(row: Row) -> str:
    dollars = f", ${row['train_usd']:.2f}" if row["train_usd"] is not None else ""
    return f"{row['peak_memory_gb']:.2f} GB for {minutes(row['train_seconds'])}{dollars}"


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _records(row: Row) -> str:
    return f"{row['eval_records'] or 0:.0f} records"


def _signed(apart: Interval | None) -> str:
    return f"{apart.value:+.4f} (95 % interval {apart.low:+.4f} to {apart.high:+.4f})" if apart else "(too few records)"


def _against_base(row: Row) -> str:
    low, high = row["delta_base_low"], row["delta_base_high"]
    if low is None or high is None or high < 0:
        return ""
    return "; it is worse than the untouched model" if low > 0 else "; it is not told apart from the untouched model"
