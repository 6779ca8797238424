"""Whether two rows differ by their methods, or only by learning rates that nobody chose for them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

Row = dict[str, Any]
Rates = Literal["tuned", "shared", "edge"]
Name = Callable[[Row], str]  # what a row is called in a sentence
SEARCHED = ("search", "tune")  # values of learning_rate_source
OWN = ("method", "pair")  # levels of experiments.yaml that name the rate of one method alone
MAX_NAMES = 3
WHAT_IT_MEANS: dict[Rates, str] = {
    "shared": "rates shared: the learning rate was given, not searched for, so that a method may look worse than it is; "
    "learning_rate: auto in experiments.yaml searches one for each",
    "edge": "rates edge: the best learning rate is the smallest or largest of those tried, so that a better one may lie beyond; "
    "widen its list in experiments.yaml, or set learning_rate: auto",
}
# the weakest first: what a row of several seeds is called by
WEAKNESS: tuple[Rates | None, ...] = ("edge", "shared", "tuned", None)


def rates_of(row: Row) -> Rates | None:
    """How the row's learning rate was chosen; None where nothing was trained.

    `tuned`: the best of several, with worse ones on both sides; `edge`: the smallest or largest of those tried, so that a better
    one may lie beyond; `shared`: given, the same for every method of its kind unless experiments.yaml says otherwise. A search
    that had one rate to try chose nothing: its rate counts as given.
    """
    if row["trainable_params"] == 0 or row["learning_rate"] is None:
        return None
    if row["learning_rate_at_edge"]:
        return "edge"
    source = row["learning_rate_source"]
    searched = source == "tune" or (source in SEARCHED and row["learning_rate_at_edge"] is not None)
    return "tuned" if searched else "shared"


def weakest(seeds: Sequence[Row]) -> Row:
    """Of a row's seeds, each of which may have another rate, the one whose rate was chosen with the least care."""
    return min(seeds, key=lambda seed: WEAKNESS.index(rates_of(seed)))


def at_edge(rows: Sequence[Row]) -> list[Row]:
    """The rows whose learning rate is the smallest or largest of those tried: none of them has lost to another row yet."""
    return [row for row in rows if rates_of(row) == "edge"]


def trained_at(rows: Sequence[Row], name: Name) -> str:
    """What to add to a comparison of `rows`: "both trained at one shared learning rate"; nothing where all rates were searched for,
    or where there are not two trained rows."""
    trained = [row for row in rows if rates_of(row)]
    shared = [row for row in trained if rates_of(row) == "shared"]
    if not shared or len(trained) < 2:
        return ""
    everybody = "both" if len(trained) == 2 else "all"
    who = everybody if len(shared) == len(trained) else names(shared, name)
    return f"{who} trained at {_shared(shared, name)}"


def _shared(rows: Sequence[Row], name: Name) -> str:
    """ "one shared learning rate", where it is one; else what the rates have in common."""
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
    """Why nothing has won against `rows`, which lie at the edge of what was tried, and what to do."""
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
    """What to add where a row did badly: " at one shared learning rate"; nothing where its rate is tuned."""
    match rates_of(row):
        case "shared":
            return " at one shared learning rate"
        case "edge":
            return f" at {row['learning_rate']:g}, a learning rate at the edge of those tried"
        case _:
            return ""


def notes(rows: Sequence[Row]) -> list[str]:
    """What stands under a table: a line for each way of choosing a rate that the reader has to know of."""
    kinds = {row.get("rates") for row in rows if row["status"] == "ok"}
    return [meaning for rates, meaning in WHAT_IT_MEANS.items() if rates in kinds]


def method_name(row: Row) -> str:
    return row["method"]


def names(rows: Sequence[Row], name: Name) -> str:
    """`a, b and c`; of more than three the first three and how many more."""
    parts = [name(row) for row in rows[:MAX_NAMES]]
    parts += [f"{len(rows) - MAX_NAMES} more"] if len(rows) > MAX_NAMES else []
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
