"""Labels that say of an answer whether it is a good one: KTO's, thumbs, a reviewer's note."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pipelines.records.shapes import tools
from pipelines.records.shapes.options import Unusable

OBJECTS = frozenset(
    (
        "annotation",
        "annotations",
        "metadata",
        "meta",
        "review",
        "evaluation",
        "feedback",
        "user_feedback",
        "human_feedback",
    )
)  # objects that may hold such a label
# whose word it is, then what kind of word; then questions whose answer is yes or no
_WORD = re.compile(
    r"(?:(?:user|human|customer|reviewer|annotator|answer|response|overall)_)?(?:feedback|rating|quality|verdict|vote|reaction|"
    r"thumbs?|evaluation|judge?ment|preference|satisfaction|review|review_result|label|kto_tag)|평가|만족도?|피드백|선호도?"
)
_YES_OR_NO = re.compile(
    r"(?:is|was)_(?:correct|good|helpful|safe|desirable|accepted|liked?|acceptable|useful|approved|preferred|chosen|valid|satisfied)|"
    r"desirable|helpful|liked|thumbs_up|accepted|acceptable|approved|satisfied|correct|chosen"
)
_NUMBERED = re.compile(r"(?:is|was)_\w+|desirable")  # where a 0 is a no; as `helpful` it may count votes
_VOTES = (
    "feedback",
    "user_feedback",
    "human_feedback",
    "thumbs",
    "reaction",
    "vote",
)  # a negative number is a thumbs down there
_BAD = frozenset(
    (
        "false", "undesirable", "bad", "thumbsdown", "down", "dislike", "👎", "disliked", "downvote", "downvoted",
        "nothelpful", "unhelpful", "싫어요", "나쁨", "불만족", "dsat",
    )
)  # fmt: skip
# of a record's own `label` these may be what a classifier learns
_BAD_OF_ANSWERS = _BAD | {"negative", "reject", "rejected", "poor", "wrong", "incorrect"}


@lru_cache(maxsize=4096)
def judges(name: str) -> bool:
    """Whether a field of that name may say of an answer that it is a bad one."""
    return bool(_WORD.fullmatch(name) or _YES_OR_NO.fullmatch(name))


def names_in(value: Mapping[Any, Any]) -> frozenset[str]:
    """The record's fields that hold such a label."""
    return frozenset(name for name in value if isinstance(name, str) and judges(name))


def refuse_bad(value: Mapping[str, Any], owner: str = "its") -> None:
    """Refuse a record, or a turn, that says of itself that it is a bad answer. A 0 says so only in a file whose labels are 0 and
    1: `binary_label`.

    Raises:
        Unusable: it says so. `what` names whose label that is.
    """
    objects = [held for name in OBJECTS if isinstance(held := tools.as_data(value.get(name)), dict)]
    for names in (value, *objects):
        for name in names_in(names):
            if _is_bad(name, names[name], own=names is value):
                raise Unusable("labelled_undesirable", f"{owner} {name} is {names[name]!r:.20}")


def _is_bad(name: str, label: Any, *, own: bool) -> bool:
    if isinstance(label, bool):
        return not label
    if isinstance(label, (int, float)):
        return (label < 0 and name in _VOTES) or (label == 0 and bool(_NUMBERED.fullmatch(name)))
    if not isinstance(label, str):
        return False
    words = _BAD if own and name == "label" else _BAD_OF_ANSWERS
    return re.sub(r"[\s_-]+", "", label.lower()) in words


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
