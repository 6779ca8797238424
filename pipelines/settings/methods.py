"""What the rest of the code must know of a method, asked of one object. How methods differ is said in this file alone.

`none` trains nothing, `full` every weight, `adapter` whatever PEFT puts on a frozen model, by the settings of its own configuration
class; `lora` is the short form of such settings.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["none", "full", "lora", "adapter"]
SHORT: Kind = "lora"
RateOf = Literal["full", "lora"]  # names of the learning rates of experiments.yaml
DEFAULT_RATES: dict[RateOf, float] = {"full": 2e-5, "lora": 2e-4}
MOST_RANK = 2**31  # exclusive: a rank is shown as a 32-bit number
FOUR_BITS = ("nf4", "fp4")
SHORT_FORM = ("rank", "alpha", "dropout", "rslora", "dora")  # settings of `kind: lora`
LORA_FA = "lorafa"  # the optimizer of LoRA-FA
# Types of PEFT that learn tokens of their own: as embeddings before a text, or as keys and values that attention finds in its cache
AS_EMBEDDINGS = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
AS_KEYS = ("PREFIX_TUNING", "CARTRIDGE")
MOVES_RANKS = "ADALORA"
CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga")  # values of init_lora_weights, or how they begin
OURS = (
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
    """`peft`: what PEFT's configuration class is given, `peft_type` among it, without the modules that get the adapter."""

    kind: Kind
    peft: Mapping[str, Any] = field(default_factory=dict)
    quantization: str | None = None

    @property
    def trains(self) -> bool:
        return self.kind != "none"

    @property
    def trains_all(self) -> bool:
        """Every weight, so that the result is a model of its own."""
        return self.kind == "full"

    @property
    def has_adapter(self) -> bool:
        """What is trained lies beside a base that stays as it is."""
        return self.kind in (SHORT, "adapter")

    @property
    def is_short(self) -> bool:
        """The settings are those of `kind: lora`, not PEFT's own."""
        return self.kind == SHORT

    @property
    def can_quantize(self) -> bool:
        """The base may be kept in 4 or 8 bits, since it is not trained."""
        return self.has_adapter

    @property
    def can_have_shots(self) -> bool:
        """Examples may stand in the prompt: only of a model that learns them in no other way."""
        return not self.trains

    @property
    def rate(self) -> RateOf:
        return "lora" if self.has_adapter else "full"

    @property
    def peft_type(self) -> str | None:
        return self.peft.get("peft_type")

    @property
    def rank(self) -> int | None:
        """The adapter's rank, where the settings name one; where ranks move, the mean that they end with."""
        rank = self.peft.get("target_r" if self.moves_ranks else "r")
        return rank if type(rank) is int and 0 < rank < MOST_RANK else None

    @property
    def alpha(self) -> float | None:
        """The adapter's scaling factor, where the settings name one; its types spell it in two ways."""
        alpha = self.peft.get("lora_alpha", self.peft.get("alpha"))
        return float(alpha) if type(alpha) in (int, float) and math.isfinite(alpha) else None

    @property
    def virtual_tokens(self) -> int:
        """Tokens of its own that the adapter puts before every text."""
        count = self.peft.get("num_virtual_tokens") if self.peft_type in (*AS_EMBEDDINGS, *AS_KEYS) else None
        return max(0, count) if isinstance(count, int) else 0

    @property
    def moves_ranks(self) -> bool:
        """It takes ranks from layers that need them less while it trains (AdaLoRA)."""
        return self.peft_type == MOVES_RANKS

    @property
    def starts_from_texts(self) -> bool:
        """Its first weights come from what the base makes of training texts (EVA)."""
        return self.peft_type == "LORA" and self.peft.get("init_lora_weights") == "eva"

    @property
    def starts_from_rounding(self) -> bool:
        """Its first weights make up for what quantizing the base has rounded off (LoftQ)."""
        return self.peft_type == "LORA" and self.peft.get("init_lora_weights") == "loftq"

    @property
    def chooses_modules(self) -> bool:
        """Its own settings say which modules get the adapter."""
        return self.peft.get("target_modules") is not None

    @property
    def can_merge(self) -> bool:
        """For serving. A quantized base is not merged into: rounding the sum to 4 or 8 bits again would make another model."""
        return self.has_adapter and not self.quantization and not self.virtual_tokens

    @property
    def why_not_mixed(self) -> str | None:
        """Why PEFT cannot let several such adapters answer in one batch, None where it can."""
        if self.peft_type != "LORA":
            return f"PEFT mixes adapters of LoRA in a batch, none of {self.peft_type}"
        if str(self.peft.get("init_lora_weights")).startswith(CHANGE_THE_BASE):
            return "PEFT changes the base once more for every such adapter that it loads"
        if self.peft.get("bias", "none") != "none":
            return "PEFT mixes no adapters that train biases in a batch"
        return "PEFT mixes no adapters of DoRA in a batch" if self.peft.get("use_dora") else None

    @property
    def an_adapter(self) -> str:
        """In a sentence of a model card: `A LoRA adapter`, `A VERA adapter of PEFT's`."""
        if self.peft_type != "LORA":
            return f"An adapter by PEFT's {self.peft_type}"
        return f"A {'DoRA' if self.peft.get('use_dora') else 'LoRA'} adapter"


def traits_of(recipe: Mapping[str, Any]) -> Traits:
    """Of a cell's recipe, as `pipelines.recipe` makes it and every spec holds it."""
    kind = recipe.get("kind", "none")  # none stands in the spec of a run whose file is lost
    if kind == SHORT:
        return Traits(kind, short_form({name: recipe.get(name) for name in SHORT_FORM}), recipe.get("quantization"))
    return Traits(kind, recipe.get("peft") or {}, recipe.get("quantization"))


def short_form(settings: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's settings for those of `kind: lora`. Alpha is twice the rank where none is given; `rslora` scales by alpha / sqrt(rank)
    rather than alpha / rank (Kalajdzievski 2023), `dora` learns magnitude and direction apart (Liu et al. 2024)."""
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
    """PEFT's settings as an experiments.yaml states them, the type in PEFT's spelling.

    Raises:
        ValueError: no type, or a setting that is not the user's to make.
    """
    if not isinstance(peft.get("peft_type"), str):
        raise ValueError(f"got {dict(peft)}; expected peft_type, such as VERA, and the settings of its class in PEFT")
    if own := [name for name in OURS if name in peft]:
        raise ValueError(f"{', '.join(own)}: set by the trainer, not by a method; leave it out")
    own = {**peft, "peft_type": peft["peft_type"].strip().upper()}
    if own["peft_type"] == MOVES_RANKS and "total_step" in own:
        raise ValueError("total_step: the trainer sets it to the number of optimizer steps; leave it out")
    return own


def optimizer_of(recipe: Mapping[str, Any]) -> str | None:
    """The optimizer of a cell's recipe as the tables name it: `adamw`, `adamw, LoRA+ 16`; None where nothing trains."""
    ratio = recipe.get("loraplus_lr_ratio")
    return f"{recipe.get('optimizer')}, LoRA+ {ratio:g}" if ratio else recipe.get("optimizer")
