"""Which rows may be compared, the Pareto front among them, and the three picks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.compare.columns.comparison import PICKS
from pipelines.compare.disturbed import has_valid_speed
from pipelines.compare.disturbed import in_words as disturbed_in_words
from pipelines.compare.left_out import TOO_MUCH, leaves_out_too_much, left_out_in_words
from pipelines.compare.outside import is_outside, of_profile
from pipelines.compare.quality import Interval, Qualities
from pipelines.compare.rates import Name, at_edge, not_its_best, still_open, trained_at

Row = dict[str, Any]
# Peaks within this share of each other count as equal; equal runs peaked within 1 %.
MEMORY_NOISE = 0.02
# The same for times; equal runs on a quiet machine took times within a few per cent.
TIME_NOISE = 0.10
# Rivals are compared in batches of this size, since the first few settle most rows.
BATCH = 8
AXES = ("eval_bits_per_byte", "peak_memory_gb", "train_seconds")
MUST_MATCH = {
    "data_fingerprint": "data",
    "eval_set": "evaluation records",
    "device": "device",
    "memory_budget_gb": "memory budget",
}
# Affects memory and speed but not quality, so it must match only if costs are compared.
SAME_BATCH = "micro_batch_tokens"
CLEAR, UNCLEAR, ONLY, NOTHING = "clear", "no clear winner", "the only one", "nothing to pick"


def incomparable(one: Row, other: Row) -> str | None:
    """The difference that makes two rows incomparable; None if they are comparable.

    It is data, evaluation records, device or memory budget, or for rows of one model the weights.
    """
    if one["model"] == other["model"] and one["weights_fingerprint"] != other["weights_fingerprint"]:
        return "weights"
    return next((label for name, label in MUST_MATCH.items() if one[name] != other[name]), None)


def other_costs(one: Row, other: Row) -> str | None:
    """The difference that makes memory and speed of two comparable rows incomparable: their
    micro-batches; else None."""
    return None if one[SAME_BATCH] == other[SAME_BATCH] else SAME_BATCH


def of_equal_batches(rows: Sequence[Row]) -> list[Row]:
    """The rows whose memory and speed may be compared: those with the largest micro-batches.

    Smaller micro-batches need less memory by themselves, so such a row proves nothing about its
    method.
    """
    candidates = [row for row in rows if stands(row)] or rows
    largest = max((row[SAME_BATCH] or 0 for row in candidates), default=0)
    return [row for row in rows if (row[SAME_BATCH] or 0) == largest]


def mark_pareto(rows: Sequence[Row], qualities: Qualities) -> None:
    """Set `is_pareto` of every ok row with quality, memory and an undisturbed time.

    For other rows it stays None, and they dominate no row.

    A row is off the front if a comparable row with equal micro-batches dominates it. The dominating
    row needs no more memory and no more time, is not clearly worse in quality, and is clearly
    better in at least one of the three. In quality, clearly means that the 95 % interval of the
    paired difference lies on one side of zero. In memory and time it means by more than
    `MEMORY_NOISE` and `TIME_NOISE`. So rows that are equal, or differ within noise, stay on the
    front together, and a lower number within another's interval dominates nothing (dominance under
    uncertainty as in Teich 2001, EMO, LNCS 1993, with confidence intervals). Memory and time are
    ordered as measured, so rows cannot dominate each other in a circle: the front is never empty.

    A better learning rate can only improve the quality of a row whose rate lies at the edge of
    those tried. So nothing dominates such a row, and it dominates others only by its costs: no
    difference in quality to it is clear.
    """
    complete = [row for row in rows if _is_complete(row) and _is_ranked(row, qualities)]
    for row in complete:
        rivals = [other for other in complete if other is not row and _costs_no_more(other, row)]
        rivals = [other for other in rivals if not incomparable(row, other) and not other_costs(row, other)]
        row["is_pareto"] = not _is_dominated(row, rivals, qualities)


def _is_complete(row: Row) -> bool:
    return all(row[axis] is not None for axis in AXES) and has_valid_speed(row)


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
    """Whether one of `rivals` dominates the row; they cost no more than it does.

    A rival with no worse number that is clearly cheaper needs no interval.
    """
    if at_edge([row]):
        return False
    bits = row["eval_bits_per_byte"]
    if any(rival["eval_bits_per_byte"] <= bits and _costs_clearly_less(rival, row) for rival in rivals):
        return True
    likeliest = sorted(rivals, key=lambda rival: rival["eval_bits_per_byte"])
    return any(_one_dominates(row, batch, qualities) for batch in _batched(likeliest, BATCH))


def _one_dominates(row: Row, rivals: Sequence[Row], qualities: Qualities) -> bool:
    differences = qualities.method_differences(rivals, row)
    return any(
        difference is not None
        and not difference.above
        and ((difference.below and not at_edge([rival])) or _costs_clearly_less(rival, row))
        for rival, difference in zip(rivals, differences, strict=True)
    )  # fmt: skip


def _batched(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def comparable_rows(rows: Sequence[Row], qualities: Qualities) -> list[Row]:
    """The trained ok rows that picks are made from: the best group of rows that are comparable with
    each other.

    The best group has the most current rows, then the most rows, then the newest row. Of each model
    only the rows with one set of weights count, chosen by the same order. Rows outside the profile
    and rows whose cell left out too many records are excluded.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in of_profile(rows):
        measured = _is_ranked(row, qualities) and row["eval_bits_per_byte"] is not None
        if measured and row["trainable_params"] != 0 and not leaves_out_too_much(row):
            groups.setdefault(tuple(row[name] for name in MUST_MATCH), []).append(row)
    return max(map(_of_one_base, groups.values()), key=_precedence, default=[])


