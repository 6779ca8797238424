"""Training and evaluation of one cell of the grid.

An outcome that is not ok is recorded and shown as a warning; the step still succeeds. The
evaluation of a cell without a model is skipped.
"""

import multiprocessing
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC
from pathlib import Path

import dagster as dg

from assets.checks import CELL_IS_OK, EVALUATION_IS_OK, cell_is_ok, evaluation_is_ok, not_run, per_cell
from assets.described import ROWS
from assets.grid import grid_of, newest_rows
from assets.inputs import BASE_EVALUATION, cell_inputs, evaluation_inputs, note_inputs
from assets.launchpad import BaseConfig, CellConfig, night_is_over, seen_by
from assets.metadata import numbers, picture, speed_note, table
from assets.partitions import CELLS, MODELS
from assets.picked import reason_not_run, record_no_result, record_skipped
from assets.project import cell_of, cell_pool, keys_of, project_now
from pipelines.compare import plots
from pipelines.estimate.estimate import ensure_predictions
from pipelines.evaluate.cell import base_of, evaluate, evaluate_base
from pipelines.lake.files import stable_hash
from pipelines.lake.paths import data_root
from pipelines.project import Project, Resolved
from pipelines.runs.cells import Attempt, Evaluation, latest
from pipelines.runs.clock import now
from pipelines.runs.command import CellCommand, Ending, RunningCommand, Starter
from pipelines.runs.process import tie_to_parent
from pipelines.runs.run import RunHooks
from pipelines.train.cell import train

Context = dg.AssetExecutionContext
PLOTTED_OF_TRAINING = ("train_loss", "train_seconds", "tokens_per_second", "peak_memory_gb", "process_memory_mean_mb")
PLOTTED_OF_EVALUATION = (
    "eval_bits_per_byte",
    "general_bits_per_byte",
    "chrf",
    "answer_tokens_per_second",
    "p50_latency_ms",
)
CURVE = {
    "step": "step",
    "train loss": "train_loss",
    "eval loss": "eval_loss",
    "rate": "learning_rate",
    "s": "elapsed_seconds",
}


class OptionalOutputs(dg.AssetExecutionContext):
    """The step's context for a Pipes session that keeps outputs optional.

    Opening a session makes all outputs required, but a cell that did not end ok has no model to
    materialize.
    """

    def set_requires_typed_event_stream(self, *, error_message: str | None = None) -> None:
        pass


class PipesLauncher:
    """A launcher with a Dagster Pipes session around each command, so that the run's log has the
    child's messages."""

    def __init__(self, context: Context, inner: Starter) -> None:
        self._inner = inner
        self._context = OptionalOutputs(context.op_execution_context)

    def start(self, command: CellCommand) -> "PipesCommand":
        stack = ExitStack()
        with warnings.catch_warnings():
            # Dagster warns about a method that we do not use.
            warnings.simplefilter("ignore", dg.PreviewWarning)
            session = stack.enter_context(
                dg.open_pipes_session(
                    context=self._context,
                    context_injector=dg.PipesEnvContextInjector(),
                    message_reader=dg.PipesTempFileMessageReader(),
                )
            )
        env = {**command.env, **session.get_bootstrap_env_vars()}
        child_command = CellCommand(**{**vars(command), "env": env})
        try:
            return PipesCommand(self._inner.start(child_command), stack)
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


def _watch(context: Context) -> RunHooks:
    tie_to_parent()
    return RunHooks(say=context.log.info, around=lambda inner: PipesLauncher(context, inner), on_tick=stop_if_orphaned)


