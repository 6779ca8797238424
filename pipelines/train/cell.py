"""The parent's half of a cell: what it is made of, whether it is current, and running it."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines import trackers, weights
from pipelines.clean.clean import current as current_examples
from pipelines.clean.select import Selected, Selection, select
from pipelines.errors import UnavailableError, UsageError
from pipelines.experiments import Experiments
from pipelines.files import announce, locked, stable_hash
from pipelines.paths import DataRoot
from pipelines.runs import cells, restart
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.code import code_fingerprint
from pipelines.runs.launchers.base import Launcher, Placement
from pipelines.runs.launchers.chosen import launcher_class, launcher_for
from pipelines.runs.run import Run, Site, Watch, and_once_more, queue
from pipelines.runs.spec import RunSpec
from pipelines.train.ranks import require_divisible

CHILD = "pipelines.train.child"
# What is asked of a run but does not change its weights or what is measured of them stays out of the recipe.
OUTSIDE_RECIPE = (
    "eval_every_steps", "checkpoint_every_steps", "time_limit_minutes", "memory_budget_gb", "learning_rate_source",
    "target_loss", "report_to",
)  # fmt: skip


@dataclass(frozen=True)
class Project:
    """Where one works: the data root, the checked configuration and the profile's name."""

    data: DataRoot
    experiments: Experiments
    profile: str

    @property
    def selection(self) -> Selection:
        profile = self.experiments.profile(self.profile)
        return Selection(profile.languages, profile.max_train_examples, profile.max_eval_examples)

    def selection_of(self, method: str) -> Selection:
        """The profile's selection, but for what the method says of its data."""
        data = self.experiments.method(method).data
        if data is None:
            return self.selection
        return replace(self.selection, provider=data.provider, max_train=data.max_examples or self.selection.max_train)

    def devices_of(self, method: str) -> dict[str, Any]:
        """`devices` and `sharding` of the method's cells; what trains nothing is one process on one device."""
        profile = self.experiments.profile(self.profile)
        if self.experiments.method(method).kind == "none":
            return {"devices": 1, "sharding": "none"}
        return {"devices": profile.devices, "sharding": profile.sharding}

    def placement_of(self, method: str) -> Placement:
        return Placement(**self.devices_of(method), tuning=self.experiments.profile(self.profile).deepspeed)

    def machine_of(self, method: str) -> str:
        """What the method's cells run on, as far as it is known beforehand."""
        return self.launcher().machine(self.placement_of(method))

    def site(self, watch: Watch) -> Site:
        """Where the profile's cells are run."""
        return Site(self.data.locks, self.launcher(watch.say), watch)

    def launcher(self, say: Callable[[str], None] = announce) -> Launcher:
        return launcher_for(self.experiments.profile(self.profile), say=say)


def recipe_of(project: Project, key: CellKey) -> dict[str, Any]:
    """All that decides a cell's weights and measurements, apart from data, seed, machine and the trainer's code."""
    model = project.experiments.model(key.model)
    method = project.experiments.method(key.method)
    source = weights.source_id(model.source)
    limits = {} if model.fp16 else {"fp16": False}
    template = {"template": model.template} if model.template else {}
    if method.kind == "none":
        settings = project.experiments.training_for(project.profile, key.model, key.method)
        plain = {"precision": settings.precision, "attention": settings.attention, "max_length": settings.max_length}
        fixed = {"quantization": None, "gradient_checkpointing": False}
        shots = {"shots": method.shots} if method.shots else {}
        return {
            "model": key.model,
            "source": source,
            "kind": "none",
            "prompt": model.prompt,
            **template,
            **plain,
            **fixed,
            **limits,
            **shots,
        }
    settings = project.experiments.training_for(project.profile, key.model, key.method)
    decided = {k: v for k, v in settings.model_dump().items() if k not in OUTSIDE_RECIPE}
    if not isinstance(settings.learning_rate, list):
        del decided["search_share"]
    if settings.turns == "all":
        del decided["turns"]
    if settings.early_stop_patience:  # evaluations then decide when training ends
        decided["eval_every_steps"] = settings.eval_every_steps
    decided["targets"] = project.experiments.targets_for(key.model, settings) if method.kind == "lora" else None
    adapter = {
        "rank": method.rank,
        "alpha": method.alpha,
        "dropout": method.dropout,
        "rslora": method.rslora,
        "dora": method.dora,
        "quantization": method.quantization,
        "double_quantization": method.quantization in ("nf4", "fp4") and method.double_quantization is not False,
    }
    return {
        "model": key.model,
        "source": source,
        "kind": method.kind,
        "prompt": model.prompt,
        **template,
        **decided,
        **adapter,
        **limits,
    }


