"""The report's part on answers compared with the untouched model's, by the judge and by people's
votes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from pipelines.compare import plots
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.columns.quality import SHARE
from pipelines.compare.figures import Figure
from pipelines.compare.pieces import Part
from pipelines.lake.schema import Column, real, text

Row = dict[str, Any]
JUDGE, PEOPLE = "the judge's verdicts", "people's votes"
RATES = {JUDGE: "win_rate_vs_base", PEOPLE: "preference_win_rate"}
NUMBERS = (
    text("by", "Who compared the answers: the judge, or people who voted."),
    *COMPARISON.pick("model", "method"),
    real(
        "rate",
        "Share of the questions on which the cell's answer is preferred, a tie as half.",
        SHARE,
        2,
        heading="win rate",
    ),
    real("low", "Lower end of the 95 % interval of the win rate.", SHARE, 2, heading="from"),
    real("high", "Upper end of the 95 % interval of the win rate.", SHARE, 2, heading="to"),
)
HEADINGS = {
    "win_rate_vs_base": "win rate",
    "pair_wins": "wins",
    "pair_ties": "ties",
    "pair_losses": "losses",
    "pair_agreement": "agreement",
    "pair_judge": "judge",
}
VOTE_HEADINGS = {"preference_win_rate": "votes won", "preference_votes": "votes"}
SAYS = (
    "Each dot is the share of questions on which the cell's answer is preferred to the untouched model's, with its 95 % interval; "
    "a tie counts half. On the dotted line both are as good: an interval that crosses it tells nothing apart."
)
# Below this number of pairs the report says that they are few.
FEW_PAIRS = 30
# Agreement below this share is little better than a coin, which agrees with itself on half of the
# pairs.
COIN_AGREEMENT = 0.6


def section(rows: Sequence[Row], _tables: Mapping[str, pa.Table] | None = None) -> Markup | None:
    """The part; None if no answers were compared with the untouched model's and no note says
    why."""
    numbers = long_form(rows)
    notes = _notes(rows)
    if not numbers and not notes:
        return None
    says = SAYS + plots.left_out_of_panels(numbers, "by")
    svg = plots.win_rates(numbers)
    shown = [row for row in rows if any(row.get(name) is not None for name in RATES.values())]
    voted = any(row.get(RATES[PEOPLE]) is not None for row in rows)
    return Part(
        "pairs",
        "Win rate against the untouched model",
        notes=notes,
        figures=[Figure("pairs", "Whose answer is preferred", says, Markup(svg.decode()), NUMBERS, numbers)]
        if svg
        else [],
        caption="Answers to the same questions, side by side with the untouched model's",
        columns=(*COMPARISON.pick("model", "method"), *_columns(HEADINGS | (VOTE_HEADINGS if voted else {}))),
        rows=[{**row, **{name: _in_words(row, name) for name in RATES.values()}} for row in shown],
    ).html()


def _columns(headings: Mapping[str, str]) -> list[Column]:
    """The columns under short headings. A win rate is a text that includes its interval."""
    columns = [(COMPARISON[name], heading) for name, heading in headings.items()]
    return [
        text(one.name, one.meaning, heading=heading) if one.name in RATES.values() else replace(one, heading=heading)
        for one, heading in columns
    ]


def _in_words(row: Row, name: str) -> str | None:
    """`58 % (32 to 81)`."""
    rate, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    interval = "" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f})"
    return None if rate is None else f"{100 * rate:.0f} %{interval}"


def long_form(rows: Sequence[Row]) -> list[Row]:
    """A row for each win rate of each row of the comparison."""
    return [
        {
            "by": by,
            "model": row["model"],
            "method": row["method"],
            "rate": row[name],
            "low": row.get(f"{name}_low"),
            "high": row.get(f"{name}_high"),
        }
        for by, name in RATES.items()
        for row in rows
        if row.get(name) is not None
    ]


def _notes(rows: Sequence[Row]) -> list[str]:
    """Notes on the limits of the figures; a note that holds for several rows appears once."""
    judged = [row for row in rows if row.get("pair_wins") is not None]
    unsure = [row for row in judged if row["pair_agreement"] is not None and row["pair_agreement"] < COIN_AGREEMENT]
    notes = []
    if unsure:
        agreed = ", ".join(f"{100 * row['pair_agreement']:.0f} % ({_name(row)})" for row in unsure)
        notes.append(
            f"The judge said the same in both orders of only {agreed} of the pairs. That is little better than a coin; "
            "the other pairs count as ties."
        )
    fewest = min((row["pair_wins"] + row["pair_ties"] + row["pair_losses"] for row in judged), default=FEW_PAIRS)
    if fewest < FEW_PAIRS:
        more = "with more answers (evaluation.answers in experiments.yaml) the intervals become narrower"
        notes.append(f"Only {fewest} pairs: {more}.")
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for why in filter(None, (row.get("pair_note"), row.get("preference_note"))):
            reasons.setdefault(why, []).append(_name(row))
    return [*notes, *(f"{', '.join(names)}: {why}." for why, names in reasons.items())]


def _name(row: Row) -> str:
    return f"{row['model']} × {row['method']}"
