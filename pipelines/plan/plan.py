"""The plan of a profile's due cells: each cell's memory and seconds on each machine, then its
machine and time."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipelines.errors import UnavailableError
from pipelines.estimate.cards import CONTEXT, of_device
from pipelines.estimate.estimate import TIGHT_MARGIN, answers, key_of
from pipelines.estimate.question import Question, questions
from pipelines.generate.trained_on import left_out
from pipelines.hardware.machine import machine_class
from pipelines.lake.files import announce
from pipelines.nightly.due import Due, due_cells
from pipelines.plan import seconds as clock
from pipelines.plan.fleet import Fleet, Machine, Node
from pipelines.plan.schedule import Assignment, Bound, Job, Place, lower_bound, makespan, schedule
from pipelines.project import Project, Resolved
from pipelines.runs import cells
from pipelines.runs.predictions import memory_gb
from pipelines.settings import benchmarks
from pipelines.settings.evaluation import Benchmark
from pipelines.settings.methods import traits_of

Json = dict[str, Any]
# Assumed for a harness task whose data have not been read yet: its questions, and the tokens of
# each with all its choices.
DEFAULT_QUESTIONS, DEFAULT_TOKENS = 1000, 400
# Assumed share of the rate of a large float32 product that training sustains, if no past row shows
# it.
SUSTAINED_SHARE = 0.4


@dataclass(frozen=True)
class Line:
    """One cell of the plan. `seconds` covers all its due seeds, one after another; `usd` counts
    all devices it holds."""

    model: str
    method: str
    seeds: tuple[int, ...]
    because: str
    memory_gb: float
    tight: bool
    seconds: float
    source: str
    machine: str
    devices: tuple[int, ...]
    start: float
    end: float
    usd: float | None


@dataclass(frozen=True)
class Unplaced:
    """A cell that the plan has no place for, with the reason."""

    model: str
    method: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """A plan. `usd_if_held` is the price if all devices are paid for until the last cell ends."""

    lines: list[Line]
    left: list[Unplaced]
    devices: int
    bound: Bound
    usd: float | None
    usd_if_held: float | None

    @property
    def makespan(self) -> float:
        return max((line.end for line in self.lines), default=0.0)


@dataclass(frozen=True)
class Need:
    """What a cell needs on a machine: GB of one device and seconds of all due seeds, or why it
    cannot run there."""

    gb: float = 0.0
    tight: bool = False
    seconds: float = 0.0
    source: str = ""
    refused: str | None = None


def make(project: Project, fleet: Fleet, *, everything: bool = False, say: Any = announce) -> Plan:
    """Plan the profile's due cells on `fleet`, or all of its cells with `everything`.

    Raises:
        UsageError: nothing was cleaned yet.
        WorkError: the predictions of memory could not be made.
    """
    resolved = project.resolve()
    for line in left_out(project.experiments):
        say(line)
    with _reporting(say):
        benchmarks.require(project.settings.evaluation.harness_tasks)
    due = _all(project) if everything else due_cells(resolved)
    cell_questions = questions(project, [(one.model, one.method) for one in due], project.settings.seeds[:1], resolved)
    kinds = [of_device(node.device) for node in fleet.nodes if node.kind == "gpu"]
    for question in cell_questions:
        question.request["cards"] = sorted({card.format(question.request["recipe"]) for card in kinds})
    by_file = answers(cell_questions, say=say)
    past = [row for attempt in cells.all_attempts(project.data) if (row := clock.past_of(attempt))]
    machines = fleet.machines()
    needs = {}
    for one, question in zip(due, cell_questions, strict=True):
        answer = by_file[question.file]
        work = None if "because" in answer else work_of(resolved, one, question, answer)
        needs[one.model, one.method] = _needs(project, answer, work, len(one.because), machines, past)
    return _planned(project, due, needs, machines)


@contextmanager
def _reporting(say: Any) -> Iterator[None]:
    """Report benchmarks that cannot run here, and plan without a change."""
    try:
        yield
    except UnavailableError as error:
        say(str(error))


def _all(project: Project) -> list[Due]:
    profile = project.settings
    seeds = dict.fromkeys(profile.seeds, "asked for")
    return [Due(model, method, seeds, {}) for model in profile.models for method in profile.methods]


def longest_first(project: Project, cells: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """`cells` (model, method) in the order in which to start them in parallel.

    Untouched models come first, since the others wait for them. The others follow by the FLOPs of
    training, the most first.
    """
    resolved = project.resolve()
    cell_questions = questions(project, list(cells), project.settings.seeds[:1], resolved)
    by_file = answers(cell_questions, say=announce)
    flops = {}
    for question in cell_questions:
        due = Due(question.model, question.method, {}, {})
        answer = by_file[question.file]
        work = None if "because" in answer else work_of(resolved, due, question, answer)
        trains = traits_of(question.request["recipe"]).trains
        flops[question.model, question.method] = (trains, -(work.training if work else 0.0))
    return sorted(cells, key=lambda cell: flops[cell])


def _needs(
    project: Project,
    answer: Json,
    work: clock.Work | None,
    seeds: int,
    machines: Sequence[Machine],
    past: Sequence[clock.Past],
) -> dict[str, Need]:
    """The needs of a cell by the name of each machine; equal machines are computed once."""
    if work is None:
        return {machine.name: Need(refused=f"no prediction: {answer['because']}") for machine in machines}
    nodes = {machine.node.name: machine.node for machine in machines}
    by_node = {name: _need(project, answer, work, seeds, node, past) for name, node in nodes.items()}
    return {machine.name: by_node[machine.node.name] for machine in machines}


def work_of(resolved: Resolved, due: Due, question: Question, answer: Json) -> clock.Work:
    """The work of one seed of the cell, from the prediction's numbers of weights and tokens."""
    recipe, evaluation = question.request["recipe"], resolved.project.settings.evaluation
    held_out = _guessed_tokens(resolved.selected.eval) + evaluation.answers * evaluation.max_new_tokens
    tokens = answer.get("epoch_tokens")
    if tokens is None:
        tokens = _guessed_tokens(resolved.cell(due.model, due.method).selected.train)
    flops = clock.training_flops(answer["parameters"], answer["trainable"], tokens * recipe.get("epochs", 1), recipe)
    only_evaluation = all("evaluation" in why for why in due.because.values())
    evaluation_flops = 2 * answer["parameters"] * held_out
    benchmark_work = tuple(
        clock.BenchmarkWork(due.name, due.limit, 2 * answer["parameters"] * tokens_of(due))
        for due in evaluation.benchmarks
    )
    return clock.Work(
        due.model,
        due.method,
        recipe,
        answer["parameters"],
        flops,
        evaluation_flops,
        not only_evaluation,
        benchmark_work,
    )


