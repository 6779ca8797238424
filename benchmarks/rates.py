"""Does `learning_rate: auto` find as good a rate as a sweep of seven rates, each trained to the
end?

Compares the final losses on held-out records, and the cost of the search. SmolLM2 trains on 200
examples: the corpus's English records, one and a half times over.

Each run is a cell of a project in the folder of `--folder` (else a temporary one). A stopped
benchmark resumes there, and current cells are not trained again. A cell of the sweep has a fixed
rate, so it is kept when only the trainer's code has changed; a cell of `auto` is not. On one kind
of machine losses are reproducible.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import project
from pipelines.project import ANY, Project
from pipelines.runs.cells import Attempt, CellKey
from pipelines.runs.run import RunHooks
from pipelines.settings.experiments import Experiments
from pipelines.settings.learning_rates import grid_of
from pipelines.train.cell import train

METHODS = ("lora-r8", "full", "qlora-r8", "lora-r128")
# English records of the corpus on each side
RECORDS, HELD_OUT = 134, 32
# 201 examples in all
EPOCHS = 1.5
EXAMPLES_PER_STEP = 2
# `auto` succeeds within this relative distance of the sweep's best loss
WITHIN = 0.01
UNLESS_CODE = tuple(name for name in ANY if name != "code")
Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One finished cell: its rate and its final loss on the held-out records (None if it
    diverged)."""

    rate: float | None
    loss: float | None
    attempt: Attempt


def measure(folder: Path | None = None, methods: Sequence[str] = METHODS) -> Iterator[Line]:
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(TemporaryDirectory(prefix="featherweight-rates-")))
        stage = _stage(place, methods)
        for method in methods:
            sweep = []
            for number in range(len(_rates(stage, method))):
                sweep.append(_run(stage, _swept(method, number), UNLESS_CODE))
                yield _line(method, "sweep", sweep[-1])
            auto = _run(stage, _searched(method), ANY)
            yield _line(method, "auto", auto)
            yield _verdict(method, sweep, auto)


def _stage(folder: Path, methods: Sequence[str]) -> Project:
    """A project with a method for each rate of each sweep, since a cell keeps only its newest
    run."""
    stage = project.make(
        folder, train=RECORDS, held_out=HELD_OUT, epochs=EPOCHS, examples_per_step=EXAMPLES_PER_STEP,
        eval_every_steps=10_000, time_limit_minutes=720,
    )  # fmt: skip
    plain = stage.experiments.model_dump()
    for method in methods:
        rates = _rates(stage, method)
        learning_rates = {_swept(method, number): rate for number, rate in enumerate(rates)} | {
            _searched(method): "auto"
        }
        plain["methods"] |= {
            name: {**plain["methods"][method], "learning_rate": rate} for name, rate in learning_rates.items()
        }
    return Project(stage.data, Experiments.model_validate(plain), stage.profile)


def _rates(stage: Project, method: str) -> list[float]:
    return grid_of(stage.experiments.method(method).traits)


def _swept(method: str, number: int) -> str:
    return f"{method}-rate-{number + 1}"


def _searched(method: str) -> str:
    return f"{method}-auto"


def _run(stage: Project, method: str, rerun_for: Sequence[str]) -> Run:
    """The current cell, trained if necessary."""
    resolved, key = stage.resolve(), CellKey(project.PACKAGED, method, 1)
    attempt, _ = train(resolved, key, hooks=RunHooks(say=lambda _: None), rerun_for=rerun_for)
    if attempt.status not in ("ok", "diverged"):
        raise RuntimeError(f"{method} ended as {attempt.status}: {attempt.result.status_detail}")
    configured = attempt.spec.recipe["learning_rate"]
    rate = attempt.result.measured.get("learning_rate", None if isinstance(configured, list) else configured)
    return Run(rate, attempt.curve()[-1]["eval_loss"] if attempt.status == "ok" else None, attempt)


def _line(method: str, by: str, run: Run) -> Line:
    measured = run.attempt.result.measured
    return {
        "benchmark": f"rates {by}",
        "method": method,
        "learning_rate": run.rate,
        "eval_loss": run.loss,
        "status": run.attempt.status,
        "train_seconds": measured.get("train_seconds"),
    }


def _verdict(method: str, sweep: Sequence[Run], auto: Run) -> Line:
    """Both losses, and whether `auto` is within WITHIN of the sweep's best."""
    ended = [(run.loss, run.rate) for run in sweep if run.loss is not None]
    if not ended:
        raise RuntimeError(f"{method}: no rate of the sweep trained to the end")
    loss, rate = min(ended)
    measured = auto.attempt.result.measured
    search, steps = measured.get("search_seconds") or 0.0, measured.get("train_seconds") or 0.0
    return {
        "benchmark": "rates",
        "method": method,
        "auto_learning_rate": auto.rate,
        "auto_eval_loss": auto.loss,
        "best_learning_rate": rate,
        "best_eval_loss": loss,
        "ratio": auto.loss / loss if auto.loss else None,
        "within_1_percent": bool(auto.loss and auto.loss / loss <= 1 + WITHIN),
        "searched": bool(measured.get("search_seconds")),
        "at_edge": measured.get("learning_rate_at_edge"),
        "tried": measured.get("learning_rates_tried"),
        "search_share_of_training_time": search / steps if steps else None,
    }
