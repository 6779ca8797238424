"""A plan holds every cell, never two on one device at once, none where it does not fit, and is
nearly as short as possible."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.plan import jobs, places
from pipelines.cli import main
from pipelines.errors import UsageError
from pipelines.hardware.machine import machine_class
from pipelines.lake.files import write_json
from pipelines.lake.run_ids import new_run_id
from pipelines.plan import fleet
from pipelines.plan.schedule import Assignment, Job, Place, lower_bound, makespan, schedule
from pipelines.plan.seconds import Past, Rate, Work, forecast, training_flops
from pipelines.runs.predictions import memory_gb
from tests.in_process import clean_for
from tests.project import MODEL, TinyProject


def assert_possible(grid: list[Job], boxes: list[Place], placed: list[Assignment]) -> None:
    assert sorted(one.job.name for one in placed) == sorted(job.name for job in grid)
    devices = {box.name: box.devices for box in boxes}
    taken: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for one in placed:
        # The job's memory fits on this device.
        assert one.place in one.job.seconds
        assert one.end - one.start == pytest.approx(one.job.seconds[one.place])
        assert len(set(one.devices)) == one.job.devices
        assert all(0 <= device < devices[one.place] for device in one.devices)
        for device in one.devices:
            taken.setdefault((one.place, device), []).append((one.start, one.end))
    for times in taken.values():
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(times)))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 129, 1000])
def test_a_grid_on_64_equal_devices_ends_within_four_thirds_of_the_least_possible(count: int) -> None:
    boxes = places(alike=True)
    for seed in range(3):
        grid = jobs(count, boxes, seed=seed)
        placed, bound = schedule(grid, boxes), lower_bound(grid, boxes)
        assert_possible(grid, boxes, placed)
        assert bound.seconds <= makespan(placed) <= 4 / 3 * bound.seconds


@pytest.mark.parametrize("count", [40, 1000])
def test_a_grid_whose_memory_binds_is_possible_and_keeps_the_large_devices_busy(count: int) -> None:
    boxes = places(alike=False)
    for seed in range(3):
        grid = jobs(count, boxes, seed=seed)
        placed, bound = schedule(grid, boxes), lower_bound(grid, boxes)
        assert_possible(grid, boxes, placed)
        assert bound.seconds <= makespan(placed) <= 2 * bound.seconds


def test_cells_of_several_devices_share_machines_with_others() -> None:
    chance, boxes = random.Random(1), [Place("a", 4, 80), Place("b", 2, 80)]
    grid = []
    for number in range(40):
        wide, seconds = chance.choice([1, 2, 4]), chance.uniform(1, 100)
        grid.append(Job(str(number), {box.name: seconds for box in boxes if box.devices >= wide}, wide))
    placed = schedule(grid, boxes)
    assert_possible(grid, boxes, placed)
    assert makespan(placed) >= lower_bound(grid, boxes).seconds


def test_the_bound_knows_large_cells_and_crowded_devices() -> None:
    boxes = [Place("small", 3, 16), Place("large", 1, 80)]
    large = [Job(f"large {n}", {"large": 10}) for n in range(4)]
    bound = lower_bound([*large, Job("small", {"small": 12, "large": 6})], boxes)
    assert (bound.longest, bound.work, bound.memory) == (10, pytest.approx(46 / 4), 40)
    equal = [Job(str(n), {"small": 10}) for n in range(4)]
    # Four cells of ten seconds on three devices.
    assert lower_bound(equal, boxes[:1]).crowding == 20


RECIPE = {
    "kind": "full",
    "learning_rate": 1e-4,
    "search_share": 0.2,
    "gradient_checkpointing": False,
    "quantization": None,
}


def test_seconds_come_from_the_same_cell_then_by_flops_from_the_nearest_then_from_a_stated_rate() -> None:
    assert training_flops(100, 100, 7, RECIPE) == 6 * 100 * 7
    assert training_flops(100, 1, 7, {**RECIPE, "kind": "lora"}) == 402 * 7
    assert training_flops(100, 100, 7, {**RECIPE, "learning_rate": [1, 2, 3]}) == pytest.approx(1.6 * 4200)
    full = Work("m", "full", RECIPE, 100, 6000, 50)
    lora = Work("m", "lora", {**RECIPE, "kind": "lora"}, 100, 4000, 50)
    rows = [Past(full, "card", steps=60, rest=10, evaluated=5), Past(lora, "card", steps=50, rest=10, evaluated=5)]
    assert forecast(full, rows, "card", None) == forecast(full, rows, "card", Rate(1, "unasked"))
    estimate = forecast(full, rows, "card", None)
    assert estimate and (estimate.seconds, estimate.source) == (75, "measured")
    twice = forecast(Work("m", "full", RECIPE, 100, 12000, 50), rows, "card", None)
    assert twice and (twice.seconds, twice.source) == (135, "its own row, scaled by FLOPs")
    other = forecast(Work("big", "full", RECIPE, 200, 12000, 50), rows, "card", None)
    assert other and (other.seconds, other.source) == (120 + 20 + 10, "m × full, scaled by FLOPs")
    evaluated = forecast(Work("m", "full", RECIPE, 100, 6000, 50, trains=False), rows, "card", None)
    assert evaluated and evaluated.seconds == 5
    both = forecast(full, rows, "card", None, 2)
    assert both and both.seconds == 60 / 2 + 10 + 5, "only the optimizer steps are divided"
    stated = forecast(full, rows, "another card", Rate(100, "as stated"))
    assert stated and (stated.seconds, stated.source) == (20 + 60 + 0.5, "as stated")
    assert forecast(full, rows, "another card", None) is None


def test_a_sharded_cell_needs_a_share_of_what_is_shared() -> None:
    predicted = {"peak": 10e9, "weights": 2e9, "gradients": 2e9, "optimizer": 4e9}
    shares = [
        memory_gb(predicted, devices, how) for devices, how in ((1, "none"), (4, "ddp"), (4, "zero2"), (4, "fsdp"))
    ]
    assert shares == pytest.approx([10, 10, 5.5, 4])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: [{name: a, kind: tpu, memory_gb: 3}]", "nodes[a].kind: got 'tpu'"),
        ("nodes: [{name: a, kind: cpu, memory_gb: 3, pric: 3}]", "nodes[a].pric: unknown key 'pric'; expected one of"),
        ("nodes: [{name: a, kind: cpu}]", "nodes[a].memory_gb: is missing"),
        ("nodes: [{name: a, kind: cpu, memory_gb: 3}, {name: a, kind: cpu, memory_gb: 3}]", "a is named twice"),
        (
            "nodes: [{name: a, kind: cpu, memory_gb: 3, count: 2}, {name: a-1, kind: cpu, memory_gb: 3}]",
            "a-1 is named twice",
        ),
        ("nodes: [{name: a, kind: cpu, memory_gb: 3, memory_gb: 4}]", "'memory_gb' is given twice"),
        ("nodes: []", "nodes: got []"),
        ("- 3", "the file: got [3]"),
        ("{", "not YAML"),
    ],
)
def test_a_wrong_cluster_file_is_told_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "cluster.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"cluster\.yaml") as raised:
        fleet.load(tmp_path / "cluster.yaml")
    assert message in str(raised.value)


CLUSTER = f"""
nodes:
  - {{name: pair, count: 2, kind: cpu, devices: 2, memory_gb: 8, device: "{machine_class()}", price_per_hour: 3.6}}
  - {{name: crumb, kind: cpu, memory_gb: 0.1, tflops: 1}}
