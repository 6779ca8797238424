"""Training cells for a card: spec, examples and training process as in the project, and the cell's
report.

Meanwhile the card's memory is sampled from outside, through the driver.
"""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

from benchmarks import rate
from benchmarks.card import models, ours, rates
from benchmarks.card.bench import Bench
from pipelines.estimate.batch import heaviest
from pipelines.hardware import cuda_devices
from pipelines.lake.files import read_json, read_jsonl
from pipelines.lake.paths import PROJECT
from pipelines.recipe import OUTSIDE_RECIPE, recipe_of
from pipelines.runs.process import child_environment
from pipelines.runs.spec import RunSpec
from pipelines.settings import experiments as configuration
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.prompts import PromptFormat

PROFILE, STEPS, HELD_OUT = "gpu", 12, 16
SAMPLE_SECONDS = 0.3
Json = dict[str, Any]
# Name in the results, by column of the row
MEMORY = {
    "gpu_allocated_peak_gb": "allocated_gb", "gpu_reserved_peak_gb": "reserved_gb", "gpu_device_peak_gb": "device_gb",
    "pageable_gb": "pageable_gb", "probe_peak_memory_gb": "probe_gb", "process_memory_max_mb": "process_mb",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A model and a method of experiments.yaml under its profile for cards, over `steps` optimizer
    steps.

    `layers` limits the model to that many layers. `changes` replace settings of the recipe, `spec`
    replaces other fields of spec.json.
    """

    bench: Bench
    model: str
    method: str
    steps: int = STEPS
    layers: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def recipe(self) -> Json:
        """The profile's recipe, but with one epoch, and with a rate that moves random weights in
        few steps."""
        rate_of = {"full": 1e-4, "lora": 1e-3}
        recipe = recipe_of(configuration.load(PROJECT / "experiments.yaml"), PROFILE, self.model, self.method)
        kind = "full" if recipe["kind"] == "full" else "lora"
        tiny = {"examples_per_step": 4, "micro_batch_tokens": 320, "max_length": 320} if self.bench.dry else {}
        # The checks need no rate search
        for name in ("search_cap", "learning_rate_default"):
            recipe.pop(name, None)
        return recipe | {"epochs": 1, "learning_rate": rate_of[kind]} | tiny | dict(self.changes)

    @property
    def weights(self) -> Path:
        return models.folder_of(self.bench, self.model, layers=self.layers)

    @cached_property
    def file(self) -> Path:
        """The file of the examples for these steps; cells with equally many examples share it."""
        count = self.steps * self.recipe["examples_per_step"]
        file = self.bench.work / f"examples-{count}.parquet"
        if not file.exists():
            models.write_examples(self.bench, file, train=count, held_out=HELD_OUT)
        return file

    @cached_property
    def examples(self) -> list[Tokenized]:
        """The tokenized training examples."""
        from pipelines.clean.select import Selection, select

        form = PromptFormat.of(self.weights, self.recipe)
        records = select(self.file, Selection()).train
        examples = [example for record in records for example in form.tokenize(record)]
        return [example for example in examples if len(example) <= self.recipe["max_length"]]

    def write(self, folder: Path, *, resume: Json | None = None) -> None:
        """Create `folder` with the cell's spec.json."""
        settings = configuration.load(PROJECT / "experiments.yaml").training_for(PROFILE, self.model, self.method)
        outside: Json = {name: getattr(settings, name) for name in OUTSIDE_RECIPE}
        outside |= {"eval_every_steps": self.steps, "checkpoint_every_steps": 10 * self.steps, "report_to": []}
        folder.mkdir(parents=True)
        RunSpec.from_json(
            {
                **outside, "run_id": folder.name, "model": self.model, "method": self.method, "root": str(self.bench.work),
                "examples": str(self.file), "weights": str(self.weights), "recipe": self.recipe, "resume": resume, **self.spec,
            }
        ).write(folder)  # fmt: skip

    def question(self) -> Json:
        """The cell's question to the estimator."""
        config = models.config_of(self.bench, self.model, layers=self.layers)
        return {
            "recipe": self.recipe,
            "config": models.fields_of(self.bench, self.model, layers=self.layers),
            "batches": [vars(batch) for batch in heaviest(self.examples, self.recipe, [1], config)],
            "device": ours.prediction_key(self.recipe, dry=self.bench.dry),
            "cards": [] if self.bench.dry else [ours.prediction_key(self.recipe, dry=False)],
        }

    def operations_per_token(self) -> float:
        """Floating-point operations to learn one unpadded token, as `benchmarks/rate.py` counts
        them."""
        model = models.on_meta_device(self.bench, self.model, layers=self.layers)
        shapes = rate.shapes_of(model)
        adapters = None if self.recipe["kind"] == "full" else self._adapter_parameters(shapes)
        work = rate.operations(shapes, model.config, self.examples, adapters=adapters)
        return work / sum(map(len, self.examples))

    def _adapter_parameters(self, shapes: list[tuple[int, int]]) -> int:
        """Parameters if every linear layer had an adapter. The error is at most a few percent of
        the work."""
        return sum((self.recipe.get("rank") or 0) * (outs + ins) for outs, ins in shapes)


class DeviceMemory:
    """Peak memory in use on the first card by all processes, according to the driver; None without
    a driver that reports it."""

    def __init__(self) -> None:
        self.before_gb = self.peak_gb = _used_gb()
        self._done = Event()
        self._thread = Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "DeviceMemory":
        if self.before_gb is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self.before_gb is not None:
            self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.peak_gb = max(self.peak_gb or 0.0, _used_gb() or 0.0)


def _used_gb() -> float | None:
    used = cuda_devices.used_bytes()
    return None if used is None else used / 1e9


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the cell in `folder`. It stays in this process's group, so it is killed with the
    group."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.train.trainer.child", str(folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=child_environment(), cwd=PROJECT,
        )  # fmt: skip


def run(cell: Cell, folder: Path, *, limit: float) -> Json:
    """Train `cell` in a new `folder` for at most `limit` seconds; returns its status and
    measurements."""
    cell.write(folder)
    with DeviceMemory() as device:
        process = start(folder)
        try:
            process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return {**outcome(folder), "status": "timed_out", "detail": f"killed after {limit:.0f} s"}
    result = outcome(folder)
    if result["status"] is None:
        result |= {"status": "failed", "detail": f"exit code {process.returncode}: {log_tail(folder)}"}
    return {**result, "whole_card_gb": device.peak_gb, "whole_card_before_gb": device.before_gb}


def outcome(folder: Path) -> Json:
    """The cell's report in its folder, so far."""
    report = read_json(folder / "child.json") or {}
    measured, curve = report.get("measured", {}), read_jsonl(folder / "curve.jsonl")
    steps = [b["elapsed_seconds"] - a["elapsed_seconds"] for a, b in pairwise(curve) if b["step"] > a["step"]]
    losses = [point["train_loss"] for point in curve if point["train_loss"] is not None]
    return {
        "status": report.get("status"),
        "phase": report.get("phase"),
        "detail": report.get("detail"),
        "bytes_requested": report.get("bytes_requested"),
        "losses": losses,
        "eval_losses": [point["eval_loss"] for point in curve if point["eval_loss"] is not None],
        "tokens_per_second": measured.get("tokens_per_second"),
        **{name: measured.get(column) for column, name in MEMORY.items()},
        "micro_batch_tokens": measured.get("micro_batch_tokens"),
        "import_seconds": measured.get("import_seconds"),
        "load_seconds": measured.get("load_seconds"),
        "quantize_seconds": measured.get("quantize_seconds"),
        "probe_seconds": measured.get("probe_seconds"),
        "first_step_seconds": steps[0] if steps else None,
        "step_seconds": median(steps[1:]) if len(steps) > 1 else None,
    }


def log_tail(folder: Path) -> str:
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(lines[-3:])[-400:]


def speed(cell: Cell, result: Json) -> Json:
    """A cell's operations per second, from its tokens per second, and their shares of the card's
    rates."""
    if not result.get("tokens_per_second"):
        return {"tflops": None, "share_of_products": None, "mfu": None}
    tflops = cell.operations_per_token() * result["tokens_per_second"] / 1e12
    return {"tflops": tflops, **rates.shares(cell.bench, tflops)}


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a cell that has not ended."""
    if process.poll() is None:
        process.kill()
        process.wait()
