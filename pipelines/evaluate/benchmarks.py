"""The spec of a benchmark and the rows of its result.

A row of benchmarks.jsonl is one question. `correct` says whether the model's choice or answer is
right.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.settings.benchmarks import Question

FILE = "benchmarks.jsonl"
# The scorer of the bundled benchmarks.
OWN = "featherweight"
# The harness's name of our metric: the choice with the highest likelihood per byte counts as
# picked.
METRIC = "acc_bytes"
Json = dict[str, Any]


@dataclass(frozen=True)
class BenchmarkSpec:
    """One benchmark in the spec of a child process.

    `config` is the content of a task file, else None. `content` is a hash of the questions, None
    for a built-in task of the harness.
    """

    name: str
    task: str
    ships: bool
    limit: int | None
    shots: int | None
    content: str | None = None
    config: Json | None = None


@dataclass(frozen=True)
class BenchmarkResult:
    """The result of a benchmark: a row for each question, the tokens read (None: not counted), and
    the scorer."""

    rows: list[Json]
    scorer: str
    seconds: float
    tokens: int | None = None


def row_of(name: str, question: Question, loglikelihoods: Sequence[float]) -> Json:
    """The row of a bundled benchmark's question.

    `margin` is the log-likelihood per byte of the right choice minus that of the likeliest other
    choice; above zero the model picks the right one.
    """
    sizes = [len(choice.encode()) for choice in question.choices]
    scores = np.array(loglikelihoods) / np.array(sizes, dtype=float)
    picked = int(np.argmax(scores))
    others = [score for place, score in enumerate(scores) if place != question.answer]
    return {
        "task": name,
        "item_id": question.item_id,
        "category": question.category,
        "prompt": question.prompt,
        "choices": json.dumps(question.choices, ensure_ascii=False),
        "reference": question.choices[question.answer],
        "picked": question.choices[picked],
        "correct": picked == question.answer,
        "metric": METRIC,
        "loglikelihoods": json.dumps([round(float(one), 6) for one in loglikelihoods]),
        "margin": float(scores[question.answer] - max(others)),
        "scorer": OWN,
    }