"""


def test_plan_of_a_project_by_its_command(
    project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean_for(project)
    stage = project.now()
    measured = {"total_params": 50_000, "trainable_params": 50_000, "trained_tokens": 1000, "train_seconds": 40}
    folder = project.key("full").folder(stage.data) / new_run_id()
    result = {"status": "ok", "seconds": 50, "device": machine_class(), "recipe": RECIPE, "measured": measured}
    write_json(folder / "result.json", result)
    write_json(folder / "spec.json", {})
    write_json(folder / "evaluations" / "one" / "result.json", {"status": "ok", "seconds": 10})
    (tmp_path / "cluster.yaml").write_text(CLUSTER, encoding="utf-8")
    assert main(["plan", "--cluster", str(tmp_path / "cluster.yaml"), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    planned = {cell["method"]: cell for cell in output["cells"]}
    assert set(planned) == {"base", "full", "lora-r8", "lora-r128", "qlora-r8"}
    assert {cell["machine"] for cell in planned.values()} == {"pair-1", "pair-2"}
    assert planned["full"]["because"] == "stale: data, recipe, code, machine"
    assert planned["full"]["source"] == "its own row, scaled by FLOPs"
    assert planned["lora-r8"]["source"] == f"{MODEL} × full, scaled by FLOPs"
    assert planned["full"]["usd"] == pytest.approx(planned["full"]["seconds"] / 1000)
    assert output["lower_bound_seconds"] <= output["makespan_seconds"]
    (tmp_path / "cluster.yaml").write_text("nodes: [{name: crumb, kind: cpu, memory_gb: 0.1, tflops: 1}]")
    assert main(["plan", "--cluster", str(tmp_path / "cluster.yaml")]) == 3
    assert f"no place for {MODEL} × full: needs" in capsys.readouterr().out
    assert main(["plan"]) == 0
    assert "5 cells on 1 device(s)" in capsys.readouterr().out
    divided = {"launcher": "torchrun", "devices": 2, "sharding": "ddp", "price_per_hour": 3.6}
    project.change(profiles={"local": divided})
    write_json(folder / "result.json", {**result, "device": f"{machine_class()} × 2, ddp"})
    assert main(["plan", "--json"]) == 0
    both = {cell["method"]: cell for cell in json.loads(capsys.readouterr().out)["cells"]}
    assert (len(both["base"]["devices"]), len(both["full"]["devices"])) == (1, 2)
    assert both["full"]["seconds"] == pytest.approx(planned["full"]["seconds"]), (
        "measured over two devices, so not divided again"
    )
    assert both["full"]["usd"] == pytest.approx(both["full"]["seconds"] / 1000), "the price is the machine's"
