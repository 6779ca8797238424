"""Methods: what is trained of a model, and how."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, PositiveFloat, PositiveInt, model_validator

from pipelines.settings.methods import FOUR_BITS, LORA_FA, SHORT_FORM, Kind, Traits, own_form, short_form
from pipelines.settings.retrieval import Retrieval
from pipelines.settings.strict import Strict
from pipelines.settings.training import TrainingOverrides


class DataChoice(Strict):
    """What of the examples a method trains on. Evaluation is the same for all."""

    provider: str | None = None
    """Train only on this provider's records. Unset: on all that the profile selects."""
    max_examples: PositiveInt | None = None
    """Train on at most so many examples. Unset: the profile's `max_train_examples`."""


class Method(TrainingOverrides):
    """What is trained of a model, and how."""

    kind: Kind
    """What is trained: nothing, every weight, a LoRA adapter by the settings below, or any other adapter of PEFT."""
    shots: PositiveInt | None = None
    """Train examples that stand in every prompt, always the same (kind none alone). Unset: none."""
    retrieval: Retrieval | None = None
    """What is looked up for each prompt (kind none alone). Unset: nothing."""
    data: DataChoice | None = None
    """What of the train records the method learns from. Unset: all that the profile selects."""
    rank: PositiveInt | None = None
    """Rank of the adapter (kind lora alone, which needs it)."""
    alpha: PositiveFloat | None = None
    """Scaling of the adapter, which is multiplied by alpha / rank (kind lora alone). Unset: twice the rank."""
    dropout: Annotated[float, Field(ge=0, le=0.95)] | None = None
    """Share of an adapter's inputs that is dropped in training (kind lora alone). Unset: 0, none."""
    rslora: bool = False
    """Whether the adapter is multiplied by alpha / √rank instead of alpha / rank (kind lora alone)."""
    dora: bool = False
    """Whether magnitude and direction of each weight are learned apart (kind lora alone)."""
    peft: dict[str, JsonValue] | None = None
    """Settings of PEFT's own configuration class, `peft_type` first (kind adapter alone, which needs it)."""
    quantization: Literal["nf4", "fp4", "int8"] | None = None
    """Format in which the frozen base lies in memory (kinds lora and adapter). Unset: unquantized."""
    double_quantization: bool | None = None
    """Whether the scales of a 4-bit base are quantized too. Unset: true for nf4 and fp4."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "lorafa"] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """As under `training`, and `lorafa`, which trains LoRA's B alone. Unset: that of the level below."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Learning rate of LoRA's B over that of its A (LoRA+). Unset: one rate for both."""

    @model_validator(mode="after")
    def _own_settings(self) -> "Method":
        traits = Traits(self.kind)
        if traits.is_short and self.rank is None:
            raise ValueError(f"kind {self.kind} needs rank (8, 128, ...)")
        names = [name for name in SHORT_FORM if getattr(self, name)]
        if names and not traits.is_short:
            raise ValueError(f"{', '.join(names)}: such settings belong to kind lora, not {self.kind}")
        if self.quantization and not traits.can_quantize:
            raise ValueError(f"quantization: only the base of an adapter is quantized, not that of kind {self.kind}")
        if self.double_quantization is not None and self.quantization not in FOUR_BITS:
            raise ValueError("double_quantization needs quantization: nf4 or fp4")
        self._check_prompt(traits)
        if self.data and not traits.trains:
            raise ValueError(f"kind {self.kind} trains on nothing: data does not belong to it")
        return self

    def _check_prompt(self, traits: Traits) -> None:
        if self.shots and not traits.can_have_shots:
            raise ValueError(f"shots: examples in the prompt belong to kind none, not {self.kind}")
        if self.retrieval and not traits.can_have_shots:
            raise ValueError(f"retrieval: what is looked up for the prompt belongs to kind none, not {self.kind}")
        if self.retrieval and self.shots:
            raise ValueError("shots and retrieval both fill the prompt: leave one out")

    @model_validator(mode="after")
    def _pefts_settings(self) -> "Method":
        takes = Traits(self.kind).has_adapter and not Traits(self.kind).is_short
        if takes and self.peft is None:
            raise ValueError("kind adapter needs peft: {peft_type: VERA, r: 256, …}, the settings of a class of PEFT")
        if self.peft is not None and not takes:
            raise ValueError(f"peft: such settings belong to kind adapter, not {self.kind}")
        if self.traits.chooses_modules and self.targets:  # in this order: the first looks at what is given
            raise ValueError("targets and peft.target_modules both name the modules: leave one out")
        return self

    @model_validator(mode="after")
    def _loras_optimizers(self) -> "Method":
        options = {"loraplus_lr_ratio": self.loraplus_lr_ratio, "optimizer: lorafa": self.optimizer == LORA_FA}
        names = [name for name, is_set in options.items() if is_set]
        if names and self.traits.peft_type != "LORA":
            raise ValueError(
                f"{names[0]}: only LoRA has an A and a B: expected kind lora, or adapter with peft_type LORA"
            )
        if len(names) == 2:
            raise ValueError("loraplus_lr_ratio and optimizer: lorafa exclude each other: LoRA-FA does not train A")
        return self

    @property
    def is_base(self) -> bool:
        """Whether it is the untouched model, asked with nothing but the question: what all others are compared with."""
        return not self.traits.trains and not self.shots and not self.retrieval

    @property
    def traits(self) -> Traits:
        """What the rest of the code must know of the method."""
        if self.peft is not None:
            return Traits(self.kind, own_form(self.peft), self.quantization)
        settings = short_form(self.model_dump()) if Traits(self.kind).is_short else {}
        return Traits(self.kind, settings, self.quantization)
