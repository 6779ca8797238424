"""Labels that say of an answer whether it is a good one: KTO's, thumbs, a reviewer's note."""

from collections.abc import Mapping
from typing import Any

from pipelines.shapes import tools
from pipelines.shapes.options import Unusable

_VOTES = (
    "feedback",
    "thumbs",
    "reaction",
    "vote",
)  # where a negative number is a thumbs down; as a rating it may mean "none given"
FIELDS = (
    "label", "kto_tag", "rating", "quality", "verdict", "is_correct", "is_good", "accepted", *_VOTES
)  # fmt: skip
OBJECTS = (
    "annotation",
    "annotations",
    "metadata",
    "meta",
    "review",
    "evaluation",
)  # objects that may hold such a label
_BAD = ("false", "undesirable", "bad", "thumbs_down", "thumbs down", "thumbsdown", "down", "dislike", "👎",
         "thumbs-down", "disliked", "downvote", "downvoted", "not helpful", "unhelpful", "싫어요")  # fmt: skip


def refuse_bad(value: Mapping[str, Any], what: str = "its") -> None:
    """Refuse a record, or a turn, that says of itself that it is a bad answer. A 0 says so only in a file whose labels are 0 and
    1: `binary_label`.

    Raises:
        Unusable: it says so. `what` names whose label that is.
    """
    inside = [held for name in OBJECTS if isinstance(held := tools.as_data(value.get(name)), dict)]
    for names in (value, *inside):
        for name in FIELDS:
            if (label := names.get(name)) is None:
                continue
            # "rejected" as a label of its own may be what a classifier learns; a reviewer's note of it is none
            told = isinstance(label, str) and label.strip().lower()
            voted_down = name in _VOTES and isinstance(label, (int, float)) and label < 0
            if label is False or voted_down or told in _BAD or (told == "rejected" and names is not value):
                raise Unusable("labelled_undesirable", f"{what} {name} is {label!r:.20}")


def binary_label(value: Any, columns: Mapping[str, str] | None = None) -> int | None:
    """A label given as a number: 0, 1, or 2 for any other; None where the record has none. A file whose labels are 0 and 1 alone
    marks answers as bad and good by them; one with others numbers its topics."""
    if not isinstance(value, dict):
        return None
    if not columns and "label" not in value and "kto_tag" not in value:
        return None
    names = (
        [columns["label"]] if columns and "label" in columns else () if columns else ("label", "kto_tag")
    )  # ratings are no labels
    label = next((value[name] for name in names if value.get(name) is not None), None)
    if isinstance(label, bool) or not isinstance(label, (int, float, str)):
        return None
    try:
        number = float(label)
    except ValueError:
        return None
    return int(number) if number in (0, 1) else 2
