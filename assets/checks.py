"""Checks with one result per cell, so that a good cell cannot hide the failure of another."""

import warnings
from collections.abc import Mapping, Sequence

import dagster as dg

from assets.partitions import CELLS
from pipelines.runs.cells import Attempt, Evaluation

CELL_IS_OK = "cell_is_ok"
EVALUATION_IS_OK = "evaluation_is_ok"
WARN = dg.AssetCheckSeverity.WARN


def per_cell(name: str, asset: str, description: str) -> dg.AssetCheckSpec:
    """A check with one result per cell."""
    with warnings.catch_warnings():
        # Partitioned checks are a preview; the tests name the Dagster version that was tried.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(name, asset=asset, description=description, partitions_def=CELLS)


def not_run(name: str, why: str) -> dg.AssetCheckResult:
    """A failed check for a cell that was not run, with the reason."""
    return dg.AssetCheckResult(check_name=name, passed=False, severity=WARN, metadata={"not run": why})


def cell_is_ok(attempts: Sequence[Attempt]) -> dg.AssetCheckResult:
    """Passes if every seed's attempt ended ok; shows the numbers in both cases."""
    measured = {
        "peak memory": _text(_largest(attempts, "peak_memory_gb"), ".2f", "GB"),
        "train loss": _text(_mean(attempts, "train_loss"), ".3f", "nats per token"),
        "training took": _text(_mean(attempts, "train_seconds"), ".0f", "s"),
    }
    return _result(CELL_IS_OK, attempts, measured)


def evaluation_is_ok(evaluations: Sequence[Evaluation]) -> dg.AssetCheckResult:
    """Passes if every seed could be evaluated; shows the numbers in both cases."""
    trained = [evaluation.attempt for evaluation in evaluations]
    measured = {
        "bits per byte": _text(_mean(evaluations, "eval_bits_per_byte"), ".4f", "on held-out records; lower is better"),
        "records": _text(_largest(evaluations, "eval_records"), ".0f", ""),
        "peak memory of training": _text(_largest(trained, "peak_memory_gb"), ".2f", "GB"),
    }
    return _result(EVALUATION_IS_OK, evaluations, measured)


def _result(
    name: str, runs: Sequence[Attempt] | Sequence[Evaluation], measured: Mapping[str, str | None]
) -> dg.AssetCheckResult:
    statuses = [run.result.status for run in runs]
    details = {
        f"seed {_seed(run)}": f"{run.result.status}: {run.result.status_detail or 'no detail'}"
        for run in runs
        if run.result.status != "ok"
    }
    return dg.AssetCheckResult(
        check_name=name,
        passed=not details,
        severity=WARN,
        metadata={
            "status": ", ".join(dict.fromkeys(statuses)),
            "seeds ok": f"{statuses.count('ok')} of {len(statuses)}",
            **{label: value for label, value in measured.items() if value is not None},
            **details,
        },
    )


def _seed(run: Attempt | Evaluation) -> int:
    return run.key.seed if isinstance(run, Attempt) else run.attempt.key.seed


def _values(runs: Sequence[Attempt] | Sequence[Evaluation], name: str) -> list[float]:
    return [value for run in runs if (value := run.result.measured.get(name)) is not None]


def _mean(runs: Sequence[Attempt] | Sequence[Evaluation], name: str) -> float | None:
    values = _values(runs, name)
    return sum(values) / len(values) if values else None


def _text(value: float | None, form: str, unit: str) -> str | None:
    """The value as text. Dagster would plot numbers of different cells as one line and drop them
    from the list."""
    return None if value is None else f"{value:{form}} {unit}".strip()


def _largest(runs: Sequence[Attempt] | Sequence[Evaluation], name: str) -> float | None:
    return max(_values(runs, name), default=None)
