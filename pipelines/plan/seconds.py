"""The time of a cell on a device: from a past row of an equal device, scaled by FLOPs, else from
a stated rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.runs.cells import Attempt, Evaluation
from pipelines.settings.methods import traits_of

# Assumed seconds of two processes that import, load and save, if no past row shows them.
START_SECONDS = 20.0
# Assumed if no tokenizer is here to count tokens.
BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class BenchmarkWork:
    """A benchmark with its estimated FLOPs and the limit of its questions (None: all)."""

    name: str
    limit: int | None
    flops: float


@dataclass(frozen=True)
class Work:
    """The work of a cell. `training` and `evaluation` are FLOPs; `evaluation` excludes
    `benchmarks`.

    If `trains` is false, only the evaluation is due.
    """

    model: str
    method: str
    recipe: Mapping[str, Any]
    parameters: float
    training: float
    evaluation: float
    trains: bool = True
    benchmarks: tuple[BenchmarkWork, ...] = ()


@dataclass(frozen=True)
class Past:
    """The times of a past row in seconds.

    `steps` are its optimizer steps, `rest` everything else in its process, and `evaluated` its
    evaluation without benchmarks. `benchmarks` holds by name the seconds, the questions and their
    limit (None: all).
    """

    work: Work
    device: str
    steps: float
    rest: float
    evaluated: float
    benchmarks: Mapping[str, tuple[float, int, int | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rate:
    """FLOP/s that a device sustains in training, and the source of the number."""

    flops: float
    source: str


@dataclass(frozen=True)
class Forecast:
    """Seconds of one seed, and the source of the number."""

    seconds: float
    source: str


def training_flops(parameters: float, trainable: float, tokens: float, recipe: Mapping[str, Any]) -> float:
    """FLOPs of training (Kaplan et al. 2020, without those of attention itself).

    Each weight and token takes 2 operations forward and 2 backward, plus 2 for the gradient of a
    trained weight. Gradient checkpointing runs the forward pass twice.
    """
    if not traits_of(recipe).trains:
        return 0.0
    again = 2 * parameters if recipe["gradient_checkpointing"] else 0
    return (4 * parameters + 2 * trainable + again) * tokens * (1 + _search_share(recipe))


def _search_share(recipe: Mapping[str, Any]) -> float:
    """Steps of the learning-rate search as a share of the training steps; an upper limit if a
    cap applies."""
    rates = recipe["learning_rate"]
    if not isinstance(rates, list):
        return 0.0
    return recipe["search_cap"] if "search_cap" in recipe else recipe["search_share"] * len(rates)


def past_of(attempt: Attempt) -> Past | None:
    """The past row of an attempt that ended ok and was evaluated; None if a number is missing."""
    result = attempt.result
    measured, recipe = result.measured, result.recipe
    good = [evaluation for evaluation in attempt.evaluations() if evaluation.ok]
    if not result.ok or not good or not recipe or result.seconds is None:
        return None
    evaluation = good[-1].result
    benchmarks = evaluation.measured.get("benchmark_seconds_now") or 0.0
    evaluated = max(0.0, (evaluation.seconds or 0.0) - benchmarks)
    total, trainable = measured.get("total_params"), measured.get("trainable_params")
    if total is None or trainable is None:
        return None
    steps = (measured.get("train_seconds") or 0.0) + (measured.get("search_seconds") or 0.0)
    flops = training_flops(total, trainable, measured.get("trained_tokens") or 0, recipe)
    work = Work(attempt.key.model, attempt.key.method, recipe, total, flops, 0.0)
    # The seconds of a resumed attempt cover only its last part, so the difference may be negative.
    rest = max(0.0, result.seconds - steps)
    return Past(work, result.device or "", steps, rest, evaluated, _benchmarks_of(good[-1]))


def _benchmarks_of(evaluation: Evaluation) -> dict[str, tuple[float, int, int | None]]:
    """Seconds, questions and limit of questions of each benchmark."""
    parts = evaluation.result.measured.get("benchmark_parts") or {}
    limits = {one["name"]: one["limit"] for one in evaluation.spec.more.get("benchmarks", ())}
    return {name: (part["seconds"], part["questions"], limits.get(name)) for name, part in parts.items()}


def forecast(
    work: Work, past: Sequence[Past], device: str | None, rate: Rate | None, devices: int = 1
) -> Forecast | None:
    """Seconds of one seed of `work` on a device of this name and rate; None if neither gives a
    time.

    Several `devices` divide only the time of the optimizer steps.
    """
    rows = [row for row in past if row.device == device and (row.work.training > 0 or work.training == 0)]
    if rows:
        return _scaled(min(rows, key=lambda row: _distance(row, work)), work, devices)
    if rate is None:
        return None
    flops = work.evaluation + (work.training / devices if work.trains else 0.0)
    flops += sum(one.flops for one in work.benchmarks)
    return Forecast(START_SECONDS + flops / rate.flops, rate.source)


def _distance(row: Past, work: Work) -> tuple[bool, bool, float]:
    """The distance of a past row from the work: another cell, another kind of method, the ratio
    of weights."""
    kind = ("kind", "quantization")
    return (
        (row.work.model, row.work.method) != (work.model, work.method),
        [row.work.recipe.get(name) for name in kind] != [work.recipe.get(name) for name in kind],
        abs(math.log(row.work.parameters / work.parameters)),
    )


def _scaled(row: Past, work: Work, devices: int) -> Forecast:
    """Scale a past row to the work: optimizer steps by FLOPs, everything else by the number of
    weights."""
    weight_ratio = work.parameters / row.work.parameters
    work_ratio = work.training / row.work.training if work.training else 0.0
    benchmark_seconds, unmeasured = _benchmark_seconds(row, work, weight_ratio)
    seconds = row.evaluated * weight_ratio + benchmark_seconds
    if work.trains:
        seconds += row.steps * work_ratio / devices + row.rest * weight_ratio
    same = (row.work.model, row.work.method) == (work.model, work.method)
    note = f"; guessed: {', '.join(unmeasured)}" if unmeasured else ""
    if same and abs(work_ratio - (1 if work.training else 0)) < 0.01:
        return Forecast(seconds, f"measured{note}")
    basis = "its own row" if same else f"{row.work.model} × {row.work.method}"
    return Forecast(seconds, f"{basis}, scaled by FLOPs{note}")


def _question_ratio(questions: int, old_limit: int | None, new_limit: int | None) -> float | None:
    """The number of questions now, as a multiple of the `questions` of the past; None if the past
    cannot tell.

    `old_limit` and `new_limit` are the limits of questions (None: all).
    """
    if not questions:
        return None
    # The benchmark has no more questions than were asked.
    if old_limit is None or questions < old_limit:
        return min(new_limit, questions) / questions if new_limit else 1.0
    return new_limit / questions if new_limit else None


def _benchmark_seconds(row: Past, work: Work, weight_ratio: float) -> tuple[float, list[str]]:
    """Seconds of the benchmarks, and the names of those that the row did not run.

    The latter are estimated from FLOPs, at the rate of the row's steps, or of its evaluation if it
    had no steps.
    """
    seconds, unmeasured = 0.0, []
    trained = row.work.training / row.steps if row.steps and row.work.training else 0.0
    rate = trained or (work.evaluation / (row.evaluated * weight_ratio) if row.evaluated else 0.0)
    for benchmark in work.benchmarks:
        past_seconds, questions, limit = row.benchmarks.get(benchmark.name, (0.0, 0, None))
        if share := _question_ratio(questions, limit, benchmark.limit):
            seconds += past_seconds * weight_ratio * share
        else:
            seconds += benchmark.flops / rate if rate else 0.0
            unmeasured.append(benchmark.name)
    return seconds, unmeasured
