"""One cell of the grid: trained, then evaluated. An outcome that is not ok is recorded and shown as a warning; the step
succeeds, and the evaluation of a cell that has no model is skipped."""

import multiprocessing
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC

import dagster as dg
from pydantic import Field

from assets.inputs import BASE_EVALUATION, cell_inputs, evaluation_inputs, note_inputs
from assets.metadata import numbers, picture, speed_note, table
from assets.project import CELLS, MODELS, OfProfile, cell_of, cell_pool, keys_of, project_now
from pipelines.choices import with_budget, with_max_examples
from pipelines.compare import plots
from pipelines.estimate.estimate import foresee
from pipelines.evaluate.cell import base_of, evaluate, evaluate_base
from pipelines.files import stable_hash
from pipelines.nightly.night import begin, hours_of_cells, limit_reached, money_left
from pipelines.project import ANY, Project, Resolved
from pipelines.runs.cells import Attempt, Evaluation, latest
from pipelines.runs.clock import now
from pipelines.runs.command import CellCommand, Ending, RunningCommand, Starter
from pipelines.runs.process import tie_to_parent
from pipelines.runs.run import Watch
from pipelines.train.cell import train

Context = dg.AssetExecutionContext
CELL_IS_OK = "cell_is_ok"
EVALUATION_IS_OK = "evaluation_is_ok"
WARN = dg.AssetCheckSeverity.WARN
BACKFILL = "dagster/backfill"


class CellConfig(dg.Config):
    """What one materialization, or every one of a backfill, does other than usual."""

    force: bool = Field(False, description="Train and evaluate also where the last result is current.")
    seeds: list[int] = Field([], description="Only these seeds; empty: the profile's.")
    max_examples: int | None = Field(
        None,
        description="Train on at most so many examples, as a trial; its row is stale, since the profile asks for more.",
    )
    budget_usd: float | None = Field(
        None,
        description="Stop (timed_out, with a checkpoint) at this cost by the profile's price_per_hour; empty: no cap.",
    )
    profile: str = Field(
        "auto", description="Whose settings count: a profile of experiments.yaml; auto: this machine's."
    )
    outside_profile: bool = Field(
        False, description="In a backfill also run cells that the profile does not name; else they are passed over."
    )
    rerun_for: list[str] = Field(
        list(ANY),
        description="Make a good row again only where one of these has changed. `make run` and the nightly leave out what "
        "nightly.rerun_for does.",
    )
    retime: bool = Field(
        False,
        description="Train a good row that nothing has changed since again, for its speed; it stays unless the new one ends ok.",
    )
    night: str = Field("", description="Set by the nightly: under whose budget and hours it runs.")
    seen: dict[str, str] = Field(
        {},
        description="Set by the nightly: each seed's newest attempt when it was asked for; a newer one is taken as it is.",
    )

    def project(self) -> Project:
        return project_now(self.profile)

    def applied(self, resolved: Resolved, cell: tuple[str, str], began: str) -> Resolved:
        """With what the next seed, or evaluation, of a run that `began` then may use. Cells that run side by side elsewhere share
        what is left to the night."""
        project = resolved.project
        spent = hours_of_cells(project.data, began, cell) * (project.settings.price_per_hour or 0.0)
        budgets = [max(self.budget_usd - spent, 0.0)] if self.budget_usd is not None else []
        if self.night:
            left = money_left(project, project.experiments.nightly, begin(project.data, self.night)["started_at"])
            budgets += [max(left, 0.0) / project.launcher().at_once] if left is not None else []
        if self.max_examples is not None:
            project = with_max_examples(project, cell, self.max_examples)
        return resolved.under(with_budget(project, cell, min(budgets)) if budgets else project)


def passed_over(context: Context, config: CellConfig, project: Project) -> str | None:
    """Why the cell is not run now, though it was asked for; None where it is."""
    model, method = cell_of(context.partition_key)
    profile = project.settings
    named = model in profile.models and method in profile.methods
    if BACKFILL in context.run.tags and not named and not config.outside_profile:
        return (
            f"profile {project.profile} does not name {model} × {method}: a backfill does the profile's cells; set "
            "outside_profile, or materialize this cell alone"
        )
    if config.night:
        nightly = project.experiments.nightly
        return limit_reached(project, nightly, begin(project.data, config.night)["started_at"])
    return None


class OptionalOutputs(dg.AssetExecutionContext):
    """The step's context for a Pipes session that leaves outputs optional: opening one makes all of them required, but a
    cell that did not end ok has no model to materialize."""

    def set_requires_typed_event_stream(self, *, error_message: str | None = None) -> None:
        pass