def examples_now(project: Project) -> tuple[Path, Selected]:
    """The current examples file and what the profile takes of it.

    Raises:
        UsageError: nothing was cleaned yet, or the profile's languages leave nothing on one side.
    """
    cleaned = current_examples(project.data)
    if cleaned is None:
        raise UsageError(f"no examples in {project.data.clean}: run `featherweight clean` first (or `make run`).")
    path = cleaned.folder / "examples.parquet"
    selected = select(path, project.selection)
    if not selected.train or not selected.eval:
        raise UsageError(
            f"profile {project.profile} selects {len(selected.train)} train and {len(selected.eval)} eval records (languages: "
            f"{project.selection.languages}); both need at least one: change profiles.{project.profile}.languages or the sources."
        )
    return path, selected


def for_method(project: Project, method: str, selected: Selected) -> Selected:
    """What of the profile's examples the method trains on: `data` in experiments.yaml, else all."""
    selection = project.selection_of(method)
    return selected.narrowed(selection.provider, selection.max_train)


def fingerprints(project: Project, key: CellKey, selected: Selected) -> dict[str, str | None]:
    """What a result was made from. `base` trains on nothing, so its data fingerprint is None; examples in a prompt are data."""
    recipe = recipe_of(project, key)
    untouched = recipe["kind"] == "none" and not recipe.get("shots")
    return {
        "data": None if untouched else for_method(project, key.method, selected).data_fingerprint,
        "recipe": stable_hash(recipe),
        "code": code_fingerprint(CHILD, *_runs_in(project, key.method)),
        "machine": project.machine_of(key.method),
    }


def _runs_in(project: Project, method: str) -> tuple[str, ...]:
    """The modules of this project in which several processes of the method's cells run."""
    return project.launcher().runs if project.placement_of(method).devices > 1 else ()


