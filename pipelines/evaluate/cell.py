"""The parent process of an evaluation: its fingerprint, whether it is current, and running it."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

from pipelines.errors import UsageError
from pipelines.evaluate import benchmarks_asked
from pipelines.evaluate.embedded import write_api_vectors
from pipelines.evaluate.general import FILE as GENERAL
from pipelines.evaluate.general import read_general, set_hash
from pipelines.lake.files import locked, stable_hash
from pipelines.lake.paths import DataRoot
from pipelines.lake.run_ids import new_run_id
from pipelines.project import ANY, Project, Resolved
from pipelines.retrieval import sources
from pipelines.runs import cells
from pipelines.runs.cells import Attempt, CellKey, Evaluation
from pipelines.runs.code import code_fingerprint
from pipelines.runs.launchers.chosen import launcher_class
from pipelines.runs.result import write_result
from pipelines.runs.run import Run, RunHooks, queue, run_with_retry
from pipelines.runs.spec import RunSpec
from pipelines.train.cell import train
from pipelines.weights import store

CHILD = "pipelines.evaluate.child"
# Earlier evaluations store only one hash over their inputs and their code. These are the code
# hashes of that time.
EARLIER_CODE = ("10dc1f0a69bb8a7b",)


def base_method(project: Project) -> str | None:
    """The name of the method that neither trains nor changes the prompt, if the grid has one."""
    return next((name for name, method in project.experiments.methods.items() if method.is_base), None)


def base_of(project: Project, model: str) -> CellKey | None:
    """The cell of the untouched model, the baseline of the model's other cells."""
    base = base_method(project)
    return CellKey(model, base, project.settings.seeds[0]) if base else None


def _longest(project: Project, model: str) -> int:
    """The max_length of the model's cells, by the settings of the untouched model."""
    return project.training_of(model, base_method(project) or next(iter(project.experiments.methods))).max_length


def _reads_as_its_parent(project: Project, name: str) -> bool:
    """Whether a model is another model of the profile with layers removed, and reads the same
    records.

    Such a model does not affect the set of records that all models can read.
    """
    model = project.experiments.model(name)
    parent = model.source.parent
    if parent is None or parent not in project.settings.models:
        return False
    same = model.template == project.experiments.model(parent).template
    return same and _longest(project, name) == _longest(project, parent)


def tokenizers_to_fit(project: Project) -> list[dict[str, Any]]:
    """Every model of the profile with local weights: its folder, prompt format and max_length.

    An evaluation record must fit all of them, including the virtual tokens of the profile's
    adapters.
    """
    readers = []
    methods = [project.experiments.method(name) for name in project.settings.methods]
    virtual = max((method.traits.virtual_tokens for method in methods), default=0)
    for name in project.settings.models:
        model = project.experiments.model(name)
        if not model.origin.source.random and store.is_present(project.data, name, model):
            form = {"prompt": model.prompt, "template": model.template}
            folder = str(store.model_folder(project.data, name, model))
            more = {"virtual_tokens": virtual} if virtual else {}
            readers.append({"model": name, "folder": folder, "max_length": _longest(project, name), **form, **more})
    return readers


@dataclass(frozen=True)
class EvaluatedBy:
    """The inputs of a profile's evaluations (`measured`: records, settings, general texts, models
    to fit, templates), and the hash of the measuring `code`."""

    measured: tuple[Any, ...]
    code: str

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two evaluations that can be compared."""
        return stable_hash([*self.measured, self.code])

    @cached_property
    def content_fingerprint(self) -> str:
        """The fingerprint without the code."""
        return stable_hash(list(self.measured))

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints that an evaluation records."""
        return {
            "evaluation": self.fingerprint,
            "evaluation_asked": self.content_fingerprint,
            "evaluation_code": self.code,
        }

    def changed_since(self, evaluation: Evaluation | None) -> str | None:
        """What has changed since `evaluation`: `code` if only the code, else `evaluation`; None if
        current."""
        prints = evaluation.result.fingerprints if evaluation else {}
        if prints.get("evaluation") == self.fingerprint:
            return None
        same_content = prints.get("evaluation_asked") == self.content_fingerprint
        return "code" if same_content or prints.get("evaluation") in self._earlier else "evaluation"

    @cached_property
    def _earlier(self) -> frozenset[str]:
        return frozenset(stable_hash([*self.measured, code]) for code in EARLIER_CODE)


