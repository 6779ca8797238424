"""`featherweight decide`: the cell to use under limits of memory, time and lost quality, or the
cell to run next to find out."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipelines.compare.left_out import TOO_MUCH, leaves_out_too_much, left_out_in_words
from pipelines.compare.outside import considered
from pipelines.compare.quality import Interval, Qualities
from pipelines.compare.ranking import SAME_BATCH, comparable_rows, has_valid_speed, of_equal_batches, stands
from pipelines.compare.rates import rates_of
from pipelines.compare.seeds import MAX_RUNS, Sources
from pipelines.compare.table import Comparison

Row = dict[str, Any]
Verdict = Literal["use", "run next", "nothing fits"]
# If nothing fits, this many cells are listed with the limits they break.
MAX_FAILINGS = 5
# Statuses that another run is not expected to change.
FINAL_STATUSES = ("out_of_memory", "diverged", "failed", "unavailable")
RUN_SECONDS = (
    "load_seconds", "quantize_seconds", "search_seconds", "train_seconds", "other_seconds", "evaluation_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """The limits of a decision; None means no limit.

    `memory_gb`: peak memory of training. `minutes`: time to train. `max_loss`: bits per byte above
    the best cell.
    """

    memory_gb: float | None = None
    minutes: float | None = None
    max_loss: float | None = None


@dataclass(frozen=True)
class Decision:
    """A decision. `loss` is the distance of `model` × `method` to the best cell; `reasons` are
    sentences, the main one first."""

    verdict: Verdict
    model: str | None
    method: str | None
    loss: Interval | None
    reasons: tuple[str, ...]


def decide(comparison: Comparison, limits: Limits, also: Collection[tuple[str, str]] = ()) -> Decision:
    """Choose the cell to use: the smallest peak memory × training time among the cells that surely
    stay within all limits.

    The cells are compared with equal micro-batches. A time disturbed by other programs only counts
    for the limit of time.

    Loss is bits per byte above the best comparable cell (the lowest measured one, full or not), on
    the same records. It belongs to the method: for cells with one training run, the spread between
    runs widens the interval, if it is known. A cell is surely within `max_loss` if its whole 95 %
    interval is, and surely not if the whole interval lies above. Otherwise the records and runs
    cannot tell. No cell is sure while a cell that may be the best has its learning rate at the edge
    of those tried.

    Only cells that are current, apart from the code, can be used. If there are none, the cell to
    run next is, in this order:
    - a cell whose learning rate lies at the edge;
    - a cell that seems to be within the limits, but has too few records or runs;
    - an unmeasured cell that is predicted to fit; of several the largest, since more trained
      weights lose least;
    - a cell that may still be within `max_loss`, although it does not look like it.

    A cell that left out too many records is never used; the reasons name it. Cells outside the
    profile count only if `also` names them, as (model, method).

    Raises:
        UsageError: a cell of `also` has no row.
    """
    comparison = replace(comparison, rows=considered(comparison.rows, also))
    decision = _decide(comparison, limits)
    trained = [row for row in comparison.rows if row["status"] == "ok" and row["method"] != comparison.base]
    excluded = [row for row in trained if leaves_out_too_much(row)]
    notes = [f"not used: {' × '.join(_cell(row))}, with {TOO_MUCH}: {left_out_in_words(row)}" for row in excluded]
    return replace(decision, reasons=(*decision.reasons, *notes))


def _decide(comparison: Comparison, limits: Limits) -> Decision:
    ranked = _Ranked.of(comparison)
    sure, likely, unsure = ranked.within(limits)
    candidates = sure or likely
    if limits.max_loss is not None and candidates and (edge := ranked.at_edge(candidates)):
        return _widen_rates(edge)
    if sure:
        return _use(ranked, sure, limits)
    if likely:
        return ranked.more(likely, limits)
    trained = [row for row in comparison.rows if row["method"] != comparison.base]
    if to_run := _to_run(trained, limits):
        return _run(to_run, limits)
    if unsure:
        return ranked.more(unsure, limits)
    return Decision("nothing fits", None, None, None, tuple(ranked.failings(trained, limits)))


def _use(ranked: "_Ranked", sure: Sequence[Row], limits: Limits) -> Decision:
    equal = of_equal_batches(sure)
    timed = [row for row in equal if has_valid_speed(row)]
    if timed:
        chosen = min(timed, key=lambda row: (row["peak_memory_gb"] or 0) * (row["train_seconds"] or 0))
    else:
        chosen = min(equal, key=lambda row: row["peak_memory_gb"] or 0)
    reasons = [
        *ranked.numbers(chosen, limits),
        *_with_other_batches(chosen, len(sure) - len(equal)),
        *_disturbed(len(equal) - len(timed), only=not timed),
    ]
    return Decision("use", *_cell(chosen), ranked.loss(chosen), tuple(reasons))


@dataclass(frozen=True)
class _Ranked:
    """The comparable rows, best first. `base` is the row of each untouched model."""

    rows: list[Row]
    qualities: Qualities
    base: dict[str, Row]

    @classmethod
    def of(cls, comparison: Comparison) -> "_Ranked":
        rows = sorted(comparable_rows(comparison.rows, comparison.qualities), key=lambda row: row["eval_bits_per_byte"])
        base = {row["model"]: row for row in comparison.rows if row["method"] == comparison.base}
        return cls(rows, comparison.qualities, base)

    def loss(self, row: Row) -> Interval | None:
        best = self.rows[0]
        return Interval(0.0, 0.0, 0.0) if row is best else self.qualities.method_difference(row, best)

    def within(self, limits: Limits) -> tuple[list[Row], list[Row], list[Row]]:
        """The rows within the limits of memory and time, as three lists.

        The first has the rows whose loss is surely within `max_loss`, the third those that are
        unsure, and the second the unsure rows that seem to be within.
        """
        inside = [row for row in self.rows if stands(row) and not _broken_limits(row, limits)]
        sure = [row for row in inside if self.keeps(row, limits) is True]
        unsure = [row for row in inside if self.keeps(row, limits) is None]
        likely = [row for row in unsure if (loss := self.loss(row)) and loss.value <= (limits.max_loss or 0)]
        return sure, likely, unsure

    def keeps(self, row: Row, limits: Limits) -> bool | None:
        """Whether the row's loss is within the limit; None if its records cannot tell."""
        if limits.max_loss is None:
            return True
        loss = self.loss(row)
        if loss is None or loss.low <= limits.max_loss < loss.high:
            return None
        return loss.high <= limits.max_loss

    def at_edge(self, chosen: Sequence[Row]) -> Row | None:
        """The first row with a learning rate at the edge, among `chosen` and the rows that may
        be the best."""
        matter = [row for row in self.rows if row in chosen or (loss := self.loss(row)) is None or not loss.above]
        return next((row for row in matter if rates_of(row) == "edge"), None)

    def more(self, rows: Sequence[Row], limits: Limits) -> Decision:
        """Advise more records or more training runs, whichever would settle the loss of the best
        of `rows`."""
        row = min(rows, key=lambda one: loss.value if (loss := self.loss(one)) else float("inf"))
        loss, best = self.loss(row), self.rows[0]
        if loss is None:
            reason = "it was measured on too few records to have an interval"
        else:
            reason = f"it is within the other limits, but its loss is {_loss_text(loss)}: not sure against {limits.max_loss:g}"
        reason = f"{reason} ({self.basis(row)})"
        sources = self.qualities.sources(row, best)
        pair = [row] if row is best else [row, best]
        return Decision("run next", *_cell(row), loss, (reason, *_more(pair, sources, loss, limits)))

    def basis(self, row: Row) -> str:
        """The basis of the row's loss: training runs and learning rates."""
        pair = [row] if row is self.rows[0] else [row, self.rows[0]]
        basis = self.qualities.basis(pair)
        shared = any(rates_of(one) == "shared" for one in pair)
        return f"{basis}, at one shared learning rate" if shared and len(self.rows) > 1 else basis

    def numbers(self, row: Row, limits: Limits) -> list[str]:
        best, loss = self.rows[0], self.loss(row)
        if row is best:
            quality = f"{row['eval_bits_per_byte']:.4f} bits per byte, the best of {len(self.rows)} comparable cells"
        else:
            quality = (
                f"{row['eval_bits_per_byte']:.4f} bits per byte, {_loss_text(loss)} to the best ({best['method']})"
            )
        lines = [f"{quality}; {self.basis(row)}"]
        if row["peak_memory_gb"] is not None:
            lines.append(f"{row['peak_memory_gb']:.2f} GB at its peak{_of(limits.memory_gb)}")
        if row["train_seconds"] is not None:
            lines.append(f"{row['train_seconds'] / 60:.1f} minutes{_of(limits.minutes)}")
        if row["delta_base_high"] is not None and not self._better_than_base(row):
            lines.append("it is not told apart from the untouched model, or worse: tuning may not be worth it")
        if left_out := left_out_in_words(row):
            lines.append(left_out)
        if row["is_stale"]:
            lines.append(
                f"measured before an upgrade changed the code: `featherweight train {' '.join(_cell(row))}` anew to be sure"
            )
        return lines

    def _better_than_base(self, row: Row) -> bool:
        base = self.base.get(row["model"])
        difference = self.qualities.method_difference(row, base) if base else None
        return difference is not None and difference.high < 0

    def failings(self, rows: Sequence[Row], limits: Limits) -> list[str]:
        """The reasons against each cell; measured cells come first, those with the least loss in
        front."""
        places = {id(row): place for place, row in enumerate(self.rows)}
        lines = []
        for row in sorted(rows, key=lambda row: places.get(id(row), len(rows)))[:MAX_FAILINGS]:
            why = _broken_limits(row, limits) or ([] if row["status"] == "ok" else [row["status"]])
            if row["status"] == "ok" and leaves_out_too_much(row):
                why.append(TOO_MUCH)
            if id(row) in places and self.keeps(row, limits) is False:
                why.append(f"it loses {_loss_text(self.loss(row))}")
            lines.append(f"{row['model']} × {row['method']}: {', '.join(why) or 'it cannot be compared'}")
        return lines


