"""Methods: what is trained of a model, and how."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, PositiveFloat, PositiveInt, model_validator

from pipelines.settings.methods import FOUR_BITS, LORA_FA, SHORT_FORM, Kind, Traits, own_form, short_form
from pipelines.settings.retrieval import Retrieval
from pipelines.settings.strict import Strict
from pipelines.settings.training import TrainingOverrides


class DataChoice(Strict):
    """The examples that a method trains on. Evaluation is the same for all methods."""

    provider: str | None = None
    """Train only on this provider's records. Unset: on all that the profile selects."""
    max_examples: PositiveInt | None = None
    """Highest number of train examples. Unset: the profile's `max_train_examples`."""


class Method(TrainingOverrides):
    """What is trained of a model, and how."""

    kind: Kind
    """What is trained: nothing, every weight, a LoRA adapter by the settings below, or any other
    adapter of PEFT."""
    shots: PositiveInt | None = None
    """Train examples in every prompt, always the same ones (kind none only). Unset: none."""
    retrieval: Retrieval | None = None
    """Retrieval for each prompt (kind none only). Unset: nothing."""
    data: DataChoice | None = None
    """The train records that the method learns from. Unset: all that the profile selects."""
    rank: PositiveInt | None = None
    """Rank of the adapter (kind lora only, which needs it)."""
    alpha: PositiveFloat | None = None
    """Scaling of the adapter, which is multiplied by alpha / rank (kind lora only). Unset: twice
    the rank."""
    dropout: Annotated[float, Field(ge=0, le=0.95)] | None = None
    """Share of an adapter's inputs that is dropped in training (kind lora only). Unset: 0, none."""
    rslora: bool = False
    """Whether the adapter is multiplied by alpha / √rank instead of alpha / rank (kind lora
    only)."""
    dora: bool = False
    """Whether magnitude and direction of each weight are learned separately (kind lora only)."""
    peft: dict[str, JsonValue] | None = None
    """Settings of PEFT's own configuration class, `peft_type` first (kind adapter only, which needs
    it)."""
    quantization: Literal["nf4", "fp4", "int8"] | None = None
    """Format of the frozen base in memory (kinds lora and adapter). Unset: unquantized."""
    double_quantization: bool | None = None
    """Whether the scales of a 4-bit base are quantized too. Unset: true for nf4 and fp4."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "lorafa"] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """As under `training`, and `lorafa`, which trains only LoRA's B. Unset: that of the level
    below."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Learning rate of LoRA's B over that of its A (LoRA+). Unset: one rate for both."""

    @model_validator(mode="after")
    def _check_kind(self) -> "Method":
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
            raise ValueError(f"retrieval: the lookup for the prompt belongs to kind none, not {self.kind}")
        if self.retrieval and self.shots:
            raise ValueError("shots and retrieval both fill the prompt: leave one out")

    @model_validator(mode="after")
    def _check_peft(self) -> "Method":
        takes_peft = Traits(self.kind).has_adapter and not Traits(self.kind).is_short
        if takes_peft and self.peft is None:
            raise ValueError("kind adapter needs peft: {peft_type: VERA, r: 256, …}, the settings of a class of PEFT")
        if self.peft is not None and not takes_peft:
            raise ValueError(f"peft: such settings belong to kind adapter, not {self.kind}")
        # `traits` comes first: it validates the keys of peft.
        if self.traits.chooses_modules and self.targets:
            raise ValueError("targets and peft.target_modules both name the modules: leave one out")
        return self

    @model_validator(mode="after")
    def _check_lora_optimizers(self) -> "Method":
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
        """Whether it is the untouched model with a prompt of nothing but the question: the
        reference of all other methods."""
        return not self.traits.trains and not self.shots and not self.retrieval

    @property
    def traits(self) -> Traits:
        """The properties of the method that the rest of the code depends on."""
        if self.peft is not None:
            return Traits(self.kind, own_form(self.peft), self.quantization)
        settings = short_form(self.model_dump()) if Traits(self.kind).is_short else {}
        return Traits(self.kind, settings, self.quantization)
