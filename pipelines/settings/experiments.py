"""experiments.yaml as frozen settings: the whole file, and the function that reads and checks it.

Every error names the file, the line, the key, the value and what was expected. The sections are the
modules beside this one.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from pipelines.errors import UsageError
from pipelines.hardware import machine
from pipelines.lake.paths import experiments_file
from pipelines.records.expected import expected_one_of
from pipelines.settings.cleaning import Cleaning
from pipelines.settings.dagster_pages import Pages
from pipelines.settings.inheritance import require_parents, with_parents
from pipelines.settings.judging import Judging
from pipelines.settings.learning_rates import default_of, grid_of
from pipelines.settings.method_settings import Method
from pipelines.settings.methods import DEFAULT_RATES
from pipelines.settings.mistakes import explanation
from pipelines.settings.model_settings import Model
from pipelines.settings.nightly import Nightly
from pipelines.settings.profiles import Profile
from pipelines.settings.providers import EMBED, Generation, Provider
from pipelines.settings.retrieval import Embeddings
from pipelines.settings.sources import Sources
from pipelines.settings.strict import Slug, Strict
from pipelines.settings.training import TrainingOverrides, TrainingSettings
from pipelines.settings.yaml_file import MESSAGE_CHARS, Lines, Place, cut, joined, read, where


class Experiments(Strict):
    """The whole file."""

    models: Annotated[dict[Slug, Model], Field(min_length=1)]
    """Every model by its name."""
    methods: Annotated[dict[Slug, Method], Field(min_length=1)]
    """Every method by its name."""
    training: TrainingOverrides = TrainingOverrides()
    """Training settings of every cell; profile, method and model go over them, in that order, and
    pairs over all."""
    profiles: Annotated[dict[Slug, Profile], Field(min_length=1)]
    """Every profile by its name: which cells run, on how much of the data, and where."""
    sources: Sources
    """Sources of the training data."""
    providers: dict[Slug, Provider] = {}
    """Language models behind APIs, by name."""
    generation: Generation = Generation()
    """Requests to providers."""
    embeddings: Embeddings | None = None
    """The model behind `retrieval: {by: dense}`. Unset: such a method is `unavailable`."""
    judging: Judging = Judging()
    """Providers that judge the models' answers or answer beside them."""
    cleaning: Cleaning = Cleaning()
    """Thresholds of cleaning, and the resources that it may use."""
    nightly: Nightly = Nightly()
    """When the night begins, and what it may do."""
    dagster: Pages = Pages()
    """What Dagster's pages show."""

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: Any) -> Any:
        """Give every model that is made from another the settings of that one."""
        models = data.get("models") if isinstance(data, dict) else None
        if not isinstance(models, dict):
            return data
        return {**data, "models": {name: with_parents(models, name) for name in models}}

    @model_validator(mode="after")
    def _link_parents(self) -> "Experiments":
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
        asked = {named for place, named in self._api_references() if place[0] != "embeddings"}
        if name in asked | {teacher.provider for teacher in self.judging.teachers}:
            raise ValueError(
                f"embeddings.provider: {name} embeds texts, and cannot also judge, teach or write records: give its model a "
                "provider of its own"
            )
        if provider.requests != 0:
            raise ValueError(
                f"embeddings.provider: {name} embeds texts and writes no records: set providers.{name}.requests: 0"
            )
        return self

    @cached_property
    def cells(self) -> list[tuple[str, str]]:
        """Every model × method of the grid as (model, method)."""
        return [(model, method) for model in self.models for method in self.methods]

    def model(self, name: str) -> Model:
        return self._named("model", name, self.models)

    def method(self, name: str) -> Method:
        return self._named("method", name, self.methods)

    def provider(self, name: str) -> Provider:
        return self._named("provider", name, self.providers)

    @property
    def local_provider(self) -> str | None:
        """The name of the provider of kind local, a server that Featherweight starts on this
        machine, if one is configured."""
        return next((name for name, provider in self.providers.items() if provider.kind == "local"), None)

    def profile(self, name: str) -> Profile:
        return self._named("profile", name, self.profiles)

    def _named(self, what: str, name: str, known: dict[str, Any]) -> Any:
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}; {expected_one_of(name, list(known))} (experiments.yaml)")
        return known[name]

    def training_for(self, profile: str, model: str, method: str) -> TrainingSettings:
        """The decided settings of a cell. Later levels win: training, profile, method, model,
        profile.overrides[model][method], model.overrides[method]."""
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
        # Apply the levels in order; a later one replaces the settings of those before it.
        decided: dict[str, Any] = {"learning_rate": DEFAULT_RATES[traits.rate]}
        # The single rate that a level below `auto` names.
        single_rate: float | None = None
        for name, level in levels.items():
            for setting in TrainingOverrides.model_fields:
                if (value := getattr(level, setting)) is not None and not setting.startswith("learning_rate"):
                    decided[setting] = value
            if level.checkpoint_every_minutes is not None and level.checkpoint_every_steps is None:
                # The nearer level decides between steps and time.
                decided.pop("checkpoint_every_steps", None)
            if (rate := level.rate_for(traits.rate)) is not None:
                single_rate = rate if isinstance(rate, float) else single_rate
                source = level.learning_rate_source or name if isinstance(rate, float) else "search"
                decided |= {"learning_rate": rate, "learning_rate_source": source}
        # Replace `auto` by its grid, with a default for cells that are too short for a search.
        if decided["learning_rate"] == "auto":
            decided |= {"learning_rate": grid_of(traits), "learning_rate_default": default_of(traits, single_rate)}
        return TrainingSettings(**decided)

    def _overrides_in(self, profile: str, model: str, method: str) -> TrainingOverrides:
        """The profile's overrides of the pair.

        A model made from another falls back to that one's overrides.
        """
        overrides, ancestor = self.profile(profile).overrides, self.models.get(model)
        while ancestor and model not in overrides and (model := ancestor.source.parent or ""):
            ancestor = self.models.get(model)
        return overrides.get(model, {}).get(method, TrainingOverrides())

    def targets_for(self, model: str, settings: TrainingSettings) -> list[str] | str:
        """Names of the modules that get an adapter; `auto`: every linear layer but the head."""
        if isinstance(settings.targets, list):
            return settings.targets
        spec = self.model(model)
        return spec.attention_targets if settings.targets == "attention" else spec.lora_targets

    def _api_references(self) -> Iterator[tuple[Place, str]]:
        """Every place that names a provider behind an API, with that name."""
        for i, provider in enumerate(self.sources.providers):
            yield ("sources", "providers", i), provider
        for i, provider in enumerate(self.generation.judge.providers if self.generation.judge else []):
            yield ("generation", "judge", "providers", i), provider
        if self.judging.judge:
            yield ("judging", "judge"), self.judging.judge
        if self.embeddings and self.embeddings.provider:
            yield ("embeddings", "provider"), self.embeddings.provider

    def _pair_references(self) -> Iterator[tuple[Place, str, list[str]]]:
        """Every name of a model or method in the overrides, with its place and the allowed ones."""
        for name, model in self.models.items():
            for method in model.overrides:
                yield ("models", name, "overrides", method), method, list(self.methods)
        for name, profile in self.profiles.items():
            for of, pairs in profile.overrides.items():
                yield ("profiles", name, "overrides", of), of, list(self.models)
                for method in pairs:
                    yield ("profiles", name, "overrides", of, method), method, list(self.methods)

    def _references(self) -> Iterator[tuple[Place, str, list[str]]]:
        """Every reference within the file, as its place, its name and the allowed names."""
        for name, profile in self.profiles.items():
            for i, model in enumerate(profile.models):
                yield ("profiles", name, "models", i), model, list(self.models)
            for i, method in enumerate(profile.methods):
                yield ("profiles", name, "methods", i), method, list(self.methods)
        yield from self._pair_references()
        for name, provider in self.providers.items():
            if provider.kind == "local":
                yield ("providers", name, "model"), provider.model, list(self.models)
        apis = [name for name, provider in self.providers.items() if provider.kind != "local"]
        for place, provider in self._api_references():
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


