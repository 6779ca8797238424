"""The recipe: all settings of experiments.yaml that decide a cell's weights and measurements."""

from collections.abc import Mapping
from typing import Any

from pipelines.settings.experiments import Experiments
from pipelines.settings.method_settings import Method
from pipelines.settings.methods import FOUR_BITS, SHORT_FORM
from pipelines.settings.retrieval import Retrieval
from pipelines.settings.training import TrainingSettings
from pipelines.weights import store

# Settings that change neither the weights nor their measurements are not part of the recipe.
OUTSIDE_RECIPE = (
    "eval_every_steps", "curve_records", "checkpoint_every_steps", "checkpoint_every_minutes", "time_limit_minutes",
    "memory_budget_gb", "learning_rate_source", "target_loss", "report_to",
)  # fmt: skip


def recipe_of(experiments: Experiments, profile: str, model_name: str, method_name: str) -> dict[str, Any]:
    """Everything that decides a cell's results, except data, seed, machine and code."""
    model, method = experiments.model(model_name), experiments.method(method_name)
    settings = experiments.training_for(profile, model_name, method_name)
    decided = _base_recipe(method, settings)
    if method.traits.trains:
        decided = _trained_recipe(experiments, model_name, method, settings)
    return {
        "model": model_name,
        "source": store.source_id(model),
        "kind": method.kind,
        "prompt": model.prompt,
        **({"template": model.template} if model.template else {}),
        **decided,
        **({} if model.fp16 else {"fp16": False}),
    }


def _unused_search_settings(settings: TrainingSettings) -> tuple[str, ...]:
    """Search settings without effect on the cell's learning rate, which is fixed, or the best of a
    list, or from `auto`."""
    if settings.learning_rate_default is not None:
        return ("search_share",)
    if isinstance(settings.learning_rate, list):
        return ("search_cap", "learning_rate_default")
    return ("search_share", "search_cap", "learning_rate_default")


def _base_recipe(method: Method, settings: TrainingSettings) -> dict[str, Any]:
    plain = {name: getattr(settings, name) for name in ("precision", "attention", "max_length")}
    shots: dict[str, Any] = {"shots": method.shots} if method.shots else {}
    if method.retrieval:
        shots["retrieval"] = looked_up(method.retrieval)
    return {**plain, "quantization": None, "gradient_checkpointing": False, **shots}


def looked_up(retrieval: Retrieval) -> dict[str, Any]:
    """The settings that decide which records or passages a prompt gets, without the content of
    those and of the embedding model."""
    settings: dict[str, Any] = {"by": retrieval.by, "k": retrieval.k}
    if retrieval.rewrites:
        settings["ranked_by"] = retrieval.ranker
    if retrieval.documents:
        return {"from": "documents", **settings, "passage_chars": retrieval.passage_chars}
    return {"from": "train", **settings}


def shows_examples(recipe: Mapping[str, Any]) -> bool:
    """Whether the prompts of an untrained model contain train records."""
    return bool(recipe.get("shots")) or (recipe.get("retrieval") or {}).get("from") == "train"


def _trained_recipe(experiments: Experiments, model: str, method: Method, settings: TrainingSettings) -> dict[str, Any]:
    decided = {k: v for k, v in settings.model_dump().items() if k not in OUTSIDE_RECIPE}
    for name in _unused_search_settings(settings):
        del decided[name]
    if not settings.fit_micro_batch:
        del decided["fit_micro_batch"]
    if settings.turns == "all":
        del decided["turns"]
    # With early stopping the evaluations decide when training ends.
    if settings.early_stop_patience:
        decided["eval_every_steps"] = settings.eval_every_steps
    traits = method.traits
    decided["targets"] = None
    if traits.has_adapter and not traits.chooses_modules:
        decided["targets"] = experiments.targets_for(model, settings)
    adapter: dict[str, Any] = (
        {"peft": dict(traits.peft)} if method.peft is not None else {name: getattr(method, name) for name in SHORT_FORM}
    )
    if method.loraplus_lr_ratio:
        adapter["loraplus_lr_ratio"] = method.loraplus_lr_ratio
    double = method.quantization in FOUR_BITS and method.double_quantization is not False
    return {**decided, **adapter, "quantization": method.quantization, "double_quantization": double}