def _of_one_base(group: Sequence[Row]) -> list[Row]:
    """The rows of the group, with one set of weights per model."""
    by_weights: dict[str, dict[str | None, list[Row]]] = {}
    for row in group:
        by_weights.setdefault(row["model"], {}).setdefault(row["weights_fingerprint"], []).append(row)
    chosen = {id(row) for groups in by_weights.values() for row in max(groups.values(), key=_precedence)}
    return [row for row in group if id(row) in chosen]


def stands(row: Row) -> bool:
    """Whether the row is current, or stale only because of the code, as after an upgrade."""
    return not row["is_stale"] or row["stale_because"] == "code"


def _precedence(group: Sequence[Row]) -> tuple[int, int, str]:
    return sum(stands(row) for row in group), len(group), max(str(row["finished_at"] or "") for row in group)


def make_picks(rows: Sequence[Row], qualities: Qualities) -> list[Row]:
    """The rows of table `picks`: best quality, best value, least memory, each with its reason.

    If the numbers cannot tell candidates apart, none of them is picked and the verdict says so.

    best quality: the row that every other row is clearly worse than (paired 95 % interval above
        zero).
    best value: the smallest peak memory × training time among the rows that are not clearly worse
        than the best one; costs within `TIME_NOISE` are a tie (the idea of the one-standard-error
        rule: the cheapest within the noise of the best; Breiman et al. 1984, section 3.4.3).
    least memory: the row with the lowest peak; of peaks within `MEMORY_NOISE`, those that are
        clearly worse in quality drop out.
    The last two compare costs, so they are taken among rows with equal micro-batches.

    If a compared row lies at the edge of the learning rates tried, the first two have no winner:
    that row may still be the best. Least memory depends on it only if quality breaks a tie. If a
    row that may be the best value has a disturbed speed, no row is picked.
    """
    choice = Choice(comparable_rows(rows, qualities), rows, qualities)
    return [choice.best_quality(), choice.best_value(), choice.least_memory()]


@dataclass(frozen=True)
class Selection:
    """The rows of a pick.

    `compared` are the rows whose qualities its reason mentions. `other_batches` counts the rows
    left out because of their micro-batches.
    """

    rows: Sequence[Row]
    compared: Sequence[Row]
    undecided: bool
    other_batches: int = 0