def _broken_limits(row: Row, limits: Limits) -> list[str]:
    """The limits of memory and time that the row breaks, or for which it lacks a measurement."""
    breaches = []
    for limit, value, unit in (
        (limits.memory_gb, row["peak_memory_gb"], "GB"),
        (limits.minutes, None if row["train_seconds"] is None else row["train_seconds"] / 60, "minutes"),
    ):
        if limit is not None and value is None:
            breaches.append(f"{unit} not measured")
        elif limit is not None and value is not None and value > limit:
            breaches.append(f"{value:.2f} {unit}{_of(limit)}")
    return breaches


def _to_run(rows: Sequence[Row], limits: Limits) -> list[Row]:
    """The cells without a current result that may fit: the largest prediction first, those
    without one last."""
    candidates = [row for row in rows if _can_change(row, limits) and _may_fit(row, limits)]
    return sorted(candidates, key=lambda row: -(_memory_gb(row) or 0))


def _can_change(row: Row, limits: Limits) -> bool:
    """Whether another run of the cell may have a different outcome."""
    done = row["status"] == "ok" and stands(row) and not _is_only_slowed(row, limits)
    stopped = row["status"] == "timed_out" and limits.minutes is not None
    return not (done or stopped or row["status"] in FINAL_STATUSES)


