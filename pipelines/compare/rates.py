"""Whether two rows differ by their methods, or only by learning rates that nobody chose for them."""

from typing import Any, Literal

Row = dict[str, Any]
Rates = Literal["tuned", "shared", "edge"]
SEARCHED = ("search", "tune")  # values of learning_rate_source


def rates_of(row: Row) -> Rates | None:
    """How the row's learning rate was chosen; None where nothing was trained.

    `tuned`: the best of several, with worse ones on both sides; `edge`: the smallest or largest of those tried, so that a better
    one may lie beyond; `shared`: given, the same for every method of its kind unless experiments.yaml says otherwise.
    """
    if row["trainable_params"] == 0 or row["learning_rate"] is None:
        return None
    if row["learning_rate_at_edge"]:
        return "edge"
    return "tuned" if row["learning_rate_source"] in SEARCHED else "shared"