def stop_if_orphaned(_attempt: Attempt) -> None:
    """End the step and its child when the process that executes the run is gone.

    Dagster's steps are children of a fork server, which outlives that process.

    Raises:
        DagsterExecutionInterruptedError: the process that executes the run is gone.
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
    check_specs=[per_cell(CELL_IS_OK, "trained_model", "Every seed of the cell ended ok; else its status and advice.")],
)
def trained_model(context: Context, config: CellConfig) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """One row is one attempt at a cell (one model × one method); each seed has its own process.

    Attempts are in `data/lake/cells/<model>/<method>/<seed>/`. A current cell is reused. A cell
    that ends as out_of_memory, killed, timed_out, ... is a row of the comparison and a warning
    here.
    """
    project = config.project()
    if why := reason_not_run(context, project, config.outside_profile) or night_is_over(project, context.run):
        context.log.warning(f"not run: {why}")
        record_no_result(context, "trained_model", {"not run": why})
        yield not_run(CELL_IS_OK, why)
        record_skipped(context, "evaluation", EVALUATION_IS_OK, why)
        return
    resolved = project.resolve()
    refresh_inputs(context, resolved)
    ensure_predictions(project, resolved)
    if why := config.choices.no_cap(project):
        context.log.warning(why)
    results = _trained(context, config, resolved)
    # Training may have fetched the weights.
    if resolved.weights_now(cell_of(context.partition_key)[0], context.log.info):
        refresh_inputs(context, resolved)
    for attempt, reused in results:
        context.log.info(f"{attempt.key}: {attempt.status}{', reused' if reused else ''}")
    attempts = [attempt for attempt, _ in results]
    metadata, check = _training_metadata(attempts, reused=all(reused for _, reused in results)), cell_is_ok(attempts)
    metadata = grid_of(newest_rows(project)) | metadata
    if check.passed:
        version = _version([attempt.run_id for attempt in attempts])
        yield dg.MaterializeResult(data_version=version, metadata=metadata, check_results=[check])
        return
    bad = [a for a in attempts if a.status != "ok"]
    context.log.warning("; ".join(f"{a.key} is {a.status}: {a.result.status_detail}" for a in bad))
    context.log_event(dg.AssetObservation("trained_model", partition=context.partition_key, metadata=metadata))
    record_no_result(context, "trained_model", metadata)
    record_skipped(context, "evaluation", EVALUATION_IS_OK, f"the cell is {metadata['status'].value}")
    # The check comes last, since it belongs to the newest event of its partition.
    yield check


def _trained(context: Context, config: CellConfig, resolved: Resolved) -> list[tuple[Attempt, bool]]:
    """Each seed's attempt, and whether it was reused."""
    hooks, seen = _watch(context), seen_by(context.run)
    cell, began = cell_of(context.partition_key), _began(context)
    return [
        train(
            config.applied(resolved, cell, began, context.run),
            key,
            force=config.force,
            hooks=hooks,
            known_run_id=seen.get(str(key.seed)),
            rerun_for=config.rerun_for,
            retime=config.retime,
        )
        for key in keys_of(context, resolved.project, config.seeds)
    ]


def _began(context: Context) -> str:
    """The creation time of this run, in the lake's format."""
    record = context.instance.get_run_record_by_id(context.run.run_id)
    return record.create_timestamp.replace(tzinfo=UTC).isoformat(timespec="milliseconds") if record else now()


def refresh_inputs(context: Context, resolved: Resolved) -> None:
    """Make Dagster record the current versions of this step's inputs, not those of its last
    check."""
    _refresh(context, resolved, [cell_of(context.partition_key)])


def _refresh(context: Context, resolved: Resolved, cells: list[tuple[str, str]]) -> None:
    if note_inputs(context.instance, resolved, cells):
        context.get_step_execution_context().fetch_external_input_asset_version_info()


def _version(names: list[str]) -> dg.DataVersion:
    """Equal if the same attempts were reused, so that nothing downstream becomes stale."""
    return dg.DataVersion(stable_hash(names))


def _relative(folder: Path) -> str:
    """The folder relative to the data root. A full path does not fit a page of 1,440 pixels and
    does not wrap."""
    return str(folder.relative_to(data_root().root))