class Choice:
    """Makes the picks from `group`; `rows` are all rows of the comparison, for the reasons."""

    def __init__(self, group: Sequence[Row], rows: Sequence[Row], qualities: Qualities) -> None:
        self._group = sorted(group, key=lambda row: row["eval_bits_per_byte"])
        self._rows, self._qualities = rows, qualities
        self._several = len({row["model"] for row in of_profile(rows)}) > 1
        self._gaps = dict(zip(map(id, self._group), self._from_best(self._group), strict=True))
        # A single row has no rival.
        self._open = at_edge(self._group) if len(self._group) > 1 else []

    def _from_best(self, group: Sequence[Row]) -> list[Interval | None]:
        return self._qualities.method_differences(group, group[0]) if group else []

    def best_quality(self) -> Row:
        if not self._group:
            return self._nothing("best quality")
        best, *others = self._as_good()
        selection = Selection([best, *others], compared=self._group, undecided=bool(others or self._open))
        if others:
            reason = self._undecided(best, others)
        elif len(self._group) == 1:
            reason = f"{_bits(best)}; it is the only one"
        elif self._open:
            reason = f"{self.name(best)} is lowest with {_bits(best)}"
        else:
            reason = f"{_bits(best)}; {self._next_best(self._group[1])}"
        return self._picked("best quality", self._with(selection, self._open), [reason, self._still_open()])

    def best_value(self) -> Row:
        known = [row for row in self._as_good() if row["peak_memory_gb"] and row["train_seconds"]]
        measured = of_equal_batches(known)
        if not measured:
            return self._nothing("best value")
        # A single candidate needs no comparison of speeds.
        disturbed = [row for row in measured if not has_valid_speed(row)] if len(measured) > 1 else []
        tied = _cheapest([row for row in measured if has_valid_speed(row)] if disturbed else measured)
        undecided = len(tied) > 1 or bool(disturbed or self._open)
        selection = Selection([*tied, *disturbed], self._group, undecided, other_batches=len(known) - len(measured))
        reasons = [
            self._costs(tied, undecided) if tied else "",
            _measure_again(disturbed, self.name),
            self._still_open(),
        ]
        return self._picked("best value", self._with(selection, self._may_be_cheaper(tied)), reasons)

    def _costs(self, tied: Sequence[Row], undecided: bool) -> str:
        if len(tied) > 1:
            named = " and ".join(f"{self.name(row)} ({_price(row)})" for row in tied)
            return f"{named} cost the same within {TIME_NOISE:.0%}"
        if undecided:
            return f"{self.name(tied[0])} costs least so far with {_price(tied[0])}"
        return f"{_price(tied[0])}; {self._quality_note(tied[0])}"

    def _may_be_cheaper(self, tied: Sequence[Row]) -> list[Row]:
        """The rows at the edge that would be the best value if they had the quality of the best
        row."""
        known = [row for row in self._open if row["peak_memory_gb"] and row["train_seconds"]]
        same = [row for row in known if not tied or not other_costs(row, tied[0])]
        return [
            row
            for row in same
            if not tied or not has_valid_speed(row) or _cost(row) <= _cost(tied[0]) / (1 - TIME_NOISE)
        ]

    def least_memory(self) -> Row:
        known = [row for row in self._group if row["peak_memory_gb"]]
        measured = of_equal_batches(known)
        if not measured:
            return self._nothing("least memory")
        smallest = min(row["peak_memory_gb"] for row in measured)
        same = [row for row in measured if row["peak_memory_gb"] <= smallest / (1 - MEMORY_NOISE)]
        tied, edge = self._not_worse(same), at_edge(same) if len(same) > 1 else []
        selection = Selection(tied, [], undecided=len(tied) > 1 or bool(edge), other_batches=len(known) - len(measured))
        if selection.undecided:
            named = " and ".join(
                f"{self.name(row)} ({row['peak_memory_gb']:.2f} GB)" for row in same if edge or row in tied
            )
            which = f"which of them is better is not settled: {still_open(edge, self.name)}" if edge else ""
            return self._picked("least memory", selection, [f"{named} need the same within {MEMORY_NOISE:.0%}", which])
        return self._picked("least memory", *self._least(selection))

    def _not_worse(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that are not clearly worse than the first and best of them; a row at the edge
        is never clearly worse."""
        differences = self._qualities.method_differences(rows, rows[0])
        return [
            row
            for row, difference in zip(rows, differences, strict=True)
            if difference is None or not difference.above or at_edge([row])
        ]

    def _least(self, selection: Selection) -> tuple[Selection, list[str]]:
        """The selection and the reasons for its only row: its memory, and its quality against
        the best."""
        (row,) = selection.rows
        against = self._group if row is self._group[0] else [row, self._group[0]]
        reasons = [f"{row['peak_memory_gb']:.2f} GB at its peak", self._quality_note(row)]
        if len(against) > 1 and (edge := at_edge(against)):
            reasons.append(still_open(edge, self.name))
        return replace(selection, compared=against), reasons

    def name(self, row: Row) -> str:
        return f"{row['model']} × {row['method']}" if self._several else row["method"]

    def _as_good(self) -> list[Row]:
        """The rows that are not clearly worse than the best, best first. A row without an
        interval may be as good."""
        return [row for row in self._group if (difference := self._gaps[id(row)]) is None or not difference.above]

    def _with(self, selection: Selection, more: Sequence[Row]) -> Selection:
        """The selection with the rows of `more` that it lacks."""
        named = set(map(id, selection.rows))
        return replace(selection, rows=[*selection.rows, *(row for row in more if id(row) not in named)])

    def _still_open(self) -> str:
        return f"not settled: {still_open(self._open, self.name)}" if self._open else ""

    def _undecided(self, best: Row, others: Sequence[Row]) -> str:
        rivals = [f"{self.name(row)} {_signed(self._gaps[id(row)])}" for row in others[:3]]
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        lowest = f"{self.name(best)} is lowest with {_bits(best)}"
        return f"{lowest}, but {_records(best)} do not tell it apart from {', '.join(rivals)}{more}"

    def _next_best(self, row: Row) -> str:
        return f"{self.name(row)}, the next, has {_signed(self._gaps[id(row)])} on the same {_records(row)}"

    def _quality_note(self, row: Row) -> str:
        best, difference = self._group[0], self._gaps[id(row)]
        if row is best:
            return f"it has the lowest bits per byte {'so far' if self._open else 'too'}"
        if difference is None or not difference.above:
            return f"its quality is not told apart from that of {self.name(best)}: {_signed(difference)} bits per byte"
        so_far = " so far" if at_edge([row, best]) else ""
        return f"its quality is worse than that of {self.name(best)}{so_far}: {_signed(difference)} bits per byte"

    def _nothing(self, pick: str) -> Row:
        return self._row(pick, 0) | {"verdict": NOTHING, "reason": self._why_nothing()}

    def _row(self, pick: str, other_batches: int) -> Row:
        compared = len(self._group) - other_batches
        return PICKS.empty() | {"pick": pick, "compared": compared, "left_out": self._left_out(other_batches)}

    def _picked(self, pick: str, selection: Selection, reasons: Sequence[str]) -> Row:
        first, row = selection.rows[0], self._row(pick, selection.other_batches)
        row["candidates"] = ", ".join(map(self.name, selection.rows))
        row["eval_records"] = first["eval_records"]
        rates = trained_at(selection.compared, self.name)
        reason = "; ".join(filter(None, (*reasons, rates)))
        reason = f"{reason} ({self._qualities.basis(self._group)})"
        if selection.undecided:
            return row | {"verdict": UNCLEAR, "reason": reason}
        copied = {name: first[name] for name in PICKS.by_name if name in first and row[name] is None}
        verdict = CLEAR if row["compared"] > 1 else ONLY
        base = _against_base(first, rate_is_told=len(selection.compared) > 1)
        reason = "; ".join(filter(None, (reason, base, left_out_in_words(first))))
        return row | copied | {"verdict": verdict, "reason": reason}

    def _why_nothing(self) -> str:
        if self._group:
            return "memory or time was not measured"
        trained = [row for row in self._rows if row["status"] == "ok" and row["trainable_params"] != 0]
        excluded = sum(map(leaves_out_too_much, trained))
        note = f"; {excluded} with {TOO_MUCH}" if excluded else ""
        return f"no cell has trained, been evaluated and kept its values per record{note}"

    def _left_out(self, other_batches: int) -> str | None:
        """Why the other trained cells were not compared, with their numbers."""
        inside = {id(row) for row in self._group}
        why: dict[str, int] = {}
        for row in self._rows:
            if id(row) in inside or row["trainable_params"] == 0:
                continue
            because = "outside the profile" if is_outside(row) else row["status"]
            if because == "ok" and leaves_out_too_much(row):
                because = f"with {TOO_MUCH}"
            elif because == "ok":
                other = next(filter(None, (incomparable(row, one) for one in self._group)), None)
                because = f"measured with other {other}" if other else "without values per record"
            why[because] = why.get(because, 0) + 1
        if other_batches:
            why[f"measured with other {SAME_BATCH}"] = other_batches
        return ", ".join(f"{count} {because}" for because, count in why.items()) or None


def _cheapest(rows: Sequence[Row]) -> list[Row]:
    """The rows that cost least, within `TIME_NOISE`."""
    least = min(map(_cost, rows), default=0.0)
    return [row for row in rows if _cost(row) <= least / (1 - TIME_NOISE)]


def _measure_again(rows: Sequence[Row], name: Name) -> str:
    if not rows:
        return ""
    return f"{disturbed_in_words(rows, name)}: train {'it' if len(rows) == 1 else 'them'} on a quiet machine"


def _cost(row: Row) -> float:
    """The cost in GB × seconds: memory times the time that it is in use."""
    return row["peak_memory_gb"] * row["train_seconds"]


def _price(row: Row) -> str:
    dollars = f", ${row['train_usd']:.2f}" if row["train_usd"] is not None else ""
    beside = "" if has_valid_speed(row) else f" ({disturbed_in_words([row], lambda _: 'it')})"
    return f"{row['peak_memory_gb']:.2f} GB for {minutes(row['train_seconds'])}{dollars}{beside}"


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _bits(row: Row) -> str:
    return f"{row['eval_bits_per_byte']:.4f} bits per byte"


def _records(row: Row) -> str:
    return f"{row['eval_records'] or 0:.0f} records"


def _signed(difference: Interval | None) -> str:
    return (
        f"{difference.value:+.4f} (95 % interval {difference.low:+.4f} to {difference.high:+.4f})"
        if difference
        else "(too few records)"
    )


def _against_base(row: Row, *, rate_is_told: bool) -> str:
    low, high = row["delta_base_low"], row["delta_base_high"]
    if low is None or high is None or high < 0:
        return ""
    if low <= 0:
        return "it is not told apart from the untouched model"
    return f"it is worse than the untouched model{'' if rate_is_told else not_its_best(row)}"
