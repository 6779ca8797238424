"""The models of the grid at a glance: size, licence, whether they are downloaded, and what fits
this machine."""

from dataclasses import dataclass
from typing import Any

from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.show import Format, Row, as_csv, as_json, tabulate
from pipelines.estimate.estimate import Estimate, estimates
from pipelines.estimate.question import config_of
from pipelines.hardware import machine
from pipelines.lake.schema import flag, real, text
from pipelines.project import Project
from pipelines.settings.experiments import Experiments
from pipelines.weights import shipped, shortened, store

COLUMNS = (
    *COMPARISON.pick("model"),
    real("millions", "Number of parameters.", "millions", 0, heading="parameters (M)"),
    real("weights_gb", "Size of the weights on disk.", "GB", 1, heading="weights GB"),
    text("license", "Licence of the weights.", heading="licence"),
    flag("is_here", "Whether the weights are in the data folder.", heading="here"),
)


@dataclass(frozen=True)
class ModelList:
    """One row per model, and the methods with predicted memory: the first of each kind in the
    grid."""

    rows: list[Row]
    methods: list[str]
    capacity_gb: float


def listed(project: Project) -> ModelList:
    """List every model of the grid in its order, with the profile's settings.

    Raises:
        WorkError: the estimating process ended without an answer.
    """
    experiments = project.experiments
    methods = one_of_each_kind(experiments)
    predictions = estimates(project, [(model, method) for model in experiments.models for method in methods])
    predicted = {(one.model, one.method): one for one in predictions}
    rows = [_row(project, name, [predicted[name, method] for method in methods]) for name in experiments.models]
    return ModelList(rows, methods, predictions[0].capacity_gb if predictions else 0.0)


def one_of_each_kind(experiments: Experiments) -> list[str]:
    """The first method that trains all weights, the first adapter, and the first adapter over a
    quantized base."""
    kinds: dict[tuple[bool, bool], str] = {}
    for name, method in experiments.methods.items():
        if method.traits.trains:
            kinds.setdefault((method.traits.has_adapter, method.quantization is not None), name)
    return list(kinds.values())


def _row(project: Project, name: str, predicted: list[Estimate]) -> Row:
    model = project.experiments.model(name)
    parameters = next((count for one in predicted if (count := one.answer.get("parameters"))), None)
    return {
        "model": name,
        "source": _source(model.source.model_dump(exclude_none=True)),
        "parameters": parameters,
        "weights_gb": _weights_gb(project, name, parameters),
        "license": model.license,
        "license_link": model.license_link,
        "is_here": store.is_present(project.data, name, model),
        **{f"{one.method}_fits": one.fits() for one in predicted},
        **{f"{one.method}_margin_gb": one.margin_gb() for one in predicted},
        "because": next((one.because for one in predicted if one.because), None),
    }


def _source(source: dict[str, Any]) -> str:
    if parent := source.get("from"):
        drop = source.get("drop_layers")
        return f"from {parent}" + (f" without {_layers_in_words(drop)}" if drop is not None else "")
    named = source.get("wheel") or source.get("hub") or source.get("path") or f"random: {source.get('random')}"
    return ", ".join(named) if isinstance(named, list) else named


def _layers_in_words(drop: shortened.Drop) -> str:
    return f"layers {shortened.in_words(drop)}" if isinstance(drop, list) else f"{drop} layers"


def _weights_gb(project: Project, name: str, parameters: int | None) -> float | None:
    """The size of the weights on disk, or their expected size.

    The expected size is the number of weights times the width in their configuration. Packaged
    weights are unpacked as float32.
    """
    model = project.experiments.model(name)
    if store.is_present(project.data, name, model):
        folder = store.model_folder(project.data, name, model)
        files = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
        return sum(path.stat().st_size for path in files) / 1e9 if files else None
    width = 4 if model.origin.source.wheel else shipped.width_of(config_of(project.data, name, model) or {})
    return parameters * width / 1e9 if parameters else None


def render(listing: ModelList, form: Format, room: int | None = None) -> str:
    """One row per model; in text, notes are wrapped at `room` terminal cells."""
    if form == "json":
        return as_json(listing.rows)
    if form == "csv":
        return as_csv(listing.rows)
    fits = (text(method, "Whether training by this method fits, and the GB that remain.") for method in listing.methods)
    return tabulate(
        [_shown(row, listing.methods) for row in listing.rows], (*COLUMNS, *fits), _notes(listing), form, room
    )


def _shown(row: Row, methods: list[str]) -> Row:
    fits = {
        method: f"{verdict} {row[f'{method}_margin_gb']:+.1f}" if (verdict := row[f"{method}_fits"]) else None
        for method in methods
    }
    return {**row, "millions": row["parameters"] and row["parameters"] / 1e6, **fits}


def _notes(listing: ModelList) -> list[str]:
    links: dict[tuple[str, str], list[str]] = {}
    for row in listing.rows:
        if row["license_link"]:
            links.setdefault((row["license"], row["license_link"]), []).append(row["model"])
    return [
        f"Under a method: whether training fits this machine ({machine.machine_class()}, {listing.capacity_gb:.1f} GB), and the "
        "GB that remain free; tight: within the prediction's error. For all methods and for cards: `featherweight estimate MODEL`.",
        "here: the weights are in the data folder; `featherweight fetch MODEL` downloads the others.",
        *(f"licence {name}, {link}: {', '.join(models)}" for (name, link), models in links.items()),
        *(f"{row['model']}: {row['because']}" for row in listing.rows if row["because"]),
    ]
