"""The choices for one run of a cell beyond the configuration: fewer examples, a cap in dollars.

They are plain changes of the settings, so that the spec, the fingerprints and the row show what
really happened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pipelines.errors import UsageError
from pipelines.lake.paths import DataRoot
from pipelines.project import Project, Resolved
from pipelines.runs import cells
from pipelines.runs.clock import now
from pipelines.runs.result import RunResult
from pipelines.settings.experiments import Experiments
from pipelines.settings.method_settings import DataChoice
from pipelines.settings.training import TrainingOverrides


@dataclass(frozen=True)
class Choices:
    """The choices for one run of a cell, from the UI or a command. None means as configured.

    `max_examples` limits the training examples. `budget_usd` caps the dollars of all seeds and
    evaluations together.
    """

    max_examples: int | None = None
    budget_usd: float | None = None

    def applied(
        self, resolved: Resolved, model_method: tuple[str, str], began: str, *, other_caps: Sequence[float] = ()
    ) -> Resolved:
        """`resolved` with these choices, for the next seed or evaluation of a run that began at
        `began`.

        `other_caps` are remaining dollars for other reasons, such as a night's budget.

        Raises:
            UsageError: an impossible number, or an unknown model or method.
        """
        project, caps = resolved.project, list(other_caps)
        if self.budget_usd is not None:
            spent = hours_of_cells(project.data, began, model_method) * (project.settings.price_per_hour or 0.0)
            caps.append(max(self.budget_usd - spent, 0.0))
        if self.max_examples is not None:
            project = with_max_examples(project, model_method, self.max_examples)
        return resolved.under(with_budget(project, model_method, min(caps)) if caps else project)

    def no_cap(self, project: Project) -> str | None:
        """Why the cap in dollars has no effect; None if it has one, or if there is no cap."""
        if self.budget_usd is None or project.settings.price_per_hour:
            return None
        return f"budget_usd caps nothing: profile {project.profile} has no price_per_hour"


def with_max_examples(project: Project, model_method: tuple[str, str], count: int) -> Project:
    """The project in which the cell's method trains on at most `count` examples.

    Raises:
        UsageError: `count` is not positive.
    """
    if count < 1:
        raise UsageError(f"max_examples is {count}; expected a number from 1, or nothing for the profile's")
    _, name = model_method
    method = project.experiments.method(name)
    if not method.traits.trains:
        return project
    data = method.data or DataChoice()
    least = min(count, data.max_examples or count)
    narrowed = method.model_copy(update={"data": data.model_copy(update={"max_examples": least})})
    methods = {**project.experiments.methods, name: narrowed}
    return _with_experiments(project, project.experiments.model_copy(update={"methods": methods}))


def with_budget(project: Project, model_method: tuple[str, str], dollars: float) -> Project:
    """The project in which the cell stops (`timed_out`, with a checkpoint) at a cost of `dollars`.

    The cost comes from the profile's price_per_hour. If that is unknown or 0, nothing changes.

    Raises:
        UsageError: `dollars` is negative.
    """
    # Also refuses NaN.
    if not dollars >= 0:
        raise UsageError(f"budget_usd is {dollars:g}; expected dollars from 0, or nothing for no cap")
    price = project.settings.price_per_hour
    if not price:
        return project
    model_name, method = model_method
    limit = project.experiments.training_for(project.profile, model_name, method).time_limit_minutes
    minutes = max(min(limit, dollars / price * 60), 1 / 60)
    model = project.experiments.model(model_name)
    overrides = model.overrides.get(method, TrainingOverrides()).model_copy(update={"time_limit_minutes": minutes})
    capped = model.model_copy(update={"overrides": {**model.overrides, method: overrides}})
    models = {**project.experiments.models, model_name: capped}
    return _with_experiments(project, project.experiments.model_copy(update={"models": models}))


def _with_experiments(project: Project, experiments: Experiments) -> Project:
    return Project(project.data, experiments, project.profile)


def hours_of_cells(data: DataRoot, since: str, model_method: tuple[str, str] | None = None) -> float:
    """Hours of training and evaluation from `since` on, for all cells or for one."""
    seconds = 0.0
    for attempt in cells.all_attempts(data):
        if model_method and (attempt.key.model, attempt.key.method) != model_method:
            continue
        for result in (attempt.result, *(evaluation.result for evaluation in attempt.evaluations())):
            if (result.started_at or "") >= since:
                seconds += _seconds(result)
    return seconds / 3600


def _seconds(result: RunResult) -> float:
    """The duration of the run; without a result, from its start until now."""
    if result.seconds is not None:
        return result.seconds
    until = datetime.fromisoformat(result.finished_at or now())
    return max(0.0, (until - datetime.fromisoformat(str(result.started_at))).total_seconds())
