"""What one works on, and what every cell of it is made of, worked out once a command."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from pipelines.clean.clean import current as current_examples
from pipelines.clean.select import Selected, Selection, select
from pipelines.errors import UsageError
from pipelines.experiments import Experiments, Fingerprint, Profile, TrainingSettings
from pipelines.files import announce, stable_hash
from pipelines.paths import DataRoot
from pipelines.recipe import recipe_of
from pipelines.runs.cells import CellKey
from pipelines.runs.code import code_fingerprint
from pipelines.runs.command import Placement
from pipelines.runs.launchers.base import Launcher
from pipelines.runs.launchers.chosen import launcher_for
from pipelines.runs.run import Site, Watch

ANY: tuple[str, ...] = get_args(Fingerprint)
TRAINS = "pipelines.train.child"  # the module of the process that trains a cell


@dataclass(frozen=True)
class Project:
    """Where one works: the data root, the checked configuration and the profile's name."""

    data: DataRoot
    experiments: Experiments
    profile: str

    @property
    def settings(self) -> Profile:
        """What the profile says."""
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
        """The profile's selection, but for what the method says of its data."""
        data = self.experiments.method(method).data
        if data is None:
            return self.selection
        return replace(self.selection, provider=data.provider, max_train=data.max_examples or self.selection.max_train)

    def placement_of(self, method: str) -> Placement:
        """On what the method's cells are put; what trains nothing is one process on one device."""
        profile = self.settings
        if self.experiments.method(method).kind == "none":
            return Placement(tuning=profile.deepspeed)
        return Placement(profile.devices, profile.sharding, profile.deepspeed)

    def recipe_of(self, model: str, method: str) -> dict[str, Any]:
        return recipe_of(self.experiments, self.profile, model, method)

    def training_of(self, model: str, method: str) -> TrainingSettings:
        """The cell's training settings, from every level of the configuration."""
        return self.experiments.training_for(self.profile, model, method)

    def code_of(self, method: str) -> str:
        """Fingerprint of what the method's cells run of this project's own code."""
        runs = self.launcher().runs if self.placement_of(method).devices > 1 else ()
        return code_fingerprint(TRAINS, *runs)

    def launcher(self, say: Callable[[str], None] = announce) -> Launcher:
        return launcher_for(self.settings, say=say)

    def site(self, watch: Watch) -> Site:
        """Where the profile's cells are run."""
        return Site(self.launcher(watch.say), watch)

    def resolve(self) -> "Resolved":
        """The project with its examples, read once, and the plan of each cell.

        Raises:
            UsageError: nothing was cleaned yet, or the profile's languages leave nothing on one side.
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
    """What one cell is made of. `recipe` is all that decides its weights and measurements apart from data, seed, machine and code;
    `selected` what it trains and is evaluated on; `fingerprints` those of data, recipe, code and machine. `base` trains on nothing,
    so its data fingerprint is None; examples in a prompt are data."""

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
    """A project with its examples. Plans are made when they are first asked for, and once."""

    def __init__(self, project: Project, selected: Selected, narrowed: dict[Selection, Selected] | None = None) -> None:
        self.project = project
        self.selected = selected
        self._narrowed = narrowed if narrowed is not None else {}
        self._plans: dict[tuple[str, str], CellPlan] = {}
        self._codes: dict[bool, str] = {}  # of cells on one device, on several

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
        """The plan of a cell, of the profile or not.

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
        selected = self._for(method)
        untouched = recipe["kind"] == "none" and not recipe.get("shots")
        fingerprints = {
            "data": None if untouched else selected.data_fingerprint,
            "recipe": stable_hash(recipe),
            "code": self._code(method),
            "machine": project.launcher().machine(placement),
        }
        settings, seeds = project.training_of(model, method), tuple(project.settings.seeds)
        return CellPlan(model, method, seeds, settings, recipe, placement, selected, fingerprints)

    def _code(self, method: str) -> str:
        divided = self.project.placement_of(method).devices > 1
        if divided not in self._codes:
            self._codes[divided] = self.project.code_of(method)
        return self._codes[divided]

    def _for(self, method: str) -> Selected:
        """What of the profile's examples the method trains on: `data` in experiments.yaml, else all."""
        selection = self.project.selection_of(method)
        if selection == self.project.selection:
            return self.selected
        wanted = replace(selection, languages=None)  # which are the profile's, and a list does not hash
        if wanted not in self._narrowed:
            self._narrowed[wanted] = self.selected.narrowed(selection.provider, selection.max_train)
        return self._narrowed[wanted]


def changed(recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The names of the fingerprints that no longer match."""
    return [name for name, value in expected.items() if recorded.get(name) != value]
