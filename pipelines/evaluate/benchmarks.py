"""What an evaluation asks of the profile's benchmarks, as plain values for its spec and fingerprint, and the rows that come back.

A row of benchmarks.jsonl is one question: `correct` says whether the model's choice, or its answer, is right.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines import benchmarks
from pipelines.benchmarks import Question
from pipelines.experiments import Benchmark, EvaluationSettings

FILE = "benchmarks.jsonl"
OWN = "featherweight"  # the scorer of the sets that ship
FIGURE = "acc_bytes"  # the harness's name of what is right here: the choice that is most likely for each of its bytes
Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
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
class Answered:
    """What came of a benchmark: a row for each question, `tokens` that the model read (None: not counted), and who scored it."""

    rows: list[Json]
    scorer: str
    seconds: float
    tokens: int | None = None


def asked_of(settings: EvaluationSettings) -> list[Asked]:
    """The profile's benchmarks in the order of its settings."""
    return [_asked(one) for one in settings.benchmarks]


def _asked(one: Benchmark) -> Asked:
    config = benchmarks.read_task(one.file) if one.file else None
    content = benchmarks.content(one.task) if one.ships else benchmarks.task_content(config) if config else None
    return Asked(one.name, one.task, one.ships, one.limit, one.shots, content, config)


def for_spec(settings: EvaluationSettings) -> list[Json]:
    return [asdict(one) for one in asked_of(settings)]


def contents(settings: EvaluationSettings) -> list[dict[str, str | None]]:
    """What the evaluation's fingerprint holds beside the settings: one part where there are benchmarks, else none, so that the
    fingerprints of profiles without any stay what they were."""
    found = {one.name: one.content for one in asked_of(settings)}
    return [found] if found else []


def require(settings: EvaluationSettings) -> None:
    """Raises UnavailableError where a benchmark needs lm-evaluation-harness, and that is not here or has no such task."""
    benchmarks.require(settings.harness_tasks)


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
        "metric": FIGURE,
        "loglikelihoods": json.dumps([round(float(one), 6) for one in loglikelihoods]),
        "margin": float(scores[question.answer] - max(others)),
        "scorer": OWN,
    }
