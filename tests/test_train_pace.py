"""Checkpoints by time, and a curve in proportion: the decisions, and that a resumed run decides the
same."""

from typing import Any

import pytest

from pipelines.runs import checkpoints
from pipelines.runs.worker import Worker
from pipelines.settings import experiments
from pipelines.train.trainer import checkpoint, pace
from pipelines.train.trainer.devices.ranks import Ranks
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.pace import CheckpointPace, curve_every, curve_sample
from tests.in_process import clean_for, kill_at, stop_at
from tests.project import TinyProject
from tests.test_project_restart import attempt_at, outcome


def example(name: str, length: int = 10, turn: int | None = None) -> Tokenized:
    return Tokenized(name, list(range(length)), list(range(length)), [True] * length, length, turn)


class Clock:
    """A stopwatch whose time the test sets."""

    now = 0.0

    def __init__(self) -> None:
        self._began = Clock.now

    def total(self) -> float:
        return Clock.now - self._began


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(pace, "Stopwatch", Clock)
    Clock.now = 0.0
    return Clock


# checkpoints


def test_by_steps_where_steps_are_named(clock: type[Clock]) -> None:
    pace_rule = CheckpointPace({"checkpoint_every_steps": 3, "checkpoint_every_minutes": 1})
    clock.now = 1e6
    assert not pace_rule.by_time and [step for step in range(1, 10) if pace_rule.is_due(step)] == [3, 6, 9]


def test_by_time_and_at_most_a_twentieth_of_it(clock: type[Clock]) -> None:
    pace_rule = CheckpointPace({"checkpoint_every_steps": None, "checkpoint_every_minutes": 10})
    clock.now = 599
    assert pace_rule.by_time and not pace_rule.is_due(7)
    clock.now = 600
    assert pace_rule.is_due(7)
    # Seconds: ten minutes are long enough for such a checkpoint.
    pace_rule.written(2.0)
    clock.now = 1199
    assert not pace_rule.is_due(8)
    clock.now = 1200
    assert pace_rule.is_due(8)
    # Ten minutes are too short for a checkpoint of this length.
    pace_rule.written(60.0)
    clock.now = 1200 + 20 * 60 - 1
    assert not pace_rule.is_due(9)
    clock.now = 1200 + 20 * 60
    assert pace_rule.is_due(9)


def test_a_spec_of_earlier_code_has_the_default(clock: type[Clock]) -> None:
    pace_rule = CheckpointPace({})
    clock.now = 60 * pace.DEFAULT_MINUTES - 1
    assert not pace_rule.is_due(1)
    clock.now += 1
    assert pace_rule.is_due(1)


def test_the_nearer_level_decides_by_what(project: TinyProject) -> None:
    def decided() -> tuple[int | None, float]:
        training = experiments.load(project.experiments).training_for("local", "smollm2-135m", "full")
        return training.checkpoint_every_steps, training.checkpoint_every_minutes

    assert decided() == (None, 10)
    project.change(training={"checkpoint_every_steps": 7})
    assert decided() == (7, 10)
    project.change(profiles={"local": {"training": {"checkpoint_every_minutes": 3}}})
    assert decided() == (None, 3)
    project.change(methods={"full": {"checkpoint_every_steps": 2}})
    assert decided() == (2, 3)


def test_how_often_is_no_part_of_the_recipe(project: TinyProject) -> None:
    before = project.now().recipe_of("smollm2-135m", "full")
    project.change(training={"checkpoint_every_minutes": 1})
    assert project.now().recipe_of("smollm2-135m", "full") == before


@pytest.mark.parametrize("says", [(True, False), (False, True), (True, True), (False, False)])
def test_the_first_rank_decides_for_all(monkeypatch: pytest.MonkeyPatch, says: tuple[bool, bool]) -> None:
    """Two ranks with different clocks; the sum over both is built here from the numbers of each."""
    put_in: list[float] = []
    monkeypatch.setattr(Ranks, "sums", lambda _self, numbers: put_in.append(numbers[0]) or [0.0])
    for rank in (0, 1):
        Ranks(rank, 2).as_first_says(says[rank])
    monkeypatch.setattr(Ranks, "sums", lambda _self, _numbers: [sum(put_in)])
    assert [Ranks(rank, 2).as_first_says(says[rank]) for rank in (0, 1)] == [says[0], says[0]]
    monkeypatch.undo()
    assert Ranks().as_first_says(says[0]) is says[0]


def test_each_rank_learns_what_all_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Ranks, "sums", lambda _self, numbers: [a + b for a, b in zip(numbers, [1.0, 2.0, 0.0, 0.0], strict=True)]
    )
    assert Ranks(1, 2).all_of([3.0, 4.0]) == [[1.0, 2.0], [3.0, 4.0]]


@pytest.fixture
def by_time(project: TinyProject) -> TinyProject:
    """Cells of six steps with checkpoints by time."""
    project.change(
        profiles={"local": {"training": {"epochs": 3, "eval_every_steps": 4, "checkpoint_every_minutes": 1}}}
    )
    return clean_for(project)