def evaluated_by(resolved: Resolved) -> EvaluatedBy:
    """The current inputs and code of the profile's evaluations."""
    project, profile = resolved.project, resolved.project.settings
    texts = read_general(project.data.tracked(GENERAL), profile.languages, profile.evaluation.general_texts)
    models = [name for name in profile.models if not _reads_as_its_parent(project, name)]
    longest = {name: _longest(project, name) for name in models}
    templates = {name: held for name in models if (held := project.experiments.model(name).template)}
    records, settings = resolved.selected.eval_fingerprint, profile.evaluation.of_the_model
    benchmark_hashes = benchmarks_asked.contents(profile.evaluation)
    return EvaluatedBy(
        (records, settings, set_hash(texts), longest, templates, *benchmark_hashes), code_fingerprint(CHILD)
    )


def current_evaluation(attempt: Attempt, fingerprint: str) -> Evaluation | None:
    """The newest good evaluation of `attempt` made with `fingerprint`."""
    good = [e for e in attempt.evaluations() if e.ok and e.fingerprint == fingerprint]
    return good[-1] if good else None


def reusable(attempt: Attempt, by: EvaluatedBy, rerun_for: Collection[str]) -> Evaluation | None:
    """The newest good evaluation of `attempt` since which nothing in `rerun_for` has changed."""
    good = [one for one in attempt.evaluations() if one.ok and by.changed_since(one) not in rerun_for]
    return current_evaluation(attempt, by.fingerprint) or (good[-1] if good else None)


def trained(project: Project, key: CellKey) -> Attempt:
    """The newest attempt at `key`; it can be evaluated.

    Raises:
        UsageError: there is no attempt, or its status is not ok.
    """
    attempt = cells.latest(project.data, key)
    if attempt is None or attempt.status != "ok":
        status = attempt.status if attempt else "missing"
        raise UsageError(
            f"{key} is {status}; only an ok cell is evaluated: run `featherweight train {key.model} {key.method}"
            f"{'' if key.seed in project.settings.seeds else f' --seed {key.seed}'}`."
        )
    return attempt


def evaluate_base(
    resolved: Resolved, model: str, *, force: bool = False, hooks: RunHooks | None = None
) -> Evaluation | None:
    """Bring the untouched model's row up to date; None if the grid has no base method or its run
    fails."""
    base = base_of(resolved.project, model)
    if base is None or train(resolved, base, hooks=hooks)[0].status != "ok":
        return None
    return evaluate(resolved, base, force=force, hooks=hooks)[0]


def base_is_evaluated(resolved: Resolved, model: str, by: EvaluatedBy) -> bool:
    """Whether the untouched model has a current evaluation."""
    base = base_of(resolved.project, model)
    newest = cells.latest(resolved.data, base) if base else None
    return bool(
        newest and newest.status == "ok" and current_evaluation(newest, by.fingerprint) and resolved.fits(newest)
    )


def evaluate(
    resolved: Resolved,
    key: CellKey,
    *,
    force: bool = False,
    hooks: RunHooks | None = None,
    rerun_for: Collection[str] = ANY,
) -> tuple[Evaluation, bool]:
    """Evaluate the newest attempt at `key`; returns the evaluation and whether it was reused.

    An evaluation is reused if nothing in `rerun_for` has changed since.

    Raises:
        UsageError: the cell has no finished attempt, its last attempt is not ok, or the weights
            here differ from those of the attempt.
    """
    hooks, project = hooks or RunHooks(), resolved.project
    attempt = trained(project, key)
    resolved.require_same_weights(attempt, hooks.say)
    by = evaluated_by(resolved)
    with locked(key.folder(project.data) / "cell.lock", f"evaluate {key}", say=hooks.say):
        current = reusable(attempt, by, rerun_for)
        if current and not force:
            return current, True
        evaluation = None if force else _goes_on_elsewhere(attempt, by.fingerprint, project.data)
        if evaluation is None:
            for earlier in attempt.evaluations():
                if earlier.spec.is_of(resolved.data.root):
                    launcher_class(earlier.spec.launcher).end(earlier.folder)
            evaluation = _new_evaluation(resolved, attempt, by)
        if shape := project.experiments.model(key.model).origin.source.random:
            detail = f"random weights in the shape of {shape}: their quality is meaningless, so it is not measured"
            write_result(evaluation.folder, "ok", "evaluate", detail)
            return Evaluation(attempt, evaluation.folder), False

        # The failure of the first try is not repeated in the detail: an evaluation's detail names
        # only what it could not measure.
        def again(_after: str) -> Run:
            return _run(resolved, _new_evaluation(resolved, attempt, by), hooks)

        run = run_with_retry(_run(resolved, evaluation, hooks), again, project.site(hooks))
        return Evaluation(attempt, run.folder), False


