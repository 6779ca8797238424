"""What this trainer computes faster or in less memory than transformers and PEFT do, and for which architectures that is known to
be the same: one table. An architecture that is not in it trains by their own code, and its row says so in `fast_paths`.

A new row wants its tiny model in tests/tiny.py, whose losses and gradients are then held against the plain computation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.settings.methods import traits_of


@dataclass(frozen=True)
class Known:
    """`head`: the logits are the output head's product alone, soft-capped where the configuration says so, so that loss and
    gradient are made a piece of the positions at a time (`chunked`). `gates`: the class of its gated unit, down(act(gate) × up),
    which then keeps two wide tensors rather than three (`gated`)."""

    head: bool = True
    gates: str | None = None


ARCHITECTURES = {
    "cohere": Known(head=False, gates="CohereMLP"),  # scales its logits
    "cohere2": Known(head=False, gates="Cohere2MLP"),
    "exaone4": Known(gates="Exaone4MLP"),
    "gemma": Known(gates="GemmaMLP"),
    "gemma2": Known(gates="Gemma2MLP"),
    "gemma3": Known(gates="Gemma3MLP"),  # gemma3_text with eyes
    "gemma3_text": Known(gates="Gemma3MLP"),
    "glm4": Known(),
    "gpt2": Known(),
    "gpt_neo": Known(),
    "gpt_neox": Known(),
    "granite": Known(head=False, gates="GraniteMLP"),  # divides its logits
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
# siblings that read the same tensor, in any architecture: their adapters are computed together (`adapters`, which sees to it that
# the tensor is one)
ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
UNKNOWN = Known(head=False)


def known_of(model: Any) -> Known:
    """What is known of the architecture of `model`, which may stand inside DeepSpeed's engine or PEFT's model."""
    config = getattr(model, "module", model).config
    return ARCHITECTURES.get(config.model_type, UNKNOWN)


def active(model: Any, *, in_float32: bool) -> list[str]:
    """The fast paths that `model` runs with, as it is now: `head`, `gates`, `adapters` (where it holds for all of them),
    `products`."""
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
    """Whether `model` has adapters, and `pipelines.train.trainer.adapters` computes every one of them."""
    from pipelines.train.trainer.adapters import is_grouped

    adapted = [module for module in model.modules() if hasattr(module, "get_base_layer")]
    return bool(adapted) and all(map(is_grouped, adapted))


def covers_adapters(names: str | None, recipe: Mapping[str, Any]) -> bool | None:
    """Whether a run of `recipe` that told of these fast paths (`fast_paths` of its row) computed its adapters by one; None where it
    has none, or never came so far as to tell."""
    return "adapters" in names.split(", ") if names and traits_of(recipe).has_adapter else None
