"""Profiles: which cells run, on how much of the data, and where."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, JsonValue, PositiveInt, model_validator

from pipelines.settings.evaluation import EvaluationSettings
from pipelines.settings.launchers import LauncherName, Ray, Slurm
from pipelines.settings.strict import Strict
from pipelines.settings.training import TrainingOverrides

Sharding = Literal["none", "ddp", "fsdp", "zero2", "zero3"]
# Keys of DeepSpeed's configuration that a cell's recipe decides.
RECIPE_KEYS = frozenset(
    (
        "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "optimizer",
        "scheduler", "fp16", "bf16", "amp", "torch_autocast",
    )
)  # fmt: skip


class Profile(Strict):
    """Which cells run, on how much of the data, and where."""

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
    """Price of one hour of training, the base of `train_usd` and of budgets. Unset: no dollars are
    shown."""
    training: TrainingOverrides = TrainingOverrides()
    """Training settings of all cells of the profile."""
    overrides: dict[str, dict[str, TrainingOverrides]] = {}
    """Training settings of one cell, by model and then by method."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Measurements of every model of the profile."""
    launcher: LauncherName = "local"
    """Launcher of a cell's process: this machine, torchrun on it, or a cluster."""
    devices: PositiveInt = 1
    """Devices that one cell is trained on."""
    sharding: Sharding = "none"
    """How several devices share the work: examples alone (ddp), or weights and optimizer states
    too."""
    deepspeed: dict[str, JsonValue] = {}
    """DeepSpeed's own configuration, over the values of `zero2` and `zero3`."""
    ray: Ray | None = None
    """The Ray cluster, for `launcher: ray`."""
    slurm: Slurm | None = None
    """The Slurm cluster, for `launcher: slurm`."""

    @model_validator(mode="after")
    def _check_devices(self) -> "Profile":
        if self.devices > 1 and self.launcher == "local":
            *others, last = (name for name in get_args(LauncherName) if name != "local")
            raise ValueError(
                f"devices: {self.devices} needs launcher {', '.join(others)} or {last}; local starts one process"
            )
        if self.devices > 1 and self.sharding == "none":
            raise ValueError(
                f"devices: {self.devices} needs sharding ddp, fsdp, zero2 or zero3, which divide a cell over them"
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
        if ours := sorted(RECIPE_KEYS.intersection(self.deepspeed)):
            raise ValueError(f"deepspeed: {', '.join(ours)}: set it under training:, which applies to every launcher")
        if "stage" in zero:
            raise ValueError("deepspeed: zero_optimization.stage: set sharding: zero2 or zero3 instead")

    @model_validator(mode="after")
    def _check_launcher_section(self) -> "Profile":
        for name in get_args(LauncherName):
            # A launcher without settings has no section.
            if name not in type(self).model_fields:
                continue
            section = getattr(self, name)
            if self.launcher == name and section is None:
                raise ValueError(f"launcher: {name} needs {name}: {{...}}; `{name}: {{}}` takes every default")
            if self.launcher != name and section is not None:
                raise ValueError(f"{name}: belongs to launcher {name}, not {self.launcher}")
        return self