def _may_fit(row: Row, limits: Limits) -> bool:
    if limits.memory_gb is not None and (_memory_gb(row) or 0) > limits.memory_gb:
        return False
    seconds = row["train_seconds"] if row["status"] == "ok" else None
    return seconds is None or limits.minutes is None or seconds / 60 <= limits.minutes or _is_only_slowed(row, limits)


def _is_only_slowed(row: Row, limits: Limits) -> bool:
    """Whether the row exceeds the limit of time as measured, but may keep it on a quiet machine."""
    seconds = row["train_seconds"] if row["status"] == "ok" and not has_valid_speed(row) else None
    return seconds is not None and limits.minutes is not None and seconds / 60 > limits.minutes


def _memory_gb(row: Row) -> float | None:
    """The peak memory in GB: measured if the cell was trained, else predicted, else None."""
    return row["peak_memory_gb"] if row["status"] == "ok" and row["peak_memory_gb"] else row["estimated_memory_gb"]


def _run(rows: Sequence[Row], limits: Limits) -> Decision:
    row = rows[0]
    model, method = _cell(row)
    state = f"{row['status']}, measured before {row['stale_because']} changed" if row["is_stale"] else row["status"]
    how = "measured" if row["status"] == "ok" else "predicted"
    memory = (
        f"{_memory_gb(row):.2f} GB {how}{_of(limits.memory_gb)}" if _memory_gb(row) else "no prediction of its memory"
    )
    reason = f"no measured cell is sure to stay within the limits; this one is {state}, {memory}"
    force = ""
    if _is_only_slowed(row, limits):
        reason += f", and took {row['train_seconds'] / 60:.1f} minutes beside other programs"
        force = "" if row["is_stale"] else " --force"
    if len(rows) > 1:
        reason += f" (the largest of {len(rows)} that may fit)"
    under_way = row["status"] in ("queued", "running")
    command = (
        f"`featherweight train {model} {method}{force}`, `featherweight evaluate {model} {method}`, then decide again"
    )
    return Decision("run next", model, method, None, (reason, "it is under way: wait for it" if under_way else command))


