"""What decides a cell's weights and measurements, taken together from every level of experiments.yaml."""

from typing import Any

from pipelines import weights
from pipelines.experiments import Experiments

# What is asked of a run but does not change its weights or what is measured of them stays out of the recipe.
OUTSIDE_RECIPE = (
    "eval_every_steps", "checkpoint_every_steps", "time_limit_minutes", "memory_budget_gb", "learning_rate_source",
    "target_loss", "report_to",
)  # fmt: skip


def recipe_of(experiments: Experiments, profile: str, model_name: str, method_name: str) -> dict[str, Any]:
    """All that decides a cell's weights and measurements, apart from data, seed, machine and the trainer's code."""
    model = experiments.model(model_name)
    method = experiments.method(method_name)
    source = weights.source_id(model.source)
    limits = {} if model.fp16 else {"fp16": False}
    template = {"template": model.template} if model.template else {}
    if method.kind == "none":
        settings = experiments.training_for(profile, model_name, method_name)
        plain = {"precision": settings.precision, "attention": settings.attention, "max_length": settings.max_length}
        fixed = {"quantization": None, "gradient_checkpointing": False}
        shots = {"shots": method.shots} if method.shots else {}
        return {
            "model": model_name,
            "source": source,
            "kind": "none",
            "prompt": model.prompt,
            **template,
            **plain,
            **fixed,
            **limits,
            **shots,
        }
    settings = experiments.training_for(profile, model_name, method_name)
    decided = {k: v for k, v in settings.model_dump().items() if k not in OUTSIDE_RECIPE}
    if not isinstance(settings.learning_rate, list):
        del decided["search_share"]
    if settings.turns == "all":
        del decided["turns"]
    if settings.early_stop_patience:  # evaluations then decide when training ends
        decided["eval_every_steps"] = settings.eval_every_steps
    decided["targets"] = experiments.targets_for(model_name, settings) if method.kind == "lora" else None
    adapter = {
        "rank": method.rank,
        "alpha": method.alpha,
        "dropout": method.dropout,
        "rslora": method.rslora,
        "dora": method.dora,
        "quantization": method.quantization,
        "double_quantization": method.quantization in ("nf4", "fp4") and method.double_quantization is not False,
    }
    return {
        "model": model_name,
        "source": source,
        "kind": method.kind,
        "prompt": model.prompt,
        **template,
        **decided,
        **adapter,
        **limits,
    }
