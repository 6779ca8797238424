"""Labels that rate an answer as good or bad: KTO's, thumbs, a reviewer's note."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pipelines.records.shapes import tools
from pipelines.records.shapes.options import Unusable

# Fields with objects that may contain such a label.
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
)
# The author of a rating and its kind; then names that are yes-or-no questions.
_WORD = re.compile(
    r"(?:(?:user|human|customer|reviewer|annotator|answer|response|overall)_)?(?:feedback|rating|quality|verdict|vote|reaction|"
    r"thumbs?|evaluation|judge?ment|preference|satisfaction|review|review_result|label|kto_tag)|평가|만족도?|피드백|선호도?"
)
_YES_OR_NO = re.compile(
    r"(?:is|was)_(?:correct|good|helpful|safe|desirable|accepted|liked?|acceptable|useful|approved|preferred|chosen|valid|satisfied)|"
    r"desirable|helpful|liked|thumbs_up|accepted|acceptable|approved|satisfied|correct|chosen"
)
# Names for which 0 means no. A field such as `helpful` may instead count votes.
_NUMBERED = re.compile(r"(?:is|was)_\w+|desirable")
# Names for which a negative number means a thumbs down.
_VOTES = (
    "feedback",
    "user_feedback",
    "human_feedback",
    "thumbs",
    "reaction",
    "vote",
)
_BAD = frozenset(
    (
        "false", "undesirable", "bad", "thumbsdown", "down", "dislike", "👎", "disliked", "downvote", "downvoted",
        "nothelpful", "unhelpful", "싫어요", "나쁨", "불만족", "dsat",
    )
)  # fmt: skip
# As a record's own `label`, the added words may be the target of a classifier.
_BAD_OF_ANSWERS = _BAD | {"negative", "reject", "rejected", "poor", "wrong", "incorrect"}


@lru_cache(maxsize=4096)
def judges(name: str) -> bool:
    """Whether a field with that name may mark an answer as bad."""
    return bool(_WORD.fullmatch(name) or _YES_OR_NO.fullmatch(name))


def names_in(value: Mapping[Any, Any]) -> frozenset[str]:
    """The record's fields that hold such a label."""
    return frozenset(name for name in value if isinstance(name, str) and judges(name))


def refuse_bad(value: Mapping[str, Any], owner: str = "its") -> None:
    """Refuse a record or a turn that is marked as a bad answer.

    A 0 marks it only in a file whose labels are 0 and 1; see `binary_label`.

    Raises:
        Unusable: it is marked as bad. The message calls the label that of `owner`.
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
    """A numeric label: 0, 1, or 2 for any other number; None if the record has none.

    In a file with only the labels 0 and 1 they mark bad and good answers. Other numbers are topics.
    """
    if not isinstance(value, dict):
        return None
    if not columns and "label" not in value and "kto_tag" not in value:
        return None
    # Ratings are not labels.
    names = [columns["label"]] if columns and "label" in columns else () if columns else ("label", "kto_tag")
    label = next((value[name] for name in names if value.get(name) is not None), None)
    if isinstance(label, bool) or not isinstance(label, (int, float, str)):
        return None
    try:
        number = float(label)
    except ValueError:
        return None
    return int(number) if number in (0, 1) else 2
