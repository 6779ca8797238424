"""One cell of the grid: trained, then evaluated. An outcome that is not ok is recorded and shown as a warning; the step
succeeds, and the evaluation of a cell that has no model is skipped."""

import multiprocessing
import warnings
from collections.abc import Iterator
from contextlib import ExitStack

import dagster as dg

from assets.cleaning import sft_examples
from assets.metadata import numbers, picture, table
from assets.project import CELLS, DEVICE_POOL, keys_of, stage_now
from pipelines.cells import Attempt, Evaluation
from pipelines.compare import plots
from pipelines.evaluate import answers
from pipelines.evaluate.cell import evaluate
from pipelines.generate.show import ProgressLines, summary
from pipelines.launcher import CellCommand, LocalLauncher, RunningCommand
from pipelines.process import tie_to_parent
from pipelines.train.cell import Watch, train

Context = dg.AssetExecutionContext
CELL_IS_OK = "cell_is_ok"
EVALUATION_IS_OK = "evaluation_is_ok"


class CellConfig(dg.Config):
    """`force`: train and evaluate also where the last result is current."""

    force: bool = False


class OptionalOutputs(dg.AssetExecutionContext):
    """The step's context for a Pipes session that leaves outputs optional: opening one makes all of them required, but a
    cell that did not end ok has no model to materialize."""

    def set_requires_typed_event_stream(self, *, error_message: str | None = None) -> None:
        pass


class PipesLauncher:
    """The local launcher with a Dagster Pipes session around each command: what the child says appears in the run's log."""

    def __init__(self, context: Context) -> None:
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
        return PipesCommand(LocalLauncher().start(told), stack)


class PipesCommand:
    def __init__(self, running: RunningCommand, session: ExitStack) -> None:
        self._running = running
        self._session = session

    def poll(self) -> int | None:
        return self._running.poll()

    def memory_bytes(self) -> int:
        return self._running.memory_bytes()

    def stop(self, *, grace_seconds: float = 0) -> None:
        self._running.stop(grace_seconds=grace_seconds)
        self._session.close()


def _watch(context: Context) -> Watch:
    tie_to_parent()
    return Watch(say=context.log.info, launcher=PipesLauncher(context), on_tick=stop_if_orphaned)


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
    pool=DEVICE_POOL,
    deps=[sft_examples],
    output_required=False,
    check_specs=[dg.AssetCheckSpec(CELL_IS_OK, asset="trained_model", description="Every seed of the cell ended ok.")],
)
def trained_model(context: Context, config: CellConfig) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """One model trained by one method, in a process of its own; attempts lie in `data/lake/cells/<model>/<method>/<seed>/`.

    A cell that is current is reused. One that ends in out_of_memory, killed, timed_out, ... is a row of the comparison and a
    warning here.
    """
    stage = stage_now()
    watch = _watch(context)
    done = [train(stage, key, force=config.force, watch=watch) for key in keys_of(context, stage)]
    for attempt, reused in done:
        context.log.info(f"{attempt.key}: {attempt.status}{', reused: it is current' if reused else ''}")
    attempts = [attempt for attempt, _ in done]
    bad = [attempt for attempt in attempts if attempt.status != "ok"]
    metadata = _training_metadata(attempts, reused=all(reused for _, reused in done))
    yield dg.AssetCheckResult(
        check_name=CELL_IS_OK,
        passed=not bad,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={f"seed {a.key.seed}": f"{a.status}: {a.result['status_detail']}" for a in bad},
    )
    if bad:
        context.log.warning("; ".join(f"{a.key} is {a.status}: {a.result['status_detail']}" for a in bad))
        context.log_event(
            dg.AssetObservation(asset_key="trained_model", partition=context.partition_key, metadata=metadata)
        )
        return
    yield dg.MaterializeResult(metadata=metadata)


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
        "curve": table(newest.curve()[-50:], shown),
        **numbers(newest.result.get("measured", {})),
    }


@dg.asset(
    group_name="evaluate",
    kinds={"pytorch", "huggingface"},
    partitions_def=CELLS,
    pool=DEVICE_POOL,
    deps=[trained_model],
    output_required=False,
    check_specs=[dg.AssetCheckSpec(EVALUATION_IS_OK, asset="evaluation", description="Every seed could be evaluated.")],
)
def evaluation(context: Context, config: CellConfig) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Losses on held-out records and general texts, greedy answers and what serving costs, of a trained cell, beside its attempt's
    folder. With `judging` configured, teachers and judge are asked about the answers, within the providers' budgets.
    """
    stage = stage_now()
    watch = _watch(context)
    done = [evaluate(stage, key, force=config.force, watch=watch) for key in keys_of(context, stage)]
    bad = [found for found, _ in done if not found.ok]
    if good := [found for found, _ in done if found.ok]:
        asked = answers.ask(stage, good, progress=ProgressLines(context.log.info))
        for line in summary(asked):
            (context.log.warning if " stopped: " in line else context.log.info)(line)
    yield dg.AssetCheckResult(
        check_name=EVALUATION_IS_OK,
        passed=not bad,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={f.attempt.run_id: f"{f.result['status']}: {f.result['status_detail']}" for f in bad},
    )
    if not bad:
        yield dg.MaterializeResult(metadata=_evaluation_metadata(done[-1][0], reused=all(reused for _, reused in done)))


def _evaluation_metadata(found: Evaluation, *, reused: bool) -> dict[str, dg.MetadataValue]:
    return {
        "reused": dg.MetadataValue.bool(reused),
        "folder": dg.MetadataValue.path(found.folder),
        **numbers(found.result["measured"]),
        "answers": table(found.answers(), ["prompt", "reference", "answer", "answer_tokens", "chrf", "rouge_l"]),
    }
