"""The traits of a method: everything that the rest of the code must know about how methods differ.

Kind `none` trains nothing and `full` trains every weight. Kind `adapter` trains any adapter of PEFT
on a frozen model, by the settings of PEFT's own configuration class. Kind `lora` is a short form of
such settings.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["none", "full", "lora", "adapter"]
SHORT: Kind = "lora"
# Names of the learning rates in experiments.yaml.
RateOf = Literal["full", "lora"]
DEFAULT_RATES: dict[RateOf, float] = {"full": 2e-5, "lora": 2e-4}
# A rank is stored as a 32-bit number, so it must be smaller.
RANK_LIMIT = 2**31
FOUR_BITS = ("nf4", "fp4")
# Settings of `kind: lora`.
SHORT_FORM = ("rank", "alpha", "dropout", "rslora", "dora")
# The optimizer of LoRA-FA.
LORA_FA = "lorafa"
# Types of PEFT that learn virtual tokens: as embeddings before a text, or as keys and values in
# attention's cache.
AS_EMBEDDINGS = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
AS_KEYS = ("PREFIX_TUNING", "CARTRIDGE")
MOVES_RANKS = "ADALORA"
# Values of init_lora_weights, or their prefixes, with which PEFT changes the base weights.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga")
# Keys of PEFT's configuration that the trainer sets.
TRAINER_KEYS = (
    "task_type",
    "inference_mode",
    "base_model_name_or_path",
    "auto_mapping",
    "revision",
    "peft_version",
    "runtime_config",
)


@dataclass(frozen=True)
class Traits:
    """`peft`: the arguments of PEFT's configuration class, with `peft_type`, without the modules
    that get the adapter."""

    kind: Kind
    peft: Mapping[str, Any] = field(default_factory=dict)
    quantization: str | None = None

    @property
    def trains(self) -> bool:
        return self.kind != "none"

    @property
    def trains_all(self) -> bool:
        """Whether every weight trains, so that the result is a complete model."""
        return self.kind == "full"

    @property
    def has_adapter(self) -> bool:
        """Whether the trained weights lie beside a frozen base."""
        return self.kind in (SHORT, "adapter")

    @property
    def is_short(self) -> bool:
        """Whether the settings are those of `kind: lora`, not PEFT's own."""
        return self.kind == SHORT

    @property
    def can_quantize(self) -> bool:
        """Whether the base may be kept in 4 or 8 bits, which a trained one may not."""
        return self.has_adapter

    @property
    def can_have_shots(self) -> bool:
        """Whether the prompt may hold examples.

        Only a model that does not train on them may have them.
        """
        return not self.trains

    @property
    def rate(self) -> RateOf:
        return "lora" if self.has_adapter else "full"

    @property
    def peft_type(self) -> str | None:
        return self.peft.get("peft_type")

    @property
    def rank(self) -> int | None:
        """The adapter's rank, if the settings name one. If ranks move, their final mean."""
        rank = self.peft.get("target_r" if self.moves_ranks else "r")
        return rank if type(rank) is int and 0 < rank < RANK_LIMIT else None

    @property
    def alpha(self) -> float | None:
        """The adapter's scaling factor, if the settings name one.

        PEFT's types have two names for it.
        """
        alpha = self.peft.get("lora_alpha", self.peft.get("alpha"))
        return float(alpha) if type(alpha) in (int, float) and math.isfinite(alpha) else None

    @property
    def virtual_tokens(self) -> int:
        """The number of virtual tokens that the adapter puts before every text."""
        count = self.peft.get("num_virtual_tokens") if self.peft_type in (*AS_EMBEDDINGS, *AS_KEYS) else None
        return max(0, count) if isinstance(count, int) else 0

    @property
    def moves_ranks(self) -> bool:
        """Whether training moves ranks between layers (AdaLoRA)."""
        return self.peft_type == MOVES_RANKS

    @property
    def starts_from_texts(self) -> bool:
        """Whether the initial weights come from the base's activations on training texts (EVA)."""
        return self.peft_type == "LORA" and self.peft.get("init_lora_weights") == "eva"

    @property
    def starts_from_rounding(self) -> bool:
        """Whether the initial weights compensate the quantized base's rounding (LoftQ)."""
        return self.peft_type == "LORA" and self.peft.get("init_lora_weights") == "loftq"

    @property
    def chooses_modules(self) -> bool:
        """Whether PEFT's settings name the modules that get the adapter."""
        return self.peft.get("target_modules") is not None

    @property
    def can_merge(self) -> bool:
        """Whether the adapter can be merged into the base for serving.

        Not into a quantized base: rounding the sum to 4 or 8 bits again would make another model.
        """
        return self.has_adapter and not self.quantization and not self.virtual_tokens

    @property
    def why_not_mixed(self) -> str | None:
        """Why PEFT cannot run several such adapters in one batch, or None if it can."""
        if self.peft_type != "LORA":
            return f"PEFT mixes adapters of LoRA in a batch, none of {self.peft_type}"
        if str(self.peft.get("init_lora_weights")).startswith(CHANGE_THE_BASE):
            return "PEFT changes the base once more for every such adapter that it loads"
        if self.peft.get("bias", "none") != "none":
            return "PEFT mixes no adapters that train biases in a batch"
        return "PEFT mixes no adapters of DoRA in a batch" if self.peft.get("use_dora") else None

    @property
    def an_adapter(self) -> str:
        """A phrase for a model card: `A LoRA adapter`, `An adapter by PEFT's VERA`."""
        if self.peft_type != "LORA":
            return f"An adapter by PEFT's {self.peft_type}"
        return f"A {'DoRA' if self.peft.get('use_dora') else 'LoRA'} adapter"


