"""The estimator's questions: a complete description of one cell as JSON, and the file of its
answer."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError, UsageError
from pipelines.estimate import cards
from pipelines.lake.files import read_json
from pipelines.lake.paths import DataRoot
from pipelines.project import Project, Resolved
from pipelines.runs import predictions
from pipelines.runs.cells import Attempt
from pipelines.runs.predictions import answer_file
from pipelines.settings.methods import traits_of
from pipelines.settings.model_settings import Model
from pipelines.weights import shipped, shortened, store

Json = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A question on one cell. `request` is the input of the estimating process; the answer is
    stored in `file`."""

    model: str
    method: str
    file: Path
    request: Json


def answer_on(data: DataRoot, attempt: Attempt) -> Json | None:
    """The stored prediction for the attempt's specification, if there is one."""
    spec = attempt.spec
    return predictions.answer_on(data, spec.recipe, spec.fingerprints.get("data"), attempt.key.seed)


def questions(
    project: Project, cells: Sequence[tuple[str, str]], seeds: Sequence[int], resolved: Resolved | None = None
) -> list[Question]:
    """One question per cell and seed, with the profile's settings and, if data were cleaned, its
    examples.

    `resolved` may be passed by callers that already have it.
    """
    # A UsageError here means that nothing was cleaned yet.
    with suppress(UsageError):
        resolved = resolved or project.resolve()
    return [_question(project, model, method, seed, resolved) for model, method in cells for seed in seeds]


def _question(project: Project, model: str, method: str, seed: int, resolved: Resolved | None) -> Question:
    configured = project.experiments.model(model)
    recipe = project.recipe_of(model, method)
    has_own_tokenizer = store.is_present(project.data, model, configured)
    trains = traits_of(recipe).trains
    selected = resolved.cell(model, method).selected if resolved and trains else None
    tokenizer = _tokenizer(project, model) if selected else None
    request = {
        "recipe": recipe,
        "config": config_of(project.data, model, configured),
        "tokenizer": tokenizer,
        "examples": str(resolved.selected.examples) if resolved and tokenizer else None,
        "selection": vars(project.selection_of(method)),
        "seed": seed,
        **_devices(recipe),
    }
    prints = selected.data_fingerprint if selected else None
    file = answer_file(project.data, recipe, prints, seed, own_tokenizer=has_own_tokenizer)
    return Question(model, method, file, request)


def _devices(recipe: Json) -> Json:
    """`device`: the device of training here, cpu or the format of this machine's card. `cards`: the
    card formats to predict.

    The processor's prediction is always made.
    """
    card = cards.here()
    here = card.format(recipe) if card else "cpu"
    return {"device": here, "cards": [] if here == "cpu" else [here]}


def config_of(data: DataRoot, name: str, model: Model) -> Json | None:
    """The model's transformers configuration, from its folder or shipped; None if neither
    exists."""
    source = model.source
    if store.is_present(data, name, model):
        return read_json(store.model_folder(data, name, model) / "config.json")
    if model.parent and source.parent:
        whole = config_of(data, source.parent, model.parent)
        return _without_layers(whole, source.drop_layers) if whole and source.drop_layers is not None else whole
    if source.shape:
        try:
            return shipped.named(source.shape)
        # The error appears in the model's cells.
        except UsageError:
            return None
    if source.hub:
        return shipped.of_hub(source.hub)
    return shipped.of_wheel(source.packages[0][0]) if source.wheel else None


def _without_layers(config: Json, drop: shortened.Drop) -> Json | None:
    """The configuration of a shortened model before it is made.

    None if the model has too few layers; fetching the model reports that.
    """
    with suppress(UsageError, UnavailableError):
        return shortened.without(config, shortened.dropped_from(shortened.layers_of(config), drop))
    return None


def _tokenizer(project: Project, model: str) -> Json | None:
    """The tokenizer that counts tokens: the model's own, else one of another downloaded model of
    the grid; else None."""
    for name in (model, *project.experiments.models):
        configured = project.experiments.model(name)
        if store.is_present(project.data, name, configured):
            folder = store.model_folder(project.data, name, configured)
            recipe = {"prompt": configured.prompt, "template": configured.template}
            return {"folder": str(folder), "recipe": recipe, "of": name}
    return None