def test_a_run_writes_them_by_the_clock_and_stops_with_the_last_whole_step(
    by_time: TinyProject, clock: type[Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = checkpoint.write

    def noted(attempt: Any, step: int, *given: Any) -> Any:
        written.append(step)
        return write(attempt, step, *given)

    point = Worker.point

    def later(worker: Worker, row: dict[str, Any], **options: Any) -> None:
        # Each step takes this many seconds.
        clock.now += 25
        point(worker, row, **options)

    monkeypatch.setattr(checkpoint, "write", noted)
    monkeypatch.setattr(Worker, "point", later)
    expected = outcome(attempt_at(by_time, "lora-r8"))
    assert written == [2, 5], "after 75 seconds (with the point before the first step), and 75 more"
    written.clear()
    stopped = attempt_at(by_time, "lora-r8", stop_at(3), force=True)
    assert stopped.status == "killed" and written == [2, 3]
    (folder,) = checkpoints.whole(stopped.folder)
    assert checkpoints.step_of(folder) == 3
    # Time between the steps counts over all attempts.
    before = checkpoint.read_state(folder)["tally"]["other_seconds"]
    finished = attempt_at(by_time, "lora-r8")
    assert outcome(finished) == expected
    assert finished.result.measured["other_seconds"] > before > 0


# the curve


def test_a_small_set_is_its_own_sample() -> None:
    few = [example(f"record {number}") for number in range(pace.CURVE_RECORDS)]
    assert curve_sample(few) == few


def test_fewer_records_on_the_curve_change_no_weight_and_no_training_loss(by_time: TinyProject) -> None:
    def trained() -> tuple[list[float], list[float], dict[str, bytes]]:
        attempt = attempt_at(by_time, "lora-r8", force=True)
        losses = [point["train_loss"] for point in attempt.curve()]
        weights = {file.name: file.read_bytes() for file in attempt.model_folder.glob("*.safetensors")}
        return [point["eval_loss"] for point in attempt.curve()], losses, weights

    of_three, *expected = trained()
    by_time.change(profiles={"local": {"training": {"curve_records": 1}}})
    of_one, *others = trained()
    assert others == expected and all(expected) and of_one != of_three


def test_a_large_set_has_a_sample_that_only_its_ids_choose() -> None:
    many = [example(f"record {number}", turn=turn) for number in range(1000) for turn in (0, 1)]
    sample = curve_sample(many)
    names = {one.example_id for one in sample}
    assert len(names) == pace.CURVE_RECORDS and len(sample) == 2 * len(names), "all examples of a record, or none"
    assert sample == [one for one in many if one.example_id in names], "in the order of the set"
    assert {one.example_id for one in curve_sample(many[::-1])} == names
    more = curve_sample([*many, *(example(f"another {number}") for number in range(100))])
    assert len(names & {one.example_id for one in more}) > 200, "a record more or less changes few"
    assert abs(sum(int(name.split()[1]) for name in names) / len(names) - 500) < 60, "from all of it"


def plan(steps: int, per_step: int = 8) -> list[list[Tokenized]]:
    return [[example(f"t{number}") for number in range(per_step)]] * steps


def held_out(records: int) -> list[Tokenized]:
    return [example(f"e{number}") for number in range(records)]


def test_a_long_curve_takes_a_twentieth_of_the_time() -> None:
    every = curve_every(plan(10_000), held_out(256), 10)
    cost, work = 256, pace.PASSES * 8 * every
    assert every % 10 == 0 and cost / work <= pace.SHARE < cost / (work - pace.PASSES * 8 * 10)


def test_a_shorter_one_keeps_twenty_points() -> None:
    every = curve_every(plan(1000), held_out(256), 10)
    assert every == 50 and 1000 // every == pace.FEWEST_POINTS


@pytest.mark.parametrize(
    ("steps", "records"), [(8, 10), (10_000, 10), (10_000, pace.FEW_RECORDS), (100, 256), (1, 256)]
)
def test_few_records_or_steps_are_measured_as_often_as_set(steps: int, records: int) -> None:
    assert curve_every(plan(steps), held_out(records), 10) == 10


def bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a tiny project reaches: two of its three held-out records are measured, at half
    of the configured points."""
    for name, value in (("FEW_RECORDS", 1), ("FEWEST_POINTS", 2)):
        monkeypatch.setattr(pace, name, value)


def test_a_sampled_and_thinned_curve_is_the_same_after_a_kill(
    by_time: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds(monkeypatch)
    by_time.change(
        profiles={"local": {"training": {"eval_every_steps": 1, "curve_records": 2, "checkpoint_every_steps": 2}}},
    )
    whole = attempt_at(by_time, "lora-r8")
    expected = outcome(whole)
    measured = [point["step"] for point in whole.curve() if point["eval_loss"] is not None]
    assert measured == [0, 3, 6]
    assert attempt_at(by_time, "lora-r8", kill_at(4), force=True).status == "killed"
    assert outcome(attempt_at(by_time, "lora-r8")) == expected


@pytest.mark.slow
def test_a_curve_that_decides_when_training_ends_keeps_every_point(
    by_time: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds(monkeypatch)
    by_time.change(
        methods={"lora-r8": {"early_stop_patience": 10}},
        profiles={"local": {"training": {"eval_every_steps": 1, "curve_records": 2}}},
    )
    assert all(point["eval_loss"] is not None for point in attempt_at(by_time, "lora-r8").curve())
