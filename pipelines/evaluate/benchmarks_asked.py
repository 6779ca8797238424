"""A profile's benchmarks in the parent process: their part of an evaluation's spec and fingerprint,
and their requirements."""

from dataclasses import asdict
from typing import Any

from pipelines.evaluate.benchmarks import BenchmarkSpec
from pipelines.settings import benchmarks
from pipelines.settings.evaluation import Benchmark, EvaluationSettings

Json = dict[str, Any]


def specs_of(settings: EvaluationSettings) -> list[BenchmarkSpec]:
    """The profile's benchmarks in the order of its settings."""
    return [_spec(one) for one in settings.benchmarks]


def _spec(one: Benchmark) -> BenchmarkSpec:
    config = benchmarks.read_task(one.file) if one.file else None
    content = benchmarks.content(one.task) if one.ships else benchmarks.task_content(config) if config else None
    return BenchmarkSpec(one.name, one.task, one.ships, one.limit, one.shots, content, config)


def for_spec(settings: EvaluationSettings) -> list[Json]:
    return [asdict(one) for one in specs_of(settings)]


def contents(settings: EvaluationSettings) -> list[dict[str, str | None]]:
    """The benchmarks' part of the evaluation's fingerprint, beside the settings.

    Without benchmarks there is no part, so that the fingerprints of such profiles do not change.
    """
    hashes = {one.name: one.content for one in specs_of(settings)}
    return [hashes] if hashes else []


def require(settings: EvaluationSettings) -> None:
    """Raise UnavailableError if a benchmark needs lm-evaluation-harness and the harness or the task
    is missing."""
    benchmarks.require(settings.harness_tasks)
