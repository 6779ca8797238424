"""Whether two rows differ by their methods, or only by learning rates that were not searched for
each method."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

Row = dict[str, Any]
Rates = Literal["tuned", "shared", "edge"]
# Names a row in a sentence.
Name = Callable[[Row], str]
# Values of learning_rate_source that stand for a search.
SEARCHED = ("search", "tune")
# Levels of experiments.yaml that set the rate of a single method.
OWN = ("method", "pair")
MAX_NAMES = 3
WHAT_IT_MEANS: dict[Rates, str] = {
    "shared": "rates shared: the learning rate was given, not searched for, so that a method may look worse than it is; "
    "learning_rate: auto in experiments.yaml searches one for each",
    "edge": "rates edge: the best learning rate is the smallest or largest of those tried, so that a better one may lie beyond; "
    "widen its list in experiments.yaml, or set learning_rate: auto",
}
# Weakest first: a row of several seeds takes the weakest of its seeds.
WEAKNESS: tuple[Rates | None, ...] = ("edge", "shared", "tuned", None)


def rates_of(row: Row) -> Rates | None:
    """How the row's learning rate was chosen; None if nothing was trained.

    `tuned`: the best of several rates, with worse ones on both sides. `edge`: the smallest or
    largest rate tried, so a better one may lie beyond. `shared`: a configured rate, the same for
    every method of its kind unless experiments.yaml says otherwise. A search over a single rate
    chooses nothing, so its rate counts as shared.
    """
    if row["trainable_params"] == 0 or row["learning_rate"] is None:
        return None
    if row["learning_rate_at_edge"]:
        return "edge"
    source = row["learning_rate_source"]
    searched = source == "tune" or (source in SEARCHED and row["learning_rate_at_edge"] is not None)
    return "tuned" if searched else "shared"


def weakest(seeds: Sequence[Row]) -> Row:
    """The seed whose rate was chosen with the least care; the seeds of a row may have different
    rates."""
    return min(seeds, key=lambda seed: WEAKNESS.index(rates_of(seed)))


def at_edge(rows: Sequence[Row]) -> list[Row]:
    """The rows whose learning rate is the smallest or largest of those tried. A better rate may
    still make any of them win."""
    return [row for row in rows if rates_of(row) == "edge"]


def trained_at(rows: Sequence[Row], name: Name) -> str:
    """A remark for a comparison of `rows`, such as "both trained at one shared learning rate".

    It is empty if all rates were searched for, or if fewer than two rows were trained.
    """
    trained = [row for row in rows if rates_of(row)]
    shared = [row for row in trained if rates_of(row) == "shared"]
    if not shared or len(trained) < 2:
        return ""
    everybody = "both" if len(trained) == 2 else "all"
    who = everybody if len(shared) == len(trained) else names(shared, name)
    return f"{who} trained at {_shared(shared, name)}"


def _shared(rows: Sequence[Row], name: Name) -> str:
    """Describe the rates: "one shared learning rate", or what several rates have in common."""
    own = [row for row in rows if row["learning_rate_source"] in OWN]
    kinds: dict[bool, set[float]] = {}
    for row in rows:
        if row not in own:
            kinds.setdefault(_is_adapter(row), set()).add(row["learning_rate"])
    if len({row["learning_rate"] for row in rows}) == 1:
        return "one shared learning rate"
    if not kinds:
        return "learning rates that experiments.yaml gives each method"
    if any(len(rates) > 1 for rates in kinds.values()):
        return "shared learning rates"
    for_each = " for each kind of method" if len(kinds) > 1 else ""
    return f"one shared learning rate{for_each}{f', or one of its own ({names(own, name)})' if own else ''}"


def _is_adapter(row: Row) -> bool:
    return row["rank"] is not None or row["peft"] is not None


def still_open(rows: Sequence[Row], name: Name) -> str:
    """Why the comparison with `rows`, whose rates lie at the edge of those tried, is open, and
    what to do about it."""
    if len(rows) == 1:
        return (
            f"the learning rate of {name(rows[0])}, {rows[0]['learning_rate']:g}, lies at the edge of those tried: widen its list, "
            "or set learning_rate: auto"
        )
    methods = names(rows, lambda row: f"{name(row)} ({row['learning_rate']:g})")
    return (
        f"the learning rates of {methods} lie at the edge of those tried: widen their lists, or set learning_rate: auto"
    )


def not_its_best(row: Row) -> str:
    """A remark on a row that did badly, such as " at one shared learning rate"; empty if its
    rate is tuned."""
    match rates_of(row):
        case "shared":
            return " at one shared learning rate"
        case "edge":
            return f" at {row['learning_rate']:g}, a learning rate at the edge of those tried"
        case _:
            return ""


def notes(rows: Sequence[Row]) -> list[str]:
    """The lines under a table: one for each way of choosing a rate that needs an explanation."""
    kinds = {row.get("rates") for row in rows if row["status"] == "ok"}
    return [meaning for rates, meaning in WHAT_IT_MEANS.items() if rates in kinds]


def method_name(row: Row) -> str:
    return row["method"]


def names(rows: Sequence[Row], name: Name) -> str:
    """`a, b and c`; of more than three rows, the first three names and the number of the others."""
    parts = [name(row) for row in rows[:MAX_NAMES]]
    parts += [f"{len(rows) - MAX_NAMES} more"] if len(rows) > MAX_NAMES else []
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
