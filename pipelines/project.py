"""The project of a command, and the plan of each of its cells, computed once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, get_args

from pipelines.clean.clean import current as current_examples
from pipelines.clean.select import Selected, Selection, select
from pipelines.errors import UsageError
from pipelines.lake.files import announce, stable_hash
from pipelines.lake.paths import DataRoot
from pipelines.recipe import recipe_of, shows_examples
from pipelines.retrieval import sources
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.code import code_fingerprint
from pipelines.runs.command import Placement
from pipelines.runs.launchers.base import Launcher
from pipelines.runs.launchers.chosen import launcher_for
from pipelines.runs.run import RunHooks, Site
from pipelines.settings.experiments import Experiments
from pipelines.settings.methods import traits_of
from pipelines.settings.nightly import Fingerprint
from pipelines.settings.profiles import Profile
from pipelines.settings.training import TrainingSettings
from pipelines.weights import store

ANY: tuple[str, ...] = get_args(Fingerprint)
COMPARED = ("data", "recipe", "code", "machine")
# Another possible change. It is no fingerprint, because it does not change a result that fits.
MEMORY_BUDGET = "memory budget"
# Peaks that a budget limits: those of the process on a CPU, those of the GPU on CUDA.
UNDER_BUDGET = ("peak_memory_gb", "load_peak_memory_gb", "gpu_reserved_peak_gb", "gpu_device_peak_gb")
# The module of the process that trains a cell.
TRAINS = "pipelines.train.trainer.child"


@dataclass(frozen=True)
class Project:
    """The data root, the checked configuration, and the name of the profile."""

    data: DataRoot
    experiments: Experiments
    profile: str

    @property
    def settings(self) -> Profile:
        """The settings of the profile."""
        return self.experiments.profile(self.profile)

    @property
    def grid(self) -> list[tuple[str, str]]:
        """The profile's cells, (model, method), in the order of experiments.yaml."""
        return [(model, method) for model in self.settings.models for method in self.settings.methods]

    @property
    def selection(self) -> Selection:
        profile = self.settings
        return Selection(profile.languages, profile.max_train_examples, profile.max_eval_examples)

    def selection_of(self, method: str) -> Selection:
        """The profile's selection, with the method's own settings for its data."""
        data = self.experiments.method(method).data
        if data is None:
            return self.selection
        return replace(self.selection, provider=data.provider, max_train=data.max_examples or self.selection.max_train)

    def placement_of(self, method: str) -> Placement:
        """The placement of the method's cells.

        A method without training runs as one process on one device.
        """
        profile = self.settings
        if not self.experiments.method(method).traits.trains:
            return Placement(tuning=profile.deepspeed)
        return Placement(profile.devices, profile.sharding, profile.deepspeed)

    def recipe_of(self, model: str, method: str) -> dict[str, Any]:
        recipe = recipe_of(self.experiments, self.profile, model, method)
        if retrieval := self.experiments.method(method).retrieval:
            recipe["retrieval"] |= sources.contents(self.data, self.experiments, retrieval)
        return recipe

    def training_of(self, model: str, method: str) -> TrainingSettings:
        """The cell's training settings, from every level of the configuration."""
        return self.experiments.training_for(self.profile, model, method)

    def code_of(self, method: str) -> str:
        """The fingerprint of this project's code that the method's cells run."""
        runs = self.launcher().runs if self.placement_of(method).devices > 1 else ()
        return code_fingerprint(TRAINS, *runs)

    def launcher(self, say: Callable[[str], None] = announce) -> Launcher:
        return launcher_for(self.settings, say=say)

    def site(self, hooks: RunHooks) -> Site:
        """The site at which the profile's cells run."""
        return Site(self.launcher(hooks.say), hooks)

    def resolve(self) -> "Resolved":
        """The project with its examples, read once, and the plan of each cell.

        Raises:
            UsageError: there is no cleaned data yet, or the profile's languages leave no records on
                one side.
        """
        cleaned = current_examples(self.data)
        if cleaned is None:
            raise UsageError(f"no examples in {self.data.clean}: run `featherweight clean` first (or `make run`).")
        selected = select(cleaned.folder / "examples.parquet", self.selection)
        if not selected.train or not selected.eval:
            raise UsageError(
                f"profile {self.profile} selects {len(selected.train)} train and {len(selected.eval)} eval records "
                f"(languages: {self.selection.languages}); both need at least one: change "
                f"profiles.{self.profile}.languages or the sources."
            )
        return Resolved(self, selected)