def tokens_of(benchmark: Benchmark) -> float:
    """The tokens read for a benchmark: counted from the texts of a shipped set, assumed for a
    harness task."""
    shots = benchmark.shots or 0
    if not benchmark.ships:
        return (benchmark.limit or DEFAULT_QUESTIONS) * DEFAULT_TOKENS * (1 + shots)
    questions = benchmarks.questions(benchmark.task, limit=benchmark.limit, shots=shots)
    return sum(len("".join((one.prompt, *one.choices)).encode()) for one in questions) / clock.BYTES_PER_TOKEN


def _guessed_tokens(rows: Sequence[Json]) -> float:
    texts = [row["instruction"] + row["input"] + row["output"] for row in rows]
    return sum(len(text.encode()) for text in texts) / clock.BYTES_PER_TOKEN


def _need(project: Project, answer: Json, work: clock.Work, seeds: int, node: Node, past: Sequence[clock.Past]) -> Need:
    placement = project.placement_of(work.method)
    devices, sharding = placement.devices, placement.sharding
    if devices > node.devices:
        return Need(refused=f"{node.name} has {node.devices} device(s), the profile asks for {devices}")
    card = of_device(node.device) if node.kind == "gpu" else None
    gb = memory_gb(answer[key_of(answer, card) if card else "cpu"], devices, sharding)
    room = node.memory_gb - (CONTEXT / 1e9 if node.kind == "gpu" else 0)
    if gb > room:
        return Need(gb, refused=f"needs {gb:.1f} GB of a device, {node.name} has {room:.1f}")
    device_name = f"{node.device} × {devices}, {sharding}" if node.device and devices > 1 else node.device
    seconds = clock.forecast(work, past, device_name, None)
    measured = seconds is not None
    if seconds is None:
        seconds = clock.forecast(work, past, node.device, _rate(node), devices)
    if seconds is None:
        problem = f"no row of device {node.device!r}" if node.device else "no device named whose rows would tell"
        return Need(gb, refused=f"no time known on {node.name}: {problem}, and no tflops stated")
    source = seconds.source if measured or devices == 1 else f"{seconds.source}, steps divided by {devices} devices"
    return Need(gb, gb > room / (1 + TIGHT_MARGIN), seconds.seconds * seeds, source)


