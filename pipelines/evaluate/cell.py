"""The parent's half of an evaluation: what it measures with, whether it is current, running it, its last word."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import weights
from pipelines.clean.select import Selected
from pipelines.errors import UsageError
from pipelines.evaluate.general import FILE as GENERAL
from pipelines.evaluate.general import read_general, set_hash
from pipelines.files import locked, stable_hash
from pipelines.runs import cells
from pipelines.runs.cells import Attempt, CellKey, Evaluation
from pipelines.runs.code import code_fingerprint
from pipelines.runs.launchers.chosen import launcher_class
from pipelines.runs.result import write_result
from pipelines.runs.run import Run, Watch, and_once_more, queue
from pipelines.runs.spec import RunSpec
from pipelines.train import cell as training
from pipelines.train.cell import Project, examples_now

CHILD = "pipelines.evaluate.child"


def base_method(project: Project) -> str | None:
    """The name of the method that trains nothing and shows no examples, if the grid has one."""
    methods = project.experiments.methods.items()
    return next((name for name, method in methods if method.kind == "none" and not method.shots), None)


def readers(project: Project) -> list[dict[str, Any]]:
    """Every model of the profile whose weights are here: its folder, how it is asked, its max_length. An evaluation record must
    fit them all."""
    found = []
    for name in project.experiments.profile(project.profile).models:
        model = project.experiments.model(name)
        if not model.source.random and weights.is_present(project.data, name, model):
            method = base_method(project) or next(iter(project.experiments.methods))
            longest = project.experiments.training_for(project.profile, name, method).max_length
            asked = {"prompt": model.prompt, "template": model.template}
            folder = str(weights.model_folder(project.data, name, model))
            found.append({"model": name, "folder": folder, "max_length": longest, **asked})
    return found


def evaluation_fingerprint(project: Project, selected: Selected) -> str:
    """Hash of what evaluations of this profile measure on and with: records, settings, general texts, models to fit, the code."""
    profile = project.experiments.profile(project.profile)
    longest = {
        name: project.experiments.training_for(
            project.profile, name, base_method(project) or next(iter(project.experiments.methods))
        ).max_length
        for name in profile.models
    }
    texts = read_general(project.data.tracked(GENERAL), project.selection.languages, profile.evaluation.general_texts)
    code = code_fingerprint(CHILD)
    templates = {name: held for name in profile.models if (held := project.experiments.model(name).template)}
    measured = [selected.eval_fingerprint, profile.evaluation.model_dump(), set_hash(texts), longest, templates, code]
    return stable_hash(measured)


def current_evaluation(attempt: Attempt, fingerprint: str) -> Evaluation | None:
    """The newest good evaluation of `attempt` made with `fingerprint`."""
    good = [e for e in attempt.evaluations() if e.ok and e.fingerprint == fingerprint]
    return good[-1] if good else None


def evaluate(
    project: Project, key: CellKey, *, force: bool = False, watch: Watch | None = None
) -> tuple[Evaluation, bool]:
    """Evaluate the newest attempt at `key`, the untouched base model first where that has not been done.

    Returns the evaluation and whether it was reused.

    Raises:
        UsageError: the cell has no finished attempt, or its last one is not ok.
    """
    watch = watch or Watch()
    examples, selected = examples_now(project)
    attempt = cells.latest(project.data, key)
    if attempt is None or attempt.status != "ok":
        found = attempt.status if attempt else "missing"
        raise UsageError(
            f"{key} is {found}; only an ok cell is evaluated: run `featherweight train {key.model} {key.method}"
            f"{'' if key.seed in project.experiments.profile(project.profile).seeds else f' --seed {key.seed}'}`."
        )
    _base_first(project, key, watch)
    fingerprint = evaluation_fingerprint(project, selected)
    with locked(key.folder(project.data) / "cell.lock", f"evaluate {key}", say=watch.say):
        found = current_evaluation(attempt, fingerprint)
        if found and not force:
            return found, True
        evaluation = None if force else _goes_on_elsewhere(attempt, fingerprint)
        if evaluation is None:
            for earlier in attempt.evaluations():
                launcher_class(earlier.spec.launcher).end(earlier.folder)
            evaluation = _new_evaluation(project, attempt, examples, fingerprint)
        if shape := project.experiments.model(key.model).source.random:
            detail = f"random weights in the shape of {shape}: their quality says nothing, so it is not measured"
            write_result(evaluation.folder, "ok", "evaluate", detail)
            return Evaluation(attempt, evaluation.folder), False

        def again(after: str) -> Run:
            return _run(project, _new_evaluation(project, attempt, examples, fingerprint, after), watch)

        run = and_once_more(_run(project, evaluation, watch), again, project.site(watch))
        return Evaluation(attempt, run.folder), False


def _goes_on_elsewhere(attempt: Attempt, fingerprint: str) -> Evaluation | None:
    """The newest evaluation, where it still runs on a cluster as it should, though whoever watched it is gone."""
    for newest in attempt.evaluations()[-1:]:
        asked, launcher = newest.spec.fingerprints.get("evaluation"), launcher_class(newest.spec.launcher)
        if newest.result.status == "lost" and asked == fingerprint and launcher.is_under_way(newest.folder):
            return newest
    return None


def _base_first(project: Project, key: CellKey, watch: Watch) -> None:
    base = base_method(project)
    if base is None or key.method == base:
        return
    base_key = CellKey(key.model, base, project.experiments.profile(project.profile).seeds[0])
    attempt, _ = training.train(project, base_key, watch=watch)
    if attempt.status == "ok":
        evaluate(project, base_key, watch=watch)


def _new_evaluation(
    project: Project, attempt: Attempt, examples: Path, fingerprint: str, after: str | None = None
) -> Evaluation:
    folder = attempt.folder / "evaluations" / cells.new_run_id()
    profile = project.experiments.profile(project.profile)
    settings = project.experiments.training_for(project.profile, attempt.key.model, attempt.key.method)
    trained = attempt.model_folder if attempt.model_folder.exists() else None
    spec, told = attempt.spec, profile.evaluation.model_dump()
    queue(
        folder,
        RunSpec(
            run_id=spec.run_id, model=spec.model, method=spec.method, seed=spec.seed, profile=project.profile,
            root=str(project.data.root),
            examples=str(examples.relative_to(project.data.root)), weights=spec.weights, recipe=spec.recipe,
            trained=str(trained.relative_to(project.data.root)) if trained else None,
            selection=asdict(project.selection), fingerprints={"evaluation": fingerprint}, after=after,
            memory_budget_gb=settings.memory_budget_gb, time_limit_minutes=settings.time_limit_minutes,
            launcher=profile.launcher,
            more={"settings": told, "readers": readers(project), "batch_tokens": settings.micro_batch_tokens},
        ),
        "evaluate",
    )  # fmt: skip
    return Evaluation(attempt, folder)


def _run(project: Project, evaluation: Evaluation, watch: Watch) -> Run:
    """The evaluation as a run."""

    def needs() -> None:
        weights.fetch(project.data, project.experiments, evaluation.attempt.key.model, say=watch.say)

    tick = partial(watch.on_tick, evaluation.attempt)
    return Run(evaluation.folder, CHILD, phase="evaluate", needs=needs, on_tick=tick)