def changed(recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The names of the fingerprints that no longer match."""
    return [name for name, value in expected.items() if recorded.get(name) != value]


def train(
    project: Project, key: CellKey, *, force: bool = False, watch: Watch | None = None, seen: str | None = None
) -> tuple[Attempt, bool]:
    """Make the cell current and return its newest attempt, and whether that was reused.

    An attempt is made whatever happens; how it ended is its status. A cell whose last attempt is ok and whose fingerprints
    all match is reused, unless `force`; one that was ended too early goes on from its last checkpoint, in a new attempt.
    `seen`: the newest attempt when this was asked for ("" for none); what somebody else has made since is taken as it is.

    Raises:
        UsageError: unknown model or method, or nothing to train on.
        WorkError: the lake cannot be written.
    """
    watch = watch or Watch()
    examples, selected = examples_now(project)
    expected = fingerprints(project, key, selected)
    with locked(key.folder(project.data) / "cell.lock", f"train {key}", say=watch.say):
        earlier = cells.attempts(project.data, key)
        newest = earlier[-1] if earlier else None
        current = newest and newest.status == "ok" and not changed(newest.result.fingerprints, expected)
        if newest and seen is not None and newest.run_id != seen:
            watch.say(f"{key} has been run since this was asked for: {newest.run_id} is {newest.status}")
            return newest, True
        if newest and current and not force:
            restart.clear(earlier)
            return newest, True
        if newest and not force and _goes_on_elsewhere(newest, expected):
            run = _run(project, newest, watch)
        else:
            run = _next_attempt(project, key, earlier, examples, expected, watch=watch, force=force)

        def again(after: str) -> Run:
            tries = cells.attempts(project.data, key)
            return _next_attempt(project, key, tries, examples, expected, watch=watch, after=after)

        finished = Attempt(key, and_once_more(run, again, project.site(watch)).folder)
        if finished.status in restart.FINAL:
            restart.clear([*earlier, finished])
        if finished.status == "ok":
            _drop_superseded_models(project.data, finished)
        return finished, False


def _goes_on_elsewhere(newest: Attempt, expected: Mapping[str, Any]) -> bool:
    """Whether the cell still runs on a cluster as it should be, though whoever watched it is gone."""
    lost = newest.status == "lost" and newest.spec.fingerprints == dict(expected)
    return lost and launcher_class(newest.spec.launcher).is_under_way(newest.folder)


def _next_attempt(
    project: Project,
    key: CellKey,
    earlier: list[Attempt],
    examples: Path,
    expected: dict[str, str | None],
    *,
    watch: Watch,
    force: bool = False,
    after: str | None = None,
) -> Run:
    """A new attempt, from the last checkpoint of `earlier` where there is one. `after`: why it is made at once."""
    for attempt in earlier:
        launcher_class(attempt.spec.launcher).end(attempt.folder)
    resume = None if force else restart.resumable(earlier, expected, project.data.root)
    restart.clear(earlier, keep=resume["run_id"] if resume else None)
    folder = key.folder(project.data) / cells.new_run_id()
    queue(folder, _spec(project, key, folder.name, examples, expected, resume, after))
    return _run(project, Attempt(key, folder), watch)


def _run(project: Project, attempt: Attempt, watch: Watch) -> Run:
    """The attempt as a run."""

    def needs() -> None:
        spec, key = attempt.spec, attempt.key
        trackers.require(spec.report_to)
        require_divisible(spec.recipe, spec.sharding)
        if not for_method(project, key.method, examples_now(project)[1]).train:
            raise UnavailableError(no_examples(project, key.method))
        weights.fetch(project.data, project.experiments, key.model, say=watch.say)

    return Run(attempt.folder, CHILD, needs=needs, on_tick=lambda: watch.on_tick(attempt), outlook=restart.outlook)


def no_examples(project: Project, method: str) -> str:
    """Why the method has nothing to train on, and what to do."""
    provider = project.selection_of(method).provider
    named = "sources.providers" if provider != project.experiments.local_provider else "sources.local_generator"
    return (
        f"methods.{method}.data names provider {provider}, and no example of it is among those that profile {project.profile} "
        f"trains on (languages: {project.selection.languages}): let it be asked (enabled, {named}), run "
        f"`featherweight generate --provider {provider}`, then `featherweight clean`"
    )


def _spec(
    project: Project,
    key: CellKey,
    run_id: str,
    examples: Path,
    expected: dict[str, str | None],
    resume: dict[str, Any] | None,
    after: str | None = None,
) -> RunSpec:
    settings = project.experiments.training_for(project.profile, key.model, key.method)
    model, profile = project.experiments.model(key.model), project.experiments.profile(project.profile)
    folder = weights.model_folder(project.data, key.model, model)
    return RunSpec(
        run_id=run_id, model=key.model, method=key.method, seed=key.seed, profile=project.profile,
        root=str(project.data.root), examples=str(examples.relative_to(project.data.root)),
        weights=str(folder if model.source.path else folder.relative_to(project.data.root)),
        selection=asdict(project.selection_of(key.method)), recipe=recipe_of(project, key), fingerprints=expected,
        resume=resume, after=after, memory_budget_gb=settings.memory_budget_gb,
        time_limit_minutes=settings.time_limit_minutes, learning_rate_source=settings.learning_rate_source,
        report_to=settings.report_to, launcher=profile.launcher, **project.devices_of(key.method), deepspeed=profile.deepspeed,
        more={
            "eval_every_steps": settings.eval_every_steps, "checkpoint_every_steps": settings.checkpoint_every_steps,
            "tokens": {"bos": model.bos, "end": model.end}, "licence": model.licence,
        },
    )  # fmt: skip


def _drop_superseded_models(data: DataRoot, finished: Attempt) -> None:
    """Of one cell only the newest good model is kept; the other attempts keep their numbers."""
    for attempt in cells.attempts(data, finished.key):
        if attempt.run_id < finished.run_id:
            shutil.rmtree(attempt.model_folder, ignore_errors=True)