def load(path: Path | None = None) -> Experiments:
    """Read and check experiments.yaml.

    Raises:
        UsageError: the file is missing or not YAML, a key is duplicate or unknown, a value is
            wrong, or a name does not exist.
    """
    path = path or experiments_file()
    data, lines = parse(path)
    require_parents(path, data, lines)
    try:
        loaded = Experiments.model_validate(data, context={"folder": path.absolute().parent})
    except ValidationError as error:
        messages = [explanation(path, lines, item) for item in error.errors()]
        raise UsageError(joined(messages)) from None
    for place, value, allowed in loaded._references():
        if value not in allowed:
            message = cut(f"got {cut(repr(value))}; {expected_one_of(value, allowed)}", MESSAGE_CHARS)
            raise UsageError(f"{where(path, lines, place)}: {message}")
    return loaded


def parse(path: Path) -> tuple[Any, Lines]:
    """The content of a YAML file, and the line of each of its keys.

    Raises:
        UsageError: the file is missing, is not YAML, or is refused, such as for a duplicate key.
    """
    return read(path, "set FEATHERWEIGHT_EXPERIMENTS to your experiments.yaml.")


def profile_name(experiments: Experiments, request: str | None) -> str:
    """The profile to run: the requested one; for auto or None `gpu` with CUDA, else `local`."""
    name = request or "auto"
    if name == "auto":
        name = "gpu" if machine.cuda_name() and "gpu" in experiments.profiles else "local"
    experiments.profile(name)
    return name
