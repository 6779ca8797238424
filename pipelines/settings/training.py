"""Training settings: those of each level of the file, and the decided ones of a cell."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from pipelines.settings.methods import RateOf
from pipelines.settings.strict import Share, Strict

# One rate, or several from which a search picks the best.
Rates = PositiveFloat | Annotated[list[PositiveFloat], Field(min_length=2)]
# `auto` stands for several rates that fit the method.
Rate = Rates | Literal["auto"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


class LearningRates(Strict):
    """One rate for full fine-tuning and one for adapters.

    A missing one comes from the level below.
    """

    full: Rate | None = None
    """Peak learning rate of full fine-tuning: one, a list to search, or `auto`. Unset: that of the
    level below."""
    lora: Rate | None = None
    """Peak learning rate of LoRA and every other adapter: one, a list to search, or `auto`. Unset:
    that of the level below."""

    @model_validator(mode="after")
    def _require_rate(self) -> "LearningRates":
        if self.full is None and self.lora is None:
            raise ValueError("expected full, lora or both")
        return self


# Keys of a method that people write under `training`.
METHOD_KEYS = (
    "kind", "shots", "retrieval", "data", "rank", "alpha", "dropout", "rslora", "dora", "peft", "quantization",
    "double_quantization", "loraplus_lr_ratio",
)  # fmt: skip


class TrainingOverrides(Strict):
    """Settings of training.

    A setting that one level of the file leaves out comes from the level below.
    """

    belongs_elsewhere: ClassVar[Mapping[str, str]] = {
        name: f"it is a method's: write it under methods:, such as methods: {{lora-r8: {{{name}: …}}}}"
        for name in METHOD_KEYS
    }

    learning_rate: LearningRates | Rate | None = None
    """Peak learning rate: one, a list to search for the best, `auto`, or one for each of full and
    lora."""
    learning_rate_source: Literal["tune"] | None = None
    """Notes that `featherweight tune` wrote the rate; training ignores it. Unset: the level that
    named the rate."""
    search_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Steps of each trial of a list of learning rates, as a share of the cell's own."""
    search_cap: Annotated[float, Field(gt=0, le=1)] | None = None
    """Steps of all trials of `learning_rate: auto` together, as a share of the cell's own."""
    epochs: PositiveFloat | None = None
    """Passes over the train records."""
    examples_per_step: PositiveInt | None = None
    """Examples of one optimizer step, however many micro-batches it takes."""
    micro_batch_tokens: PositiveInt | None = None
    """Padded tokens of one forward pass, at most."""
    fit_micro_batch: bool | None = None
    """Whether micro-batches that do not fit into memory are halved until they do."""
    max_length: Annotated[int, Field(ge=16)] | None = None
    """Tokens of one example, at most; longer ones are left out and counted in `truncated_share`."""
    warmup_share: Share | None = None
    """Share of the steps in which the learning rate rises, before its cosine."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """AdamW's weight decay."""
    gradient_clip: PositiveFloat | None = None
    """Norm that gradients are clipped to."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] | None = None
    """Optimizer; the 8-bit ones need a quarter of the memory for its states, the paged one may move
    them off the GPU."""
    gradient_checkpointing: bool | None = None
    """Whether the backward pass recomputes activations: less memory, more time."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] | None = None
    """Number format of training; `auto` is bf16 or fp16 on a GPU, by its generation, and fp32 on a
    CPU."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] | None = None
    """Attention kernel; `auto` is flash attention where it is installed and the GPU supports it,
    else sdpa, else eager."""
    targets: Literal["all-linear", "attention"] | Annotated[list[str], Field(min_length=1)] | None = None
    """Modules that get an adapter: all linear layers (the model's `lora_targets`), those of
    attention, or a list of names."""
    early_stop_patience: PositiveInt | None = None
    """Evaluations without a better validation loss after which training stops. Unset: it never
    stops early."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the train records that is held back for early stopping or for the choice of a
    learning rate."""
    eval_every_steps: PositiveInt | None = None
    """Optimizer steps between two evaluations of the curve."""
    curve_records: PositiveInt | None = None
    """Held-out records that the curve is measured on, at most; the losses of the row are those of
    all."""
    checkpoint_every_steps: PositiveInt | None = None
    """Optimizer steps between two checkpoints. Unset: they come by `checkpoint_every_minutes`."""
    checkpoint_every_minutes: PositiveFloat | None = None
    """Time between two checkpoints, longer where writing one takes more than 5 % of it."""
    time_limit_minutes: PositiveFloat | None = None
    """Time of one attempt, after which it is stopped as `timed_out`, with a checkpoint."""
    memory_budget_gb: PositiveFloat | None = None
    """Memory of one device that a cell may use, as on a smaller machine or card. Unset: all there
    is."""
    target_loss: PositiveFloat | None = None
    """Loss on held-out records that `seconds_to_target` measures. Unset: the worst final loss of
    the model's comparable rows."""
    turns: Literal["all", "last"] | None = None
    """Answers that are learned of a conversation whose template rewrites earlier turns: all, or the
    last."""
    report_to: list[Tracker] | None = None
    """Trackers that receive each step, beside the lake."""

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _check_form(cls, rate: Any) -> Any:
        """Runs before pydantic tries each form of the union, so that there is one message and not
        one for each form."""
        if isinstance(rate, list) and len(rate) < 2:
            raise ValueError(f"got {rate}; expected one rate, two or more to try, auto, or {{full: …, lora: …}}")
        if isinstance(rate, str) and rate != "auto" and not _is_number(rate):
            raise ValueError(f"got {rate!r}; expected one rate, two or more to try, auto, or {{full: …, lora: …}}")
        return rate

    @model_validator(mode="after")
    def _check_rates(self) -> "TrainingOverrides":
        rate = self.learning_rate
        for rates in (rate.full, rate.lora) if isinstance(rate, LearningRates) else (rate,):
            if isinstance(rates, list) and len(set(rates)) < len(rates):
                raise ValueError(f"learning_rate: expected different rates to try (got {rates})")
        return self

    def rate_for(self, name: RateOf) -> Rate | None:
        """This level's learning rate of that kind, or None."""
        rate = self.learning_rate
        return getattr(rate, name) if isinstance(rate, LearningRates) else rate


class TrainingSettings(Strict):
    """The decided training settings of one cell.

    `learning_rate_source` is the level of the file that named the rate, `search` for a list or
    auto, or `tune`. `learning_rate_default` is set only for auto: the rate when there are too few
    steps for a search. Checkpoints come by steps if `checkpoint_every_steps` is set, else by time.
    """

    learning_rate: Rates
    learning_rate_source: str = "default"
    learning_rate_default: float | None = None
    search_share: float = 0.2
    search_cap: float = 0.25
    epochs: PositiveFloat = 1
    examples_per_step: PositiveInt = 8
    micro_batch_tokens: PositiveInt = 2048
    fit_micro_batch: bool = False
    max_length: int = 1024
    warmup_share: Share = 0.1
    weight_decay: float = 0.0
    gradient_clip: PositiveFloat = 1.0
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False
    precision: str = "auto"
    attention: str = "auto"
    targets: str | list[str] = "all-linear"
    early_stop_patience: PositiveInt | None = None
    validation_share: float = 0.1
    eval_every_steps: PositiveInt = 10
    curve_records: PositiveInt = 256
    checkpoint_every_steps: PositiveInt | None = None
    checkpoint_every_minutes: PositiveFloat = 10
    time_limit_minutes: PositiveFloat = 720
    memory_budget_gb: PositiveFloat | None = None
    target_loss: PositiveFloat | None = None
    turns: str = "all"
    report_to: list[Tracker] = ["tensorboard"]


def _is_number(text: str) -> bool:
    """YAML reads 5e-4 as a text."""
    try:
        float(text)
    except ValueError:
        return False
    return True
