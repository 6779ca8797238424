"""The fast paths of this trainer, and the architectures for which they are known to give the same
results.

A fast path takes less time or memory than transformers and PEFT. An architecture that is not in the
table trains by their code, and its row says so in `fast_paths`. A new entry needs a tiny model in
tests/tiny.py: tests compare its losses and gradients with the plain computation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.settings.methods import traits_of


@dataclass(frozen=True)
class Known:
    """The facts about an architecture that the fast paths need.

    `head`: the logits are only the output head's product, soft-capped if the configuration says so.
    Then `chunked` computes loss and gradient piece by piece. `gates`: the class of its gated unit,
    down(act(gate) × up), which `gated` makes keep two wide tensors rather than three.
    """

    head: bool = True
    gates: str | None = None


ARCHITECTURES = {
    # Both scale their logits.
    "cohere": Known(head=False, gates="CohereMLP"),
    "cohere2": Known(head=False, gates="Cohere2MLP"),
    "exaone4": Known(gates="Exaone4MLP"),
    "gemma": Known(gates="GemmaMLP"),
    "gemma2": Known(gates="Gemma2MLP"),
    # The vision model around gemma3_text.
    "gemma3": Known(gates="Gemma3MLP"),
    "gemma3_text": Known(gates="Gemma3MLP"),
    "glm4": Known(),
    "gpt2": Known(),
    "gpt_neo": Known(),
    "gpt_neox": Known(),
    # Divides its logits.
    "granite": Known(head=False, gates="GraniteMLP"),
    "helium": Known(gates="HeliumMLP"),
    "llama": Known(gates="LlamaMLP"),
    "ministral": Known(gates="MinistralMLP"),
    "mistral": Known(gates="MistralMLP"),
    "olmo": Known(gates="OlmoMLP"),
    "olmo2": Known(gates="Olmo2MLP"),
    "olmo3": Known(gates="Olmo3MLP"),
    "opt": Known(),
    "phi3": Known(),
    "qwen2": Known(gates="Qwen2MLP"),
    "qwen3": Known(gates="Qwen3MLP"),
    "smollm3": Known(gates="SmolLM3MLP"),
    "starcoder2": Known(),
}
# Sibling layers that read the same tensor, in any architecture. `adapters` computes their adapters
# together, and checks that they get the same tensor.
ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
UNKNOWN = Known(head=False)


def known_of(model: Any) -> Known:
    """The entry for the architecture of `model`, which may be inside DeepSpeed's engine or PEFT's
    model."""
    config = getattr(model, "module", model).config
    return ARCHITECTURES.get(config.model_type, UNKNOWN)


def active(model: Any, *, in_float32: bool) -> list[str]:
    """The fast paths that `model` uses as it is now: `head`, `gates`, `adapters` (if all of them
    do), `products`."""
    from pipelines.train.trainer.chunked import plain_head

    own = [module for module in model.modules() if "forward" in vars(module)]
    gates = known_of(model).gates
    states = {
        "head": plain_head(model) is not None,
        "gates": in_float32 and any(type(module).__name__ == gates for module in own),
        "adapters": adapters_are_grouped(model),
        "products": in_float32
        and any(type(module).__name__ in ("Linear", "Conv1D") and not hasattr(module, "lora_A") for module in own),
    }
    return [name for name, is_active in states.items() if is_active]


def adapters_are_grouped(model: Any) -> bool:
    """Whether `model` has adapters and `pipelines.train.trainer.adapters` computes all of them."""
    from pipelines.train.trainer.adapters import is_grouped

    adapted = [module for module in model.modules() if hasattr(module, "get_base_layer")]
    return bool(adapted) and all(map(is_grouped, adapted))


def covers_adapters(names: str | None, recipe: Mapping[str, Any]) -> bool | None:
    """Whether a run of `recipe` computed its adapters by a fast path; `names` is `fast_paths` of
    its row.

    None if the recipe has no adapter, or if the run ended before it reported its fast paths.
    """
    return "adapters" in names.split(", ") if names and traits_of(recipe).has_adapter else None