def _training_metadata(attempts: list[Attempt], *, reused: bool) -> dict[str, dg.MetadataValue]:
    newest = attempts[-1]
    curves = {f"seed {attempt.key.seed}": attempt.curve() for attempt in attempts}
    curve = [{heading: point.get(name) for heading, name in CURVE.items()} for point in newest.curve()[-50:]]
    return {
        ROWS: dg.MetadataValue.int(len(attempts)),
        "status": dg.MetadataValue.text(", ".join(dict.fromkeys(attempt.status for attempt in attempts))),
        "reused": dg.MetadataValue.bool(reused),
        "run_id": dg.MetadataValue.text(newest.run_id),
        "folder, with log.txt": dg.MetadataValue.text(_relative(newest.folder)),
        **picture(plots.loss_curves(curves, "png"), "loss curve"),
        **speed_note(newest.result.measured, newest.result.device),
        "curve": table(curve, list(CURVE)),
        **numbers(newest.result.measured, PLOTTED_OF_TRAINING),
    }


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
    """One row is one answer of an untouched model to a held-out record, the baseline of its other
    cells.

    It is the row of method `base`. An evaluation of that cell is also recorded here.
    """
    project, model = project_now(config.profile), context.partition_key
    if why := reason_not_run(context, project, config.outside_profile):
        context.log.warning(f"not run: {why}")
        record_no_result(context, "base_evaluation", {"not run": why})
        return
    resolved = project.resolve()
    _refresh(context, resolved, [])
    run = evaluate_base(resolved, model, force=config.force, hooks=_watch(context))
    if run is None or not run.ok:
        why = _why_not(resolved, model, run)
        context.log.warning(f"{model} is not evaluated: {why}")
        record_no_result(context, "base_evaluation", {"not evaluated": why})
        return
    yield dg.MaterializeResult(data_version=dg.DataVersion(str(run.fingerprint)), metadata=_evaluation_metadata(run))


def _why_not(resolved: Resolved, model: str, run: Evaluation | None) -> str:
    if run:
        return f"{run.result.status}: {run.result.detail}"
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
    check_specs=[
        per_cell(EVALUATION_IS_OK, "evaluation", "Every seed of the cell could be evaluated; else the reason.")
    ],
)
def evaluation(context: Context, config: CellConfig) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """One row is one answer of a cell (one model × one method) to a held-out record, with its
    scores.

    It also measures losses on held-out records and general texts, and the serving cost. The results
    are in the attempt's folder. Judges and teachers are not asked here, where the device is held,
    but in `judged_answers`.
    """
    project = config.project()
    if why := reason_not_run(context, project, config.outside_profile) or _untrained(context, project, config):
        context.log.warning(f"not evaluated: {why}")
        record_no_result(context, "evaluation", {"not evaluated": why})
        yield not_run(EVALUATION_IS_OK, why)
        return
    resolved = project.resolve()
    refresh_inputs(context, resolved)
    results = _evaluated(context, config, resolved)
    check = evaluation_is_ok([one for one, _ in results])
    if not check.passed:
        record_no_result(context, "evaluation", dict(check.metadata))
        yield check
        return
    # The untouched model may now have an evaluation.
    refresh_inputs(context, resolved)
    metadata = _evaluation_metadata(results[-1][0], reused=all(reused for _, reused in results))
    version = _version([one.folder.name for one, _ in results])
    yield dg.MaterializeResult(data_version=version, metadata=metadata, check_results=[check])


def _untrained(context: Context, project: Project, config: CellConfig) -> str | None:
    """A message on the seeds without a model to evaluate; None if all have one."""
    newest = {key: latest(project.data, key) for key in keys_of(context, project, config.seeds)}
    bad = [
        f"{key} is {attempt.status if attempt else 'missing'}"
        for key, attempt in newest.items()
        if not attempt or attempt.status != "ok"
    ]
    return f"{', '.join(bad)}; only an ok cell is evaluated: materialize trained_model" if bad else None


def _evaluated(context: Context, config: CellConfig, resolved: Resolved) -> list[tuple[Evaluation, bool]]:
    """Each seed's evaluation, and whether it was reused."""
    hooks = _watch(context)
    cell, began = cell_of(context.partition_key), _began(context)
    return [
        evaluate(
            config.applied(resolved, cell, began, context.run),
            key,
            force=config.force,
            hooks=hooks,
            rerun_for=config.rerun_for,
        )
        for key in keys_of(context, resolved.project, config.seeds)
    ]


def _evaluation_metadata(run: Evaluation, *, reused: bool = False) -> dict[str, dg.MetadataValue]:
    answers = run.answers()
    return {
        ROWS: dg.MetadataValue.int(len(answers)),
        "reused": dg.MetadataValue.bool(reused),
        "folder": dg.MetadataValue.text(_relative(run.folder)),
        **numbers(run.result.measured, PLOTTED_OF_EVALUATION),
        "answers": table(answers, ["prompt", "reference", "answer", "answer_tokens", "chrf", "rouge_l"]),
    }
