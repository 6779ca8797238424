"""The parent's half of a profile's benchmarks: what an evaluation's spec and fingerprint hold of them, and what they need here."""

from dataclasses import asdict
from typing import Any

from pipelines.evaluate.benchmarks import BenchmarkSpec
from pipelines.settings import benchmarks
from pipelines.settings.experiments import Benchmark, EvaluationSettings

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
    """What the evaluation's fingerprint holds beside the settings: one part where there are benchmarks, else none, so that the
    fingerprints of profiles without any stay what they were."""
    hashes = {one.name: one.content for one in specs_of(settings)}
    return [hashes] if hashes else []


def require(settings: EvaluationSettings) -> None:
    """Raises UnavailableError where a benchmark needs lm-evaluation-harness, and that is not here or has no such task."""
    benchmarks.require(settings.harness_tasks)
