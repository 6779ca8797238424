"""A model with fewer and fewer layers, untouched and healed by training: loss, memory and speed
by number of layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.compare import layers_report
from pipelines.compare.show import Format
from pipelines.compare.table import comparison_rows
from pipelines.errors import UsageError
from pipelines.estimate.question import config_of
from pipelines.evaluate.cell import base_method
from pipelines.lake.files import replacing
from pipelines.project import Project
from pipelines.records.foreign_text import one_line
from pipelines.runs.cells import Attempt
from pipelines.runs.run import RunHooks
from pipelines.settings.experiments import Experiments
from pipelines.settings.model_settings import Model, Source
from pipelines.settings.profiles import Profile
from pipelines.sweep.cells import doubts, make_current, table_of
from pipelines.weights import shortened, store

Row = dict[str, Any]
# The training methods of a sweep that names none.
DEFAULT_METHODS = ("full", "lora-r8", "qlora-r8")
COLUMNS = layers_report.COLUMNS


@dataclass(frozen=True)
class LayerSweep:
    """A project whose profile has the models and methods of the sweep.

    `models` maps each number of dropped layers to a model. `added` names the models that the user's
    file does not have.
    """

    project: Project
    model: str
    models: dict[int, str]
    methods: list[str]
    added: list[str]


def with_layers(
    project: Project, model: str, counts: Sequence[int], methods: Sequence[str] | None = None
) -> LayerSweep:
    """A model for each number of dropped layers (0: the model itself).

    It is the model of experiments.yaml with that definition, else a new one for this sweep.
    `methods` None stands for the untouched model and DEFAULT_METHODS.

    Raises:
        UsageError: an unknown model or method, a model outside the profile (evaluation records must
            fit all models of a profile), as many layers as the model has, or a model of
            experiments.yaml that already has the name of a new one.
    """
    experiments, profile = project.experiments, project.settings
    whole = experiments.model(model)
    if model not in profile.models:
        raise UsageError(
            f"{model} is not in profile {project.profile} ({', '.join(profile.models)}): add it to its models"
        )
    _require_layers(project, model, whole, counts)
    base = base_method(project)
    method_names = list(dict.fromkeys(filter(None, methods or (base, *DEFAULT_METHODS))))
    for name in method_names:
        experiments.method(name)
    sources = {
        count: Source.model_validate({"from": model, "drop_layers": count}) for count in sorted(set(counts)) if count
    }
    models = {0: model} if 0 in counts else {}
    models |= {count: _name_of(experiments, model, source) for count, source in sources.items()}
    new_models = {
        name: _model_without(whole, sources[count]) for count, name in models.items() if name not in experiments.models
    }
    extended = _extended(profile, list(models.values()), list(dict.fromkeys(filter(None, (base, *method_names)))))
    changes = {
        "models": {**experiments.models, **new_models},
        "profiles": {**experiments.profiles, project.profile: extended},
    }
    swept = replace(project, experiments=experiments.model_copy(update=changes))
    return LayerSweep(swept, model, models, method_names, list(new_models))


def _require_layers(project: Project, name: str, model: Model, counts: Sequence[int]) -> None:
    """Raise UsageError if the model is known to have no more layers than should be dropped."""
    if config := config_of(project.data, name, model):
        shortened.dropped_from(shortened.layers_of(config), max(counts)) if max(counts) else None


def _extended(profile: Profile, models: list[str], methods: list[str]) -> Profile:
    return profile.model_copy(update={"models": list(dict.fromkeys([*profile.models, *models])), "methods": methods})


def _model_without(whole: Model, source: Source) -> Model:
    """The shortened model as experiments.yaml would define it, with all properties of the whole
    model."""
    model = whole.model_copy(update={"source": source})
    model._parent = whole
    return model


def _name_of(experiments: Experiments, model: str, source: Source) -> str:
    """The name of the configured model with exactly this definition, else a new name that describes
    it.

    Raises:
        UsageError: the new name is taken.
    """
    definition = _model_without(experiments.model(model), source).model_dump()
    for name, known in experiments.models.items():
        if known.model_dump() == definition:
            return name
    name = f"{model}-drop{source.drop_layers}"
    if name in experiments.models:
        raise UsageError(
            f"models.{name} of experiments.yaml is another model than {model} without {source.drop_layers} layers: rename it"
        )
    return name


def run_sweep(sweep: LayerSweep, *, on_tick: Callable[[Attempt], None], tell: Callable[[str], None]) -> list[Row]:
    """Make every cell current, even if others fail, and return their rows, those of the whole
    model first."""
    hooks, project = RunHooks(on_tick=on_tick), sweep.project
    # All weights first: evaluation records must fit every model whose weights are here.
    for name in sweep.models.values():
        _fetch(project, name, tell)
    resolved = project.resolve()
    for name in sweep.models.values():
        make_current(resolved, name, sweep.methods, hooks=hooks, tell=tell)
    by_cell = {(row["model"], row["method"]): row for row in comparison_rows(resolved)}
    return [
        {**layers_report.with_drop(by_cell[name, method], count, project.experiments), "whole": sweep.model}
        for count, name in sweep.models.items()
        for method in sweep.methods
    ]


def _fetch(project: Project, name: str, tell: Callable[[str], None]) -> None:
    """Download the weights. If that fails, the model's cells show the reason."""
    try:
        store.fetch(project.data, project.experiments, name, say=tell)
    except Exception as error:
        tell(f"{name}: {one_line(str(error), 300)}")


def table(rows: Sequence[Row], sweep: LayerSweep, form: Format) -> str:
    return table_of(rows, COLUMNS, _notes(rows, sweep), form)


def _notes(rows: Sequence[Row], sweep: LayerSweep) -> list[str]:
    notes = [f"{sweep.model}, profile {sweep.project.profile}; {layers_report.HOW_CHOSEN}"]
    notes += doubts(rows, lambda row: f"{row['model']} {row['method']}", "tokens/s")
    if sweep.added:
        source = sweep.project.experiments.models
        added = ", ".join(f"{name}: {{source: {_defined(source[name])}}}" for name in sweep.added)
        notes.append(
            f"not in the comparison: {added}; put each under models, and into models of profile {sweep.project.profile}"
        )
    return notes


def _defined(model: Model) -> str:
    """The model's source as experiments.yaml would write it."""
    fields = model.source.model_dump(exclude_none=True)
    return f"{{{', '.join(f'{name}: {value}' for name, value in fields.items())}}}"


def write_picture(rows: Sequence[Row], sweep: LayerSweep) -> Path | None:
    """Write loss, memory and speed by layers as a PNG beside the report; None if nothing was
    measured."""
    picture = layers_report.picture(rows, "png")
    if picture is None:
        return None
    path = sweep.project.data.report.with_name(f"layers-{sweep.model}.png")
    with replacing(path) as temporary:
        temporary.write_bytes(picture)
    return path
