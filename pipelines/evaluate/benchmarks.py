"""What an evaluation is told of a benchmark, and the rows that come back.

A row of benchmarks.jsonl is one question: `correct` says whether the model's choice, or its answer, is right.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.settings.benchmarks import Question

FILE = "benchmarks.jsonl"
OWN = "featherweight"  # the scorer of the sets that ship
METRIC = "acc_bytes"  # the harness's name of what is right here: the choice that is most likely for each of its bytes
Json = dict[str, Any]


@dataclass(frozen=True)
class BenchmarkSpec:
    """One benchmark as a child is told it. `config` is a task file's content, else None; `content` a hash of what is asked, None of
    a task that the harness brings."""

    name: str
    task: str
    ships: bool
    limit: int | None
    shots: int | None
    content: str | None = None
    config: Json | None = None


@dataclass(frozen=True)
class BenchmarkResult:
    """What came of a benchmark: a row for each question, `tokens` that the model read (None: not counted), and who scored it."""

    rows: list[Json]
    scorer: str
    seconds: float
    tokens: int | None = None


def row_of(name: str, question: Question, loglikelihoods: Sequence[float]) -> Json:
    """A question of a set that ships and what the model makes of it. `margin`: nats per byte of the right choice less those of the
    likeliest other one; above zero the right one is picked."""
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
