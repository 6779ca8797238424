"""How long a cell takes on a device: by a past row of a like device, scaled by FLOPs; without one by the rate that is stated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.runs.cells import Attempt, Evaluation
from pipelines.settings.methods import traits_of

START_SECONDS = 20.0  # two processes that import, load and save; where no row tells
BYTES_PER_TOKEN = 4  # where no tokenizer is here to count


@dataclass(frozen=True)
class BenchmarkWork:
    """A benchmark: FLOPs guessed for it, and how many questions of it are asked at most (None: all)."""

    name: str
    limit: int | None
    flops: float


@dataclass(frozen=True)
class Work:
    """What a cell computes. `evaluation` and `training` are FLOPs, `evaluation` without `benchmarks`; without `trains` only its
    evaluation is due."""

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
    """A row of the past: the seconds of its optimizer steps, of all else in its process, and of its evaluation's, without its
    benchmarks'; and by the name of each benchmark its seconds, its questions, and how many were asked for at most (None: all)."""

    work: Work
    device: str
    steps: float
    rest: float
    evaluated: float
    benchmarks: Mapping[str, tuple[float, int, int | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rate:
    """FLOP/s that a device sustains in training, and who says so."""

    flops: float
    source: str


@dataclass(frozen=True)
class Forecast:
    """Seconds of one seed, and what they come from."""

    seconds: float
    source: str


def training_flops(parameters: float, trainable: float, tokens: float, recipe: Mapping[str, Any]) -> float:
    """2 operations a weight and token forward, 2 backward through it, 2 more for the gradient of a weight that trains (Kaplan et
    al. 2020, without attention's own); gradient checkpointing goes forward twice."""
    if not traits_of(recipe).trains:
        return 0.0
    again = 2 * parameters if recipe["gradient_checkpointing"] else 0
    return (4 * parameters + 2 * trainable + again) * tokens * (1 + _search_share(recipe))


def _search_share(recipe: Mapping[str, Any]) -> float:
    """Steps of the search for a learning rate, as a share of those of training: at most that, where a cap holds it."""
    rates = recipe["learning_rate"]
    if not isinstance(rates, list):
        return 0.0
    return recipe["search_cap"] if "search_cap" in recipe else recipe["search_share"] * len(rates)


def past_of(attempt: Attempt) -> Past | None:
    """The row of an attempt that ended well and was evaluated; None where a number is missing."""
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
    rest = max(0.0, result.seconds - steps)  # a resumed attempt's own seconds are only its last part
    return Past(work, result.device or "", steps, rest, evaluated, _benchmarks_of(good[-1]))


def _benchmarks_of(evaluation: Evaluation) -> dict[str, tuple[float, int, int | None]]:
    """Seconds, questions and the limit of questions of each benchmark."""
    parts = evaluation.result.measured.get("benchmark_parts") or {}
    limits = {one["name"]: one["limit"] for one in evaluation.spec.more.get("benchmarks", ())}
    return {name: (part["seconds"], part["questions"], limits.get(name)) for name, part in parts.items()}


def forecast(
    work: Work, past: Sequence[Past], device: str | None, rate: Rate | None, devices: int = 1
) -> Forecast | None:
    """Seconds of one seed of `work` on a device of that name and rate; None where nothing tells. Over several `devices` the
    optimizer steps, and nothing else, take that part of the time of one."""
    rows = [row for row in past if row.device == device and (row.work.training > 0 or work.training == 0)]
    if rows:
        return _scaled(min(rows, key=lambda row: _distance(row, work)), work, devices)
    if rate is None:
        return None
    flops = work.evaluation + (work.training / devices if work.trains else 0.0)
    flops += sum(one.flops for one in work.benchmarks)
    return Forecast(START_SECONDS + flops / rate.flops, rate.source)


def _distance(row: Past, work: Work) -> tuple[bool, bool, float]:
    """How unlike a row is: another cell, another kind of method, so many times the FLOPs of a token."""
    kind = ("kind", "quantization")
    return (
        (row.work.model, row.work.method) != (work.model, work.method),
        [row.work.recipe.get(name) for name in kind] != [work.recipe.get(name) for name in kind],
        abs(math.log(row.work.parameters / work.parameters)),
    )


def _scaled(row: Past, work: Work, devices: int) -> Forecast:
    """Optimizer steps go by FLOPs, all else by the number of weights."""
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
    """How many times the `questions` of the past are asked now, where at most `was` of them were asked for and now `now` are (None:
    all); None where the past cannot tell."""
    if not questions:
        return None
    if old_limit is None or questions < old_limit:  # there are no more
        return min(new_limit, questions) / questions if new_limit else 1.0
    return new_limit / questions if new_limit else None


def _benchmark_seconds(row: Past, work: Work, weight_ratio: float) -> tuple[float, list[str]]:
    """Seconds of the benchmarks, and the names of those that the row was not asked: they go by FLOPs, at the rate of the row's
    steps, or of its evaluation where it had none."""
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