@dataclass(frozen=True)
class CellPlan:
    """The plan of one cell.

    `recipe` is everything that decides its weights and measurements, except data, seed, machine and
    code. `selected` are its train and evaluation records. `fingerprints` has those of data, recipe,
    code and machine, and of the weights if they are on this machine. In that case the recipe's
    fingerprint uses their content instead of their source. `base` trains on nothing, so its data
    fingerprint is None; but examples in a prompt are data.
    """

    model: str
    method: str
    seeds: tuple[int, ...]
    settings: TrainingSettings
    recipe: Mapping[str, Any]
    placement: Placement
    selected: Selected
    fingerprints: Mapping[str, str | None]

    @property
    def cell(self) -> tuple[str, str]:
        return self.model, self.method

    @property
    def keys(self) -> list[CellKey]:
        return [CellKey(self.model, self.method, seed) for seed in self.seeds]


class Resolved:
    """A project with its examples. Each plan is made once, on first use."""

    def __init__(self, project: Project, selected: Selected, narrowed: dict[Selection, Selected] | None = None) -> None:
        self.project = project
        self.selected = selected
        self._narrowed = narrowed if narrowed is not None else {}
        self._plans: dict[tuple[str, str], CellPlan] = {}
        # The code fingerprint of cells on several devices (True) and on one (False).
        self._codes: dict[bool, str] = {}
        # The content hash of each model's folder.
        self._contents: dict[str, str | None] = {}
        self._first: dict[tuple[str, str], store.FirstSeen | None] = {}

    @property
    def data(self) -> DataRoot:
        return self.project.data

    @property
    def experiments(self) -> Experiments:
        return self.project.experiments

    @property
    def examples(self) -> str:
        """The examples file, relative to the data root."""
        return str(self.selected.examples.relative_to(self.data.root))

    def under(self, project: Project) -> "Resolved":
        """The same examples, under another configuration of the same profile."""
        if project.selection != self.project.selection:
            return project.resolve()
        return Resolved(project, self.selected, self._narrowed)

    def cell(self, model: str, method: str) -> CellPlan:
        """The plan of any cell, in the profile or not.

        Raises:
            UsageError: an unknown model or method.
        """
        if (model, method) not in self._plans:
            self._plans[model, method] = self._plan(model, method)
        return self._plans[model, method]

    def plan(self, key: CellKey) -> CellPlan:
        return self.cell(key.model, key.method)

    def _plan(self, model: str, method: str) -> CellPlan:
        project = self.project
        recipe, placement = project.recipe_of(model, method), project.placement_of(method)
        selected = self._examples_of(method)
        untouched = not traits_of(recipe).trains and not shows_examples(recipe)
        content = self._content(model)
        fingerprints = {
            "data": None if untouched else selected.data_fingerprint,
            "recipe": recipe_fingerprint(recipe, content),
            "code": self._code(method),
            "machine": project.launcher().machine(placement),
            **({"weights": content} if content else {}),
        }
        settings, seeds = project.training_of(model, method), tuple(project.settings.seeds)
        return CellPlan(model, method, seeds, settings, recipe, placement, selected, fingerprints)

    def _content(self, model: str, say: Callable[[str], None] = announce) -> str | None:
        if model not in self._contents:
            spec = self.experiments.model(model)
            self._contents[model] = store.content(self.data, model, spec, say=say)
        return self._contents[model]

    def weights_now(self, model: str, say: Callable[[str], None] = announce) -> str | None:
        """The current content of the model's folder.

        If it has changed, the plans of the model are made again.
        """
        before = self._contents.pop(model, None)
        now = self._content(model, say)
        if now != before:
            self._plans = {cell: plan for cell, plan in self._plans.items() if cell[0] != model}
        return now

    def weights_of(self, attempt: Attempt) -> str | None:
        """The content hash of the attempt's weights, or None if it is unknown.

        Code before November 2026 did not record it. Then it is the first hash of the folder, unless
        the weights are known to be of another source or revision, which is returned instead.
        """
        if recorded := attempt.spec.fingerprints.get("weights"):
            return recorded
        source = attempt.spec.recipe.get("source")
        if source is None:
            return None
        model = attempt.key.model
        first, configured = self._first_seen(model, source), self.experiments.models.get(model)
        if first is None:
            same = configured is None or source == store.source_id(configured)
            return None if same else f"source {source}"
        revision = attempt.result.weights_revision
        if revision and first.revision:
            return first.content if revision == first.revision else f"revision {revision}"
        return first.content if _start_seconds(attempt) >= first.written else None

    def _first_seen(self, model: str, source: str) -> store.FirstSeen | None:
        if self._first.get((model, source)) is None:
            self._first[model, source] = store.first_seen(self.data, model, source)
        return self._first[model, source]

    def fits(self, attempt: Attempt) -> bool:
        """Whether the model's folder has the attempt's weights, as far as that is known."""
        then, now = self.weights_of(attempt), self._content(attempt.key.model)
        return then is None or now is None or then == now

    def require_same_weights(self, attempt: Attempt, say: Callable[[str], None] = announce) -> None:
        """Raises UsageError if the model's folder now has other weights than the attempt used."""
        key, now = attempt.key, self.weights_now(attempt.key.model, say)
        if self.fits(attempt):
            return
        folder = store.model_folder(self.data, key.model, self.experiments.model(key.model))
        raise UsageError(
            f"{key} was made with other weights or another tokenizer than {folder} holds now (then {self.weights_of(attempt)}, now "
            f"{now}): its result is valid only for those. Put them back, or run `featherweight train {key.model} {key.method}`."
        )

    def changed(self, attempt: Attempt) -> list[str]:
        """The names of the attempt's fingerprints that no longer match: data, recipe, code,
        machine.

        Other weights count as another recipe.
        """
        plan, recorded = self.plan(attempt.key), attempt.result.fingerprints or attempt.spec.fingerprints
        names = {name for name in COMPARED if recorded.get(name) != plan.fingerprints[name]} - {"recipe"}
        if self._other_recipe(attempt, plan):
            names.add("recipe")
        return [name for name in COMPARED if name in names]

    def over_budget(self, attempt: Attempt) -> float | None:
        """The attempt's peak in GB, if it had a larger budget than the cell's current
        `memory_budget_gb` and used more; else None.

        An attempt with the current budget or a smaller one has shown that it fits.
        """
        budget, now = attempt.spec.memory_budget_gb, self.plan(attempt.key).settings.memory_budget_gb
        if now is None or (budget is not None and budget <= now):
            return None
        measured = attempt.result.measured
        peak = max((measured[name] for name in UNDER_BUDGET if measured.get(name)), default=0.0)
        return peak if peak > now else None

    def _other_recipe(self, attempt: Attempt, plan: CellPlan) -> bool:
        recorded = attempt.result.fingerprints or attempt.spec.fingerprints
        now, then, spec = plan.fingerprints.get("weights"), self.weights_of(attempt), attempt.spec
        if not self.fits(attempt):
            return True
        if bool(recorded.get("weights")) == bool(now):
            return recorded.get("recipe") != plan.fingerprints["recipe"]
        # One of the two does not know its weights, so compare the configured sources.
        configured = stable_hash(spec.recipe)
        if recorded.get("weights"):
            return configured != stable_hash(plan.recipe)
        if recorded.get("recipe") == stable_hash(plan.recipe):
            return False
        copied = then == now and recorded.get("recipe") == configured
        return not (copied and recipe_fingerprint(spec.recipe, now) == plan.fingerprints["recipe"])

    def _code(self, method: str) -> str:
        divided = self.project.placement_of(method).devices > 1
        if divided not in self._codes:
            self._codes[divided] = self.project.code_of(method)
        return self._codes[divided]

    def _examples_of(self, method: str) -> Selected:
        """The profile's examples for the method: those of its `data` setting, else all."""
        selection = self.project.selection_of(method)
        if selection == self.project.selection:
            return self.selected
        # The languages are the same for the whole profile, and their list is not hashable.
        key = replace(selection, languages=None)
        if key not in self._narrowed:
            self._narrowed[key] = self.selected.narrowed(selection.provider, selection.max_train)
        return self._narrowed[key]


def recipe_fingerprint(recipe: Mapping[str, Any], content: str | None) -> str:
    """The fingerprint of a recipe.

    If the weights are here, their content counts instead of their source.
    """
    return stable_hash({**recipe, "source": content} if content else dict(recipe))


def _start_seconds(attempt: Attempt) -> float:
    """The start of the attempt in seconds since the epoch; 0 if unknown."""
    began = attempt.result.started_at
    return datetime.fromisoformat(began).timestamp() if began else 0.0
