"""How well the records of each provider cover the grid, and how much they vary.

Distinct-n is the share of different n-grams among all n-grams of the outputs (Li et al. 2016, "A
Diversity-Promoting Objective Function"). It falls with the amount of text, so only providers with
equally many records are comparable.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipelines.generate.requests import PromptedRequest, RequestSource, request_source
from pipelines.lake.paths import DataRoot
from pipelines.settings.experiments import Experiments

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Coverage:
    """Coverage and variety of one provider's valid records.

    `cells` and `topics` are how many they hit, `axes` the share of each axis's values among them.
    `distinct_1` and `distinct_2` are those of their texts, None without any. `problem` is the
    commonest problem of the invalid records, None without any.
    """

    provider: str
    records: int
    cells: str
    topics: str
    axes: dict[str, float]
    distinct_1: float | None
    distinct_2: float | None
    problem: str | None = None


def coverage(data: DataRoot, experiments: Experiments, names: Iterable[str]) -> list[Coverage]:
    """The coverage of each of these providers for the currently configured requests."""
    names = list(names)
    if not names:
        return []
    with request_source(data, experiments) as reading:
        return [_coverage_of(name, reading) for name in names]


def _coverage_of(name: str, reading: RequestSource) -> Coverage:
    prompted = reading.prompted_requests(name)
    records = list(reading.records(name))
    valid = [(one, record.value) for one, record in records if record.problem is None]
    problems = Counter(record.problem for _, record in records if record.problem)
    values = [value for _, value in valid]
    return Coverage(
        provider=name,
        records=len(valid),
        cells=_ratio({one.request.cell for one, _ in valid}, {one.request.cell for one in prompted}),
        topics=_ratio({one.prompt.topic for one, _ in valid}, {one.prompt.topic for one in prompted}),
        axes=_axes(prompted, [one for one, _ in valid]),
        distinct_1=distinct(values, 1),
        distinct_2=distinct(values, 2),
        problem=problems.most_common(1)[0][0] if problems else None,
    )


def _ratio(hit: set[Any], all_of: set[Any]) -> str:
    return f"{len(hit)} of {len(all_of)}"


def _axes(prompted: list[PromptedRequest], valid: list[PromptedRequest]) -> dict[str, float]:
    names = dict.fromkeys(axis for one in prompted for axis in one.prompt.axes)
    shares = {}
    for axis in names:
        values = {one.prompt.axes.get(axis) for one in prompted}
        shares[axis] = len({one.prompt.axes.get(axis) for one in valid}) / len(values)
    return shares


def distinct(values: Iterable[Any], n: int) -> float | None:
    """Distinct-n of the outputs of these records; None if no output has n words."""
    texts = [
        value.get("output") if isinstance(value, dict) else json.dumps(value, ensure_ascii=False) for value in values
    ]
    words = [WORD.findall(text.lower()) for text in texts if isinstance(text, str)]
    grams = [tuple(text[i : i + n]) for text in words for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