def _widen_rates(row: Row) -> Decision:
    model, method = _cell(row)
    reason = (
        f"its learning rate, {row['learning_rate']:g}, lies at the edge of those tried: a better one may lie beyond, "
        "so that no cell is surely within max_loss"
    )
    advice = (
        f"move its list of learning rates in experiments.yaml, or take learning_rate: auto; then `featherweight train {model} "
        f"{method}`, `featherweight evaluate {model} {method}`, and decide again"
    )
    return Decision("run next", model, method, None, (reason, advice))


def _more(pair: Sequence[Row], sources: Sources | None, loss: Interval | None, limits: Limits) -> list[str]:
    """How to settle a loss: more training runs of `pair` (the row and the best) if these do
    more, else more records."""
    margin = (limits.max_loss or 0.0) - loss.value if loss else 0.0
    if loss is None or sources is None or margin <= 0:
        return [_more_records(pair[0], None)]
    records = sources.records_needed(loss.high - loss.value, margin)
    runs = sources.runs_needed(margin)
    if runs and (records is None or sources.runs > sources.records):
        return [_more_runs(pair, runs, "the training runs differ more than the choice of records does")]
    if records is None:
        return [_more_records(pair[0], None), _more_runs(pair, MAX_RUNS, "more records alone would not settle it")]
    if sources.of_one_run is None:
        return [
            _more_records(pair[0], records),
            _more_runs(pair, 3, "how far its training runs lie apart is not known"),
        ]
    return [_more_records(pair[0], records)]


def _more_records(row: Row, needed: int | None) -> str:
    model, method = _cell(row)
    change = f" from {row['eval_records']} to about {needed}" if needed and row["eval_records"] else ""
    return f"raise max_eval_examples{change}, clean, and run `featherweight evaluate {model} {method}`"


def _more_runs(pair: Sequence[Row], runs: int, because: str) -> str:
    """Advice to train each of `pair` this many times in all, with the minutes that it takes."""
    missing = [max(0, runs - (row["seeds_ok"] or 0)) for row in pair]
    seconds = sum(count * (row[name] or 0.0) for count, row in zip(missing, pair, strict=True) for name in RUN_SECONDS)
    names = " and ".join(row["method"] for row in pair)
    return (
        f"{because}: {runs} runs of {names} would tell, about {max(1, round(seconds / 60))} more minutes "
        f"({runs} entries under `seeds` in the profile; its other cells then need as many)"
    )


def _with_other_batches(row: Row, others: int) -> list[str]:
    if not others:
        return []
    more = "1 more cell is" if others == 1 else f"{others} more cells are"
    return [
        f"{more} within the limits, but with other {SAME_BATCH} than {row[SAME_BATCH]}, so that costs are not compared"
    ]


def _disturbed(others: int, *, only: bool) -> list[str]:
    if only:
        return ["other programs ran beside it while it was timed, so that memory alone decides"]
    if not others:
        return []
    more = "1 more cell is" if others == 1 else f"{others} more cells are"
    return [f"{more} within the limits, but timed beside other programs, so that costs are not compared"]


def _cell(row: Row) -> tuple[str, str]:
    return row["model"], row["method"]


def _loss_text(loss: Interval | None) -> str:
    return f"{loss.value:+.4f} (95 % interval {loss.low:+.4f} to {loss.high:+.4f})" if loss else "an unknown loss"


def _of(limit: float | None) -> str:
    return "" if limit is None else f" of {limit:g}"


def in_words(decision: Decision) -> list[str]:
    first = {"use": "use", "run next": "run next:", "nothing fits": "no configured cell stays within these limits"}
    named = f" {decision.model} × {decision.method}" if decision.model else ""
    return [f"{first[decision.verdict]}{named}", *(f"  {reason}" for reason in decision.reasons)]
