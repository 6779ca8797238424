"""A model without more and more of its layers, untouched and healed by training: loss, memory and speed by number of layers."""

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
DEFAULT_METHODS = ("full", "lora-r8", "qlora-r8")  # unless others are named
COLUMNS = layers_report.COLUMNS


@dataclass(frozen=True)
class LayerSweep:
    """A project whose profile holds the models and methods; the model of each number of layers left out; `added` are those that the
    user's file does not have."""

    project: Project
    model: str
    models: dict[int, str]
    methods: list[str]
    added: list[str]


def with_layers(
    project: Project, model: str, counts: Sequence[int], methods: Sequence[str] | None = None
) -> LayerSweep:
    """A model for each number of layers that are left out (0: the model itself): the one of experiments.yaml that is made so, else
    one made for this sweep. `methods` None: the untouched model, and DEFAULT_METHODS.

    Raises:
        UsageError: an unknown model or method, one that the profile does not hold (evaluation records must fit all models of a
            profile), as many layers as it has, or a model of experiments.yaml that bears the name of one to be made.
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
    """Raises UsageError where the model is known to have no more layers than are to go."""
    if config := config_of(project.data, name, model):
        shortened.dropped_from(shortened.layers_of(config), max(counts)) if max(counts) else None


def _extended(profile: Profile, models: list[str], methods: list[str]) -> Profile:
    return profile.model_copy(update={"models": list(dict.fromkeys([*profile.models, *models])), "methods": methods})


def _model_without(whole: Model, source: Source) -> Model:
    """As experiments.yaml would have it: all that is known of the whole model is known of it."""
    model = whole.model_copy(update={"source": source})
    model._parent = whole
    return model


def _name_of(experiments: Experiments, model: str, source: Source) -> str:
    """The name of the configured model that is made so and says nothing else, else one that says how it is made.

    Raises:
        UsageError: that name is taken.
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
    """Make every cell current, whatever becomes of the others, and return their rows, those of the whole model first."""
    hooks, project = RunHooks(on_tick=on_tick), sweep.project
    for name in sweep.models.values():  # evaluation records are those that fit every model whose weights are here
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
    """Bring the weights; where that cannot be, the model's cells say why."""
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
    """Its source as experiments.yaml would have it."""
    fields = model.source.model_dump(exclude_none=True)
    return f"{{{', '.join(f'{name}: {value}' for name, value in fields.items())}}}"


def write_picture(rows: Sequence[Row], sweep: LayerSweep) -> Path | None:
    """Loss, memory and speed by layers as a PNG beside the report; None where nothing was measured."""
    picture = layers_report.picture(rows, "png")
    if picture is None:
        return None
    path = sweep.project.data.report.with_name(f"layers-{sweep.model}.png")
    with replacing(path) as temporary:
        temporary.write_bytes(picture)
    return path
