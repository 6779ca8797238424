"""The share of a benchmark's questions that a cell answers correctly, and its difference to the
untouched model's, with intervals.

A share has Wilson's interval. A difference is paired by question, over the same questions only. It
has Tango's score interval for paired proportions (`statistics.win_rate_interval`), which has a
width even if no answer changed. For several training runs the interval is the wider of that one and
the bootstrap over questions and runs (compare/quality.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np

from pipelines.compare.quality import Interval, intervals
from pipelines.evaluate.benchmarks import FILE
from pipelines.evaluate.statistics import wilson, win_rate_interval
from pipelines.lake.files import read_jsonl, stable_hash
from pipelines.runs.cells import Evaluation
from pipelines.settings.column_names import column_name
from pipelines.settings.evaluation import EvaluationSettings

Row = dict[str, Any]
# A task, and the hash of one of its questions.
Key = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Scores:
    """The correct answers of a cell's runs.

    `correct`: (runs, questions), 1 for a correct answer. `questions` are in the same order. Runs
    that are not `trained` are all equal.
    """

    questions: tuple[Key, ...]
    correct: np.ndarray
    trained: bool

    def of(self, tasks: Iterable[str]) -> "Scores | None":
        """The scores on the questions of these tasks; None if there are none."""
        names = set(tasks)
        places = [place for place, (task, _) in enumerate(self.questions) if task in names]
        if not places:
            return None
        return Scores(tuple(self.questions[place] for place in places), self.correct[:, places], self.trained)

    @property
    def share(self) -> float:
        return float(self.correct.mean())

    def interval(self) -> tuple[float, float] | None:
        """Wilson's interval. Seeds answer the same questions, so more seeds do not enlarge the
        sample."""
        count = len(self.questions)
        return wilson(round(self.share * count), count)


def scores_of(evaluations: Sequence[Evaluation], *, trained: bool) -> Scores | None:
    """The scores of a cell's runs on the questions that all of them were asked; None if there
    are none."""
    runs = [_correct(read_jsonl(evaluation.folder / FILE)) for evaluation in evaluations]
    if not runs:
        return None
    questions = tuple(key for key in runs[0] if all(key in one for one in runs))
    if not questions:
        return None
    return Scores(questions, np.array([[one[key] for key in questions] for one in runs], dtype=float), trained)


def _correct(rows: Sequence[Row]) -> dict[Key, bool]:
    """The results by the content of each question, so that a changed question counts as another
    one."""
    parts = ("item_id", "prompt", "choices", "reference")
    return {(row["task"], stable_hash([row.get(name) for name in parts])): row["correct"] for row in rows}


def difference(one: Scores, other: Scores) -> Interval | None:
    """The share of `one` minus that of `other`; None if they were not asked the same questions."""
    if set(one.questions) != set(other.questions):
        return None
    places = {key: place for place, key in enumerate(other.questions)}
    theirs = other.correct.mean(axis=0)[[places[key] for key in one.questions]]
    each = one.correct - theirs
    paired = _tango(each.mean(axis=0))
    runs = each if one.trained else each[:1]
    if paired is None or len(runs) < 2:
        return paired
    (sampled,) = intervals([runs * log(2)], np.ones(runs.shape[1]))
    if sampled is None:
        return paired
    return Interval(paired.value, min(paired.low, sampled.low), max(paired.high, sampled.high))


def _tango(differences: np.ndarray) -> Interval | None:
    """Tango's interval of mean differences by question, each from -1 to 1; None under two
    questions."""
    gained, lost = round(float(differences[differences > 0].sum())), round(float(-differences[differences < 0].sum()))
    ends = win_rate_interval(gained, lost, len(differences) - gained - lost)
    if ends is None:
        return None
    value = float(differences.mean())
    low, high = (2 * end - 1 for end in ends)
    return Interval(value, min(low, value), max(high, value))


def add_benchmarks(row: Row, base: Row | None, known: Mapping[Key, Scores], settings: EvaluationSettings) -> None:
    """Add the row's shares by benchmark and over the shipped sets, and their differences to the
    untouched model's.

    Differences need the same weights and the same questions.
    """
    own = known.get((row["model"], row["method"]))
    if own is None:
        return
    same = base is not None and base["weights_fingerprint"] == row["weights_fingerprint"]
    theirs = known.get((base["model"], base["method"])) if base and same else None
    for one in settings.benchmarks:
        columns = _compared(own, theirs, [one.name], is_base=row is base)
        name = column_name("benchmark", one.name)
        row |= {f"{name}{end}": value for end, value in columns.items()}
    columns = _compared(own, theirs, [one.name for one in settings.benchmarks if one.ships], is_base=row is base)
    for end, value in columns.items():
        if not end.startswith(("_base", "_vs_base")):
            row[f"benchmark_accuracy{end}"] = value
        elif end.startswith("_vs_base"):
            row[f"forgetting_accuracy{end.removeprefix('_vs_base')}"] = value


def _compared(own: Scores, theirs: Scores | None, tasks: Sequence[str], *, is_base: bool) -> Row:
    """The values for these tasks, by the endings of their columns."""
    mine = own.of(tasks)
    if mine is None:
        return {}
    columns: Row = {"": mine.share}
    if ends := mine.interval():
        columns |= {"_low": ends[0], "_high": ends[1]}
    other = theirs.of(tasks) if theirs else None
    if other is None or (paired := difference(mine, other)) is None:
        return columns
    columns["_base"] = other.share
    if not is_base:
        columns |= {"_vs_base": paired.value, "_vs_base_low": paired.low, "_vs_base_high": paired.high}
    return columns