class PipesLauncher:
    """A launcher with a Dagster Pipes session around each command: what the child says appears in the run's log."""

    def __init__(self, context: Context, inner: Starter) -> None:
        self._inner = inner
        self._context = OptionalOutputs(context.op_execution_context)

    def start(self, command: CellCommand) -> "PipesCommand":
        stack = ExitStack()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.PreviewWarning)  # Dagster's own, about a method we do not use
            session = stack.enter_context(
                dg.open_pipes_session(
                    context=self._context,
                    context_injector=dg.PipesEnvContextInjector(),
                    message_reader=dg.PipesTempFileMessageReader(),
                )
            )
        env = {**command.env, **session.get_bootstrap_env_vars()}
        told = CellCommand(**{**vars(command), "env": env})
        try:
            return PipesCommand(self._inner.start(told), stack)
        except BaseException:
            stack.close()
            raise


class PipesCommand(RunningCommand):
    def __init__(self, running: RunningCommand, session: ExitStack) -> None:
        self._running = running
        self._session = session

    @property
    def asked_bytes(self) -> int:
        return self._running.asked_bytes

    def poll(self) -> int | None:
        return self._running.poll()

    def memory_bytes(self) -> int:
        return self._running.memory_bytes()

    def ending(self) -> Ending | None:
        return self._running.ending()

    def stop(self, *, grace_seconds: float = 0) -> None:
        self._running.stop(grace_seconds=grace_seconds)
        self._session.close()


def _watch(context: Context) -> Watch:
    tie_to_parent()
    return Watch(say=context.log.info, around=lambda inner: PipesLauncher(context, inner), on_tick=stop_if_orphaned)


def stop_if_orphaned(_attempt: Attempt) -> None:
    """End the step, and with it its child, when the process that executes the run is gone (Dagster's steps are children of
    a fork server, which outlives it).

    Raises:
        DagsterExecutionInterruptedError: nobody is left to report to.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise dg.DagsterExecutionInterruptedError("the process that executed this run is gone")


@dg.asset(
    group_name="train",
    kinds={"pytorch", "huggingface"},
    partitions_def=CELLS,
    pool=cell_pool(),
    deps=[cell_inputs],
    output_required=False,
    check_specs=[dg.AssetCheckSpec(CELL_IS_OK, asset="trained_model", description="Every seed of the cell ended ok.")],
)
def trained_model(context: Context, config: CellConfig) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """One model trained by one method, in a process of its own; attempts lie in `data/lake/cells/<model>/<method>/<seed>/`.

    A cell that is current is reused. One that ends in out_of_memory, killed, timed_out, ... is a row of the comparison and a
    warning here.
    """
    project = config.project()
    if why := passed_over(context, config, project):
        context.log.warning(f"not run: {why}")
        yield dg.AssetCheckResult(check_name=CELL_IS_OK, passed=False, severity=WARN, metadata={"not run": why})
        return
    resolved = project.resolve()
    know_inputs(context, resolved)
    watch = _watch(context)
    foresee(project, resolved)
    if config.budget_usd is not None and not project.settings.price_per_hour:
        context.log.warning(f"budget_usd caps nothing: profile {project.profile} has no price_per_hour")
    cell, began = cell_of(context.partition_key), _began(context)
    done = [
        train(
            config.applied(resolved, cell, began),
            key,
            force=config.force,
            watch=watch,
            seen=config.seen.get(str(key.seed)),
            rerun_for=config.rerun_for,
            retime=config.retime,
        )
        for key in keys_of(context, project, config.seeds)
    ]
    if resolved.weights_now(cell[0], context.log.info):  # which training may have fetched
        know_inputs(context, resolved)
    for attempt, reused in done:
        context.log.info(f"{attempt.key}: {attempt.status}{', reused' if reused else ''}")
    attempts = [attempt for attempt, _ in done]
    bad = [attempt for attempt in attempts if attempt.status != "ok"]
    metadata = _training_metadata(attempts, reused=all(reused for _, reused in done))
    yield dg.AssetCheckResult(
        check_name=CELL_IS_OK,
        passed=not bad,
        severity=WARN,
        metadata={f"seed {a.key.seed}": f"{a.status}: {a.result.status_detail}" for a in bad},
    )
    if bad:
        context.log.warning("; ".join(f"{a.key} is {a.status}: {a.result.status_detail}" for a in bad))
        context.log_event(
            dg.AssetObservation(asset_key="trained_model", partition=context.partition_key, metadata=metadata)
        )
        return
    yield dg.MaterializeResult(data_version=_version([a.run_id for a in attempts]), metadata=metadata)


def _began(context: Context) -> str:
    """When this run was made, in the lake's form."""
    record = context.instance.get_run_record_by_id(context.run_id)
    return record.create_timestamp.replace(tzinfo=UTC).isoformat(timespec="milliseconds") if record else now()


def know_inputs(context: Context, resolved: Resolved) -> None:
    """Have Dagster note as this step's inputs what they are now, not what they were when it last looked."""
    _know(context, resolved, [cell_of(context.partition_key)])


def _know(context: Context, resolved: Resolved, cells: list[tuple[str, str]]) -> None:
    if note_inputs(context.instance, resolved, cells):
        context.get_step_execution_context().fetch_external_input_asset_version_info()