def _rate(node: Node) -> clock.Rate | None:
    """The rate that one device sustains: from the file, or for this machine's CPU from a product
    measured now."""
    if node.tflops:
        return clock.Rate(node.tflops * 1e12, f"{node.tflops:g} TFLOP/s as stated")
    if node.device == machine_class() and node.kind == "cpu":
        rate = product_rate() * SUSTAINED_SHARE
        return clock.Rate(rate, f"{rate / 1e9:.0f} GFLOP/s: {SUSTAINED_SHARE:.0%} of this machine's float32 product")
    return None


@cache
def product_rate() -> float:
    """FLOP/s of a float32 product of two 1024 × 1024 matrices on this machine, the best of five."""
    import numpy as np

    left = np.ones((1024, 1024), np.float32)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        np.matmul(left, left)
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best


def _jobs(
    project: Project, due: Mapping[str, Due], needs: dict[tuple[str, str], dict[str, Need]]
) -> tuple[list[Job], list[Unplaced]]:
    """The cells that fit some machine, as jobs, and those that fit none."""
    jobs, left = [], []
    for name, due_cell in due.items():
        fits = {
            place: need.seconds
            for place, need in needs[due_cell.model, due_cell.method].items()
            if need.refused is None
        }
        if fits:
            jobs.append(Job(name, fits, project.placement_of(due_cell.method).devices))
        else:
            reasons = dict.fromkeys(
                need.refused for need in needs[due_cell.model, due_cell.method].values() if need.refused
            )
            left.append(Unplaced(due_cell.model, due_cell.method, "; ".join(reasons)))
    return jobs, left


def _planned(
    project: Project, due: Sequence[Due], needs: dict[tuple[str, str], dict[str, Need]], machines: Sequence[Machine]
) -> Plan:
    places = [Place(machine.name, machine.node.devices, machine.node.memory_gb) for machine in machines]
    by_name = {f"{one.model} × {one.method}": one for one in due}
    jobs, left = _jobs(project, by_name, needs)
    nodes = {machine.name: machine.node for machine in machines}
    assignments = schedule(jobs, places)
    lines = [_line(by_name[one.job.name], one, needs, nodes[one.place]) for one in assignments]
    prices = [machine.node.price_per_hour for machine in machines for _ in range(machine.node.devices)]
    known_prices = [price for price in prices if price is not None]
    costs = [line.usd for line in lines if line.usd is not None]
    return Plan(
        lines,
        left,
        sum(place.devices for place in places),
        lower_bound(jobs, places),
        sum(costs) if len(costs) == len(lines) and costs else None,
        sum(known_prices) * makespan(assignments) / 3600 if len(known_prices) == len(prices) else None,
    )


def _line(due: Due, assignment: Assignment, needs: dict[tuple[str, str], dict[str, Need]], node: Node) -> Line:
    need = needs[due.model, due.method][assignment.place]
    seconds = assignment.end - assignment.start
    price = node.price_per_hour
    return Line(
        due.model, due.method, tuple(due.because), "; ".join(dict.fromkeys(due.because.values())), need.gb, need.tight,
        seconds, need.source, assignment.place, assignment.devices, assignment.start, assignment.end,
        None if price is None else price * seconds / 3600 * len(assignment.devices),
    )  # fmt: skip
