"""What somebody asks of one run of a cell beyond the configuration: fewer examples, a cap in dollars. They are plain changes to
the settings, so that the spec, the fingerprints and the row tell what was really done."""

from pipelines.errors import UsageError
from pipelines.project import Project
from pipelines.settings.experiments import DataChoice, Experiments, TrainingOverrides


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
    before = method.data or DataChoice()
    least = min(count, before.max_examples or count)
    chosen = method.model_copy(update={"data": before.model_copy(update={"max_examples": least})})
    methods = {**project.experiments.methods, name: chosen}
    return _with(project, project.experiments.model_copy(update={"methods": methods}))


def with_budget(project: Project, model_method: tuple[str, str], dollars: float) -> Project:
    """The project in which the cell is stopped (`timed_out`, with a checkpoint) once it has cost `dollars` at the profile's
    price_per_hour. Where that is not known, or 0, no time costs anything and nothing changes.

    Raises:
        UsageError: `dollars` is negative.
    """
    if not dollars >= 0:  # NaN too
        raise UsageError(f"budget_usd is {dollars:g}; expected dollars from 0, or nothing for no cap")
    price = project.settings.price_per_hour
    if not price:
        return project
    model_name, method = model_method
    limit = project.experiments.training_for(project.profile, model_name, method).time_limit_minutes
    minutes = max(min(limit, dollars / price * 60), 1 / 60)
    model = project.experiments.model(model_name)
    own = model.overrides.get(method, TrainingOverrides()).model_copy(update={"time_limit_minutes": minutes})
    changed = model.model_copy(update={"overrides": {**model.overrides, method: own}})
    models = {**project.experiments.models, model_name: changed}
    return _with(project, project.experiments.model_copy(update={"models": models}))


def _with(project: Project, experiments: Experiments) -> Project:
    return Project(project.data, experiments, project.profile)
