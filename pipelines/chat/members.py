"""The members of a chat: ok cells of the lake and untouched models, their names, and which of them
share a model in memory."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.compare.compare import published_rows
from pipelines.errors import UsageError
from pipelines.evaluate.cell import base_method
from pipelines.lake.files import stable_hash
from pipelines.project import Project, Resolved
from pipelines.records.expected import expected_one_of
from pipelines.runs import cells
from pipelines.runs.cells import CellKey
from pipelines.settings.methods import CHANGE_THE_BASE, traits_of
from pipelines.weights import store

# Maximum number of answers side by side.
MAX_MEMBERS = 8
# Number of trained cells if the comparison has no picks.
DEFAULT_MEMBERS = 2
SEPARATOR, SEED = re.compile(r"\s*[/×]\s*"), re.compile(r"-?[0-9]{1,18}")
# LoRA settings that leave the base unchanged, so that others can share it.
SHARES = frozenset(
    ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules", "init_lora_weights")
)
# The recipe fields that determine, with the folder, how a base is loaded.
SAME_BASE = ("quantization", "precision", "attention", "fp16")


@dataclass(frozen=True)
class Member:
    """A cell that can answer.

    `folder` holds its model's weights. `trained` is the output of training, None for untrained
    cells. `run_id` is empty for a model without an attempt. `several_seeds` means that the label
    needs the seed.
    """

    key: CellKey
    recipe: Mapping[str, Any]
    folder: Path
    trained: Path | None = None
    run_id: str = ""
    several_seeds: bool = False

    @property
    def label(self) -> str:
        """The displayed name."""
        return self.name if self.several_seeds else f"{self.key.model}/{self.key.method}"

    @property
    def name(self) -> str:
        """The name to type: `model/method@seed`."""
        return f"{self.key.model}/{self.key.method}@{self.key.seed}"

    @property
    def is_base(self) -> bool:
        """Whether this is the untouched model with nothing before the question."""
        adds = self.recipe.get("shots") or self.recipe.get("retrieval")
        return not traits_of(self.recipe).trains and not adds

    @property
    def shares_base(self) -> bool:
        """Whether it leaves its base unchanged, so that other members can share the base in
        memory."""
        traits = traits_of(self.recipe)
        if not traits.trains:
            return True
        begins = str(traits.peft.get("init_lora_weights"))
        return traits.peft_type == "LORA" and set(traits.peft) <= SHARES and not begins.startswith(CHANGE_THE_BASE)

    @property
    def group(self) -> str:
        """Equal for members that can share one model in memory."""
        if not self.shares_base:
            return f"own {self.run_id}"
        recipe = self.recipe
        loaded = [recipe.get(name) for name in SAME_BASE]
        loaded += [bool(recipe["quantization"] and recipe.get("double_quantization", True))]
        return f"base {stable_hash([str(self.folder), *loaded])}"

    @property
    def why_not(self) -> str | None:
        """Why it cannot answer here; None if it can."""
        if self.recipe.get("retrieval"):
            return (
                "its prompts need records or passages retrieved for each question, which chat does not do; its answers "
                "to the evaluation records are in the table evaluation_answers"
            )
        return None


class Roster:
    """The cells of a project that can answer, by the state of the lake at the first call."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def named(self, names: Sequence[str]) -> list[Member]:
        """The members with these names, each once, after the bases of their models.

        Without names, the comparison's picks.

        Raises:
            UsageError: an unknown name, a cell that is not ok or has other weights than those here,
                or too many cells.
        """
        requested = [self._key(name) for name in names] or self._preferred()
        with_bases = [key for model in dict.fromkeys(key.model for key in requested) for key in self._base(model)]
        keys = list(dict.fromkeys([*with_bases, *requested]))
        if len(keys) > MAX_MEMBERS:
            raise UsageError(f"{len(keys)} cells, the bases among them; expected at most {MAX_MEMBERS}: name fewer")
        members = [self.member(key) for key in keys]
        for member in members:
            if member.why_not:
                raise UsageError(f"{member.key}: {member.why_not}: choose another cell.")
        return members

    def all_members(self) -> list[Member]:
        """Every cell that can answer, by model, bases first.

        These are the untouched models with local weights, and the newest ok attempt of every cell
        whose model is in experiments.yaml.
        """
        members: dict[CellKey, Member] = {}
        for key in [*self._bases(), *self._ok]:
            with suppress(UsageError):
                members.setdefault(key, self.member(key))
        order = list(self._project.experiments.models)
        return sorted(members.values(), key=lambda one: (order.index(one.key.model), not one.is_base))

    def member(self, key: CellKey) -> Member:
        """The cell as a member.

        Raises:
            UsageError: it is not ok, or its weights are missing or differ from those of its
                attempt.
        """
        project = self._project
        model = project.experiments.model(key.model)
        if not store.is_present(project.data, key.model, model):
            raise UsageError(f"{key}: the weights are not here: run `featherweight fetch {key.model}`.")
        folder = store.model_folder(project.data, key.model, model)
        attempt = cells.latest(project.data, key)
        if attempt is None and not self._trains(key.method):
            return Member(key, project.recipe_of(key.model, key.method), folder)
        if attempt is None or attempt.status != "ok":
            status = attempt.status if attempt else "missing"
            raise UsageError(f"{key} is {status}; only an ok cell can answer: run `{self._training(key)}`.")
        self._resolved.require_same_weights(attempt)
        trained = attempt.model_folder if traits_of(attempt.spec.recipe).trains else None
        if trained and not trained.exists():
            raise UsageError(
                f"{key}: {trained} is gone and only its measurements are left: run `{self._training(key)} --force`."
            )
        several = sum((one.model, one.method) == (key.model, key.method) for one in self._ok) > 1
        return Member(key, attempt.spec.recipe, folder, trained, attempt.run_id, several)

    def _can_answer(self, key: CellKey) -> bool:
        with suppress(UsageError):
            return self.member(key).why_not is None
        return False

    @cached_property
    def _resolved(self) -> Resolved:
        return self._project.resolve()

    @cached_property
    def _ok(self) -> list[CellKey]:
        """Cells of configured models whose newest attempt is ok."""
        keys = []
        for folder in sorted(self._project.data.cells.glob("*/*/*")):
            model, method, seed = folder.parts[-3:]
            if seed.lstrip("-").isdigit() and model in self._project.experiments.models:
                key = CellKey(model, method, int(seed))
                newest = cells.latest(self._project.data, key)
                keys += [key] if newest and newest.status == "ok" else []
        return keys

    def _training(self, key: CellKey) -> str:
        seed = "" if key.seed in self._project.settings.seeds else f" --seed {key.seed}"
        return f"featherweight train {key.model} {key.method}{seed}"

    def _trains(self, method: str) -> bool:
        known = self._project.experiments.methods.get(method)
        return known is None or known.traits.trains

    def _key(self, name: str) -> CellKey:
        """Parse `model/method` or `model×method`, optionally with `@seed`.

        The default seed is the profile's first one in the lake.
        """
        cell, at, seed = name.strip().partition("@")
        parts = SEPARATOR.split(cell.strip())
        if len(parts) != 2 or not all(parts) or (at and not SEED.fullmatch(seed)):
            raise UsageError(
                f"{name!r}: expected MODEL/METHOD or MODEL/METHOD@SEED, such as {self._example()}; {self._known()}"
            )
        model, method = parts
        self._project.experiments.model(model)
        methods = list(dict.fromkeys([*(key.method for key in self._ok), *self._project.experiments.methods]))
        if method not in methods:
            raise UsageError(f"unknown method {method!r}; {expected_one_of(method, methods)}; {self._known()}")
        return CellKey(model, method, int(seed) if seed else self._seed(model, method))

    def _seed(self, model: str, method: str) -> int:
        seeds, held = self._project.settings.seeds, [k.seed for k in self._ok if (k.model, k.method) == (model, method)]
        return next((seed for seed in seeds if seed in held), held[0] if held else seeds[0])

    def _example(self) -> str:
        model, method = next(((key.model, key.method) for key in self._ok), self._project.grid[0])
        return f"{model}/{method}"

    def _known(self) -> str:
        names = dict.fromkeys(f"{key.model}/{key.method}" for key in self._ok)
        return f"ok in the lake: {', '.join(names)}" if names else "no cell is ok yet: run `make run` first"

    def _base(self, model: str) -> list[CellKey]:
        base = base_method(self._project)
        return [CellKey(model, base, self._seed(model, base))] if base else []

    def _bases(self) -> list[CellKey]:
        data, models = self._project.data, self._project.experiments.models.items()
        here = [name for name, model in models if store.is_present(data, name, model)]
        return [key for name in here for key in self._base(name)]

    def _preferred(self) -> list[CellKey]:
        """The picks of the published comparison that have the first pick's model.

        Without picks, the first trained cells of the profile's grid.
        """
        ok = {(key.model, key.method): key for key in self._ok if self._can_answer(key)}
        rows: list[dict[str, Any]] = []
        # Nothing may have been published yet.
        with suppress(UsageError):
            rows = published_rows(self._project.data, "picks")
        cells_of = [(row["model"], row["method"]) for row in rows]
        picks = [ok[cell] for cell in dict.fromkeys(cells_of) if cell in ok]
        if not picks:
            picks = [ok[cell] for cell in self._project.grid if cell in ok and self._trains(cell[1])][:DEFAULT_MEMBERS]
        if not picks:
            raise UsageError("no trained cell is ok yet: run `make run` first, or name a cell: MODEL/METHOD")
        return [key for key in picks if key.model == picks[0].model]
