"""Evaluation: what every model of a profile is measured on."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from pipelines.settings import benchmarks
from pipelines.settings.column_names import BENCHMARK_ENDINGS, METRIC_ENDINGS, require_columns
from pipelines.settings.metrics import Metric
from pipelines.settings.strict import Count, NamesFiles, Strict


class Benchmark(NamesFiles):
    """Questions with a right answer, on which a model is set beside its base. A name alone is a task."""

    task: Annotated[str, Field(min_length=1)]
    """A set that ships (basics_en, basics_ko), a task of lm-evaluation-harness, or the path of a task file."""
    limit: PositiveInt | None = None
    """Ask only the first so many questions. Unset: all."""
    shots: Count | None = None
    """Solved examples before each question. Unset: as the task itself says."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, data: Any) -> Any:
        return {"task": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _can_be_asked(self) -> "Benchmark":
        if self.file:
            benchmarks.read_task(self.file)
        elif self.ships and (most := benchmarks.most_shots(self.task)) < (self.shots or 0):
            raise ValueError(
                f"shots: got {self.shots}; {self.task} has {most} solved examples: expected at most {most}"
            )
        return self

    @property
    def ships(self) -> bool:
        """Whether it is one of our own sets, which need no package beside ours."""
        return self.task in benchmarks.shipped()

    @property
    def file(self) -> Path | None:
        return self.placed(self.task) if benchmarks.is_file(self.task) else None

    @property
    def name(self) -> str:
        """What its columns are called by."""
        return Path(self.task).stem if self.file else self.task


class EvaluationSettings(Strict):
    """What a model is measured on. Metrics score the answers that are kept, so that a change of them needs no model again."""

    answers: Count = 32
    """Held-out records that each cell answers, for metrics and the judge."""
    max_new_tokens: PositiveInt = 256
    """Tokens after which an answer is cut off."""
    latency_answers: Count = 20
    """Answers that are made once more, one at a time, for their latency."""
    general_texts: Count | None = None
    """Texts of data/general.json that forgetting is measured on. Unset: all."""
    serving_batch: Count = 8
    """Requests answered in one batch when serving is measured; 0: it is not measured."""
    serving_tokens: PositiveInt = 64
    """Tokens of each answer when serving is measured."""
    metrics: list[Metric] = []
    """Metrics of your own task, which score the answers that are kept."""
    # not written where there is none: evaluations that were made before there were any stay current
    benchmarks: list[Benchmark] = Field(default=[], exclude_if=lambda named: not named)
    """Questions with a right answer, on which each model is set beside its base."""

    @model_validator(mode="after")
    def _columns_have_names(self) -> "EvaluationSettings":
        require_columns("metric", self.metric_names, METRIC_ENDINGS)
        require_columns("benchmark", self.benchmark_names, BENCHMARK_ENDINGS)
        return self

    @property
    def of_the_model(self) -> dict[str, Any]:
        """The settings that measuring with the model depends on, for fingerprints and for the evaluating process."""
        return self.model_dump(exclude={"metrics"})

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Each makes columns of its own (pipelines/compare/columns/configured.py)."""
        return tuple(metric.column for metric in self.metrics)

    @property
    def benchmark_names(self) -> tuple[str, ...]:
        """Each makes columns of its own."""
        return tuple(one.name for one in self.benchmarks)

    @property
    def harness_tasks(self) -> list[str]:
        """The benchmarks that need lm-evaluation-harness."""
        return [one.task for one in self.benchmarks if not one.ships]