def _goes_on_elsewhere(attempt: Attempt, fingerprint: str, data: DataRoot) -> Evaluation | None:
    """The newest evaluation if it still runs on a cluster with this fingerprint after its watcher
    died."""
    for newest in attempt.evaluations()[-1:]:
        recorded, launcher = newest.spec.fingerprints.get("evaluation"), launcher_class(newest.spec.launcher)
        lost = newest.result.status == "lost" and recorded == fingerprint and newest.spec.is_of(data.root)
        if lost and launcher.is_under_way(newest.folder):
            return newest
    return None


def spec_of(resolved: Resolved, attempt: Attempt) -> RunSpec:
    """The spec for any child process that measures a result on the profile's evaluation records."""
    project, spec = resolved.project, attempt.spec
    settings = project.training_of(attempt.key.model, attempt.key.method)
    weights_folder = attempt.model_folder if attempt.model_folder.exists() else None
    here = store.lies_in(project.data, attempt.key.model, project.experiments.model(attempt.key.model))
    settings_spec, benchmark_specs = (
        project.settings.evaluation.of_the_model,
        benchmarks_asked.for_spec(project.settings.evaluation),
    )
    benchmark_part = {"benchmarks": benchmark_specs} if benchmark_specs else {}
    looked_up = sources.spec_entries(
        project.data, project.experiments, spec.recipe.get("retrieval"), attempt.key.method
    )
    more = {
        "settings": settings_spec,
        "tokenizers_to_fit": tokenizers_to_fit(project),
        "batch_tokens": settings.micro_batch_tokens,
    }
    return RunSpec(
        run_id=spec.run_id, model=spec.model, method=spec.method, seed=spec.seed, profile=project.profile,
        root=str(project.data.root), examples=resolved.examples, weights=here, recipe=spec.recipe,
        trained=str(weights_folder.relative_to(project.data.root)) if weights_folder else None, selection=asdict(project.selection),
        memory_budget_gb=settings.memory_budget_gb, time_limit_minutes=settings.time_limit_minutes,
        more={**more, **looked_up, **benchmark_part},
    )  # fmt: skip


def _new_evaluation(resolved: Resolved, attempt: Attempt, by: EvaluatedBy) -> Evaluation:
    home, launcher = attempt.folder / "evaluations", resolved.project.settings.launcher
    folder = home / new_run_id(home)
    spec = replace(spec_of(resolved, attempt), fingerprints=by.fingerprints, launcher=launcher)
    queue(folder, spec, "evaluate")
    return Evaluation(attempt, folder)


def fetch_same_weights(resolved: Resolved, attempt: Attempt, hooks: RunHooks) -> None:
    """Fetch the weights that the attempt used.

    Raises:
        UsageError: the weights here, or the sources that its prompts search, differ from those of
            the attempt.
    """
    store.fetch(resolved.data, resolved.experiments, attempt.key.model, say=hooks.say)
    resolved.require_same_weights(attempt, hooks.say)
    sources.require(resolved.data, resolved.experiments, attempt.key.method, say=hooks.say)
    _require_same_sources(resolved, attempt)


def _require_same_sources(resolved: Resolved, attempt: Attempt) -> None:
    """Raise UsageError if the recipe names other documents or another embedding model than the
    method has now."""
    key, was = attempt.key, attempt.spec.recipe.get("retrieval") or {}
    known = resolved.experiments.methods.get(key.method)
    retrieval = known.retrieval if known else None
    now = sources.contents(resolved.data, resolved.experiments, retrieval) if retrieval else {}
    for name, what in (("documents", "other documents"), ("embeddings", "another embedding model")):
        if was.get(name) != now.get(name):
            raise UsageError(
                f"{key} was made with {what} than its method has now: run `featherweight train {key.model} {key.method}`."
            )


def _run(resolved: Resolved, evaluation: Evaluation, hooks: RunHooks) -> Run:
    """The evaluation as a run."""

    def fetch() -> None:
        fetch_same_weights(resolved, evaluation.attempt, hooks)
        write_api_vectors(resolved, evaluation, say=hooks.say)

    tick = partial(hooks.on_tick, evaluation.attempt)
    check = partial(benchmarks_asked.require, resolved.project.settings.evaluation)
    return Run(evaluation.folder, CHILD, phase="evaluate", check=check, fetch=fetch, on_tick=tick)