def traits_of(recipe: Mapping[str, Any]) -> Traits:
    """The traits of a cell's recipe, in the form of `pipelines.recipe` and of every spec."""
    # The spec of a run whose file is lost has no kind.
    kind = recipe.get("kind", "none")
    if kind == SHORT:
        return Traits(kind, short_form({name: recipe.get(name) for name in SHORT_FORM}), recipe.get("quantization"))
    return Traits(kind, recipe.get("peft") or {}, recipe.get("quantization"))


def short_form(settings: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's settings for those of `kind: lora`.

    Alpha defaults to twice the rank. `rslora` scales by alpha / sqrt(rank) instead of alpha / rank
    (Kalajdzievski 2023). `dora` learns magnitude and direction separately (Liu et al. 2024).
    """
    rank = settings["rank"]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": settings["alpha"] or (2 * rank if rank else None),
        "lora_dropout": settings["dropout"] or 0.0,
        "use_rslora": bool(settings["rslora"]),
        "use_dora": bool(settings["dora"]),
    }


def own_form(peft: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's settings from an experiments.yaml, with the type in PEFT's spelling.

    Raises:
        ValueError: no type, or a setting that the trainer makes.
    """
    if not isinstance(peft.get("peft_type"), str):
        raise ValueError(f"got {dict(peft)}; expected peft_type, such as VERA, and the settings of its class in PEFT")
    if own := [name for name in TRAINER_KEYS if name in peft]:
        raise ValueError(f"{', '.join(own)}: set by the trainer, not by a method; leave it out")
    own = {**peft, "peft_type": peft["peft_type"].strip().upper()}
    if own["peft_type"] == MOVES_RANKS and "total_step" in own:
        raise ValueError("total_step: the trainer sets it to the number of optimizer steps; leave it out")
    return own


def optimizer_of(recipe: Mapping[str, Any]) -> str | None:
    """The optimizer of a cell's recipe as the tables name it: `adamw`, `adamw, LoRA+ 16`; None if
    nothing trains."""
    ratio = recipe.get("loraplus_lr_ratio")
    return f"{recipe.get('optimizer')}, LoRA+ {ratio:g}" if ratio else recipe.get("optimizer")