def _version(made: list[str]) -> dg.DataVersion:
    """Equal where the same attempts were reused, so that nothing downstream becomes stale."""
    return dg.DataVersion(stable_hash(made))


def _training_metadata(attempts: list[Attempt], *, reused: bool) -> dict[str, dg.MetadataValue]:
    newest = attempts[-1]
    curves = {f"seed {attempt.key.seed}": attempt.curve() for attempt in attempts}
    shown = ["step", "examples", "train_loss", "eval_loss", "learning_rate", "process_memory_mb", "elapsed_seconds"]
    return {
        "status": dg.MetadataValue.text(", ".join(dict.fromkeys(attempt.status for attempt in attempts))),
        "reused": dg.MetadataValue.bool(reused),
        "run_id": dg.MetadataValue.text(newest.run_id),
        "folder": dg.MetadataValue.path(newest.folder),
        "log": dg.MetadataValue.path(newest.folder / "log.txt"),
        **picture(plots.loss_curves(curves, "png"), "loss curve"),
        **speed_note(newest.result.measured, newest.result.device),
        "curve": table(newest.curve()[-50:], shown),
        **numbers(newest.result.measured),
    }


class BaseConfig(OfProfile):
    """What one materialization of an untouched model does other than usual."""

    force: bool = Field(False, description="Evaluate also where the last result is current.")
    outside_profile: bool = Field(False, description="Also where the profile does not name the model.")


@dg.asset(
    key=BASE_EVALUATION,
    group_name="evaluate",
    kinds={"pytorch", "huggingface"},
    partitions_def=MODELS,
    pool=cell_pool(),
    deps=[evaluation_inputs],
    output_required=False,
)
def base_evaluation(context: Context, config: BaseConfig) -> Iterator[dg.MaterializeResult]:
    """The untouched model, evaluated: what the other cells of the same model are compared with. It is the row of method `base`;
    when that cell has been evaluated it is noted here, too.
    """
    project, model = project_now(config.profile), context.partition_key
    if model not in project.settings.models and not config.outside_profile:
        context.log.warning(f"not run: profile {project.profile} does not name {model}; set outside_profile to run it")
        return
    resolved = project.resolve()
    _know(context, resolved, [])
    found = evaluate_base(resolved, model, force=config.force, watch=_watch(context))
    if found is None or not found.ok:
        context.log.warning(f"{model} is not evaluated: {_why_not(resolved, model, found)}")
        return
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(str(found.fingerprint)), metadata=_evaluation_metadata(found)
    )


def _why_not(resolved: Resolved, model: str, found: Evaluation | None) -> str:
    if found:
        return f"{found.result.status}: {found.result.detail}"
    base = base_of(resolved.project, model)
    newest = latest(resolved.data, base) if base else None
    return f"{newest.status}: {newest.result.detail}" if newest else "no method leaves a model untouched"


@dg.asset(
    group_name="evaluate",
    kinds={"pytorch", "huggingface"},
    partitions_def=CELLS,
    pool=cell_pool(),
    deps=[trained_model, evaluation_inputs, base_evaluation],
    output_required=False,
    check_specs=[dg.AssetCheckSpec(EVALUATION_IS_OK, asset="evaluation", description="Every seed could be evaluated.")],
)
def evaluation(context: Context, config: CellConfig) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Losses on held-out records and general texts, greedy answers and what serving costs, of a trained cell, beside its attempt's
    folder. Nobody is asked about the answers here, where the device is held: that is `judged_answers`.
    """
    resolved = config.project().resolve()
    know_inputs(context, resolved)
    watch = _watch(context)
    cell, began = cell_of(context.partition_key), _began(context)
    done = [
        evaluate(
            config.applied(resolved, cell, began),
            key,
            force=config.force,
            watch=watch,
            rerun_for=config.rerun_for,
        )
        for key in keys_of(context, resolved.project, config.seeds)
    ]
    bad = [found for found, _ in done if not found.ok]
    yield dg.AssetCheckResult(
        check_name=EVALUATION_IS_OK,
        passed=not bad,
        severity=WARN,
        metadata={f.attempt.run_id: f"{f.result.status}: {f.result.status_detail}" for f in bad},
    )
    if not bad:
        know_inputs(context, resolved)  # of the untouched model, that it now has an evaluation
        metadata = _evaluation_metadata(done[-1][0], reused=all(reused for _, reused in done))
        yield dg.MaterializeResult(data_version=_version([f.folder.name for f, _ in done]), metadata=metadata)


def _evaluation_metadata(found: Evaluation, *, reused: bool = False) -> dict[str, dg.MetadataValue]:
    return {
        "reused": dg.MetadataValue.bool(reused),
        "folder": dg.MetadataValue.path(found.folder),
        **numbers(found.result.measured),
        "answers": table(found.answers(), ["prompt", "reference", "answer", "answer_tokens", "chrf", "rouge_l"]),
    }
