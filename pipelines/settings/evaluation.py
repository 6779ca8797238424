"""Evaluation: the measurements of every model of a profile."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from pipelines.settings import benchmarks
from pipelines.settings.column_names import BENCHMARK_ENDINGS, METRIC_ENDINGS, require_columns
from pipelines.settings.metrics import Metric
from pipelines.settings.strict import Count, NamesFiles, Strict


class Benchmark(NamesFiles):
    """Questions with a right answer that compare a model with its base. A plain name is a task."""

    task: Annotated[str, Field(min_length=1)]
    """A shipped set (basics_en, basics_ko), a task of lm-evaluation-harness, or the path of a task
    file."""
    limit: PositiveInt | None = None
    """Number of questions to ask, from the first. Unset: all."""
    shots: Count | None = None
    """Solved examples before each question. Unset: as the task itself says."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        return {"task": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _check_task(self) -> "Benchmark":
        if self.file:
            benchmarks.read_task(self.file)
        elif self.ships and (most := benchmarks.most_shots(self.task)) < (self.shots or 0):
            raise ValueError(
                f"shots: got {self.shots}; {self.task} has {most} solved examples: expected at most {most}"
            )
        return self

    @property
    def ships(self) -> bool:
        """Whether it is one of the shipped sets, which need no other package."""
        return self.task in benchmarks.shipped()

    @property
    def file(self) -> Path | None:
        return self.placed(self.task) if benchmarks.is_file(self.task) else None

    @property
    def name(self) -> str:
        """The name in its columns."""
        return Path(self.task).stem if self.file else self.task


class EvaluationSettings(Strict):
    """The measurements of a model.

    Metrics score stored answers, so a change of metrics does not run a model again.
    """

    answers: Count = 32
    """Held-out records that each cell answers, for metrics and the judge."""
    max_new_tokens: PositiveInt = 256
    """Tokens after which an answer is cut off."""
    latency_answers: Count = 20
    """Answers that are generated once more, one at a time, to measure latency."""
    general_texts: Count | None = None
    """Texts of data/general.json that measure forgetting. Unset: all."""
    serving_batch: Count = 8
    """Requests in one batch of the serving measurement; 0: no measurement."""
    serving_tokens: PositiveInt = 64
    """Tokens of each answer in the serving measurement."""
    metrics: list[Metric] = []
    """Metrics of your own task, which score the stored answers."""
    # An empty list is not dumped, so evaluations from before benchmarks existed stay current.
    benchmarks: list[Benchmark] = Field(default=[], exclude_if=lambda names: not names)
    """Questions with a right answer that compare each model with its base."""

    @model_validator(mode="after")
    def _check_columns(self) -> "EvaluationSettings":
        require_columns("metric", self.metric_names, METRIC_ENDINGS)
        require_columns("benchmark", self.benchmark_names, BENCHMARK_ENDINGS)
        return self

    @property
    def of_the_model(self) -> dict[str, Any]:
        """The settings that a measurement with the model depends on, for fingerprints and for the
        evaluating process."""
        return self.model_dump(exclude={"metrics"})

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of the metrics; each has columns of its own
        (pipelines/compare/columns/configured.py)."""
        return tuple(metric.column for metric in self.metrics)

    @property
    def benchmark_names(self) -> tuple[str, ...]:
        """The names of the benchmarks; each has columns of its own."""
        return tuple(benchmark.name for benchmark in self.benchmarks)

    @property
    def harness_tasks(self) -> list[str]:
        """The benchmarks that need lm-evaluation-harness."""
        return [benchmark.task for benchmark in self.benchmarks if not benchmark.ships]
