"""Predicted against measured peak memory of training cells on this machine's CPU.

Covers the packaged model and random weights in the grid's shapes, several batches, full, LoRA and
QLoRA. With `--adapters` it covers PEFT's kinds of adapters instead, all or by name, on the packaged
model, with equal micro-batches.

Each cell trains some complete optimizer steps in a separate process
(`benchmarks/estimate_child.py`), with micro-batches that differ as a cell's do. The first step
creates Adam's states; the heap reaches its size in the next ones. A cell that is predicted not to
fit has only a verdict.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.estimate_child import shorter
from pipelines.errors import UsageError
from pipelines.estimate import estimate
from pipelines.estimate.batch import Batch
from pipelines.lake.paths import PROJECT, DataRoot, data_root
from pipelines.project import Project
from pipelines.records.expected import expected_one_of
from pipelines.runs.process import child_environment
from pipelines.settings import experiments as configuration
from pipelines.settings.experiments import Experiments
from pipelines.weights import shipped, store

PACKAGED = "smollm2-135m"
CELLS: dict[str, list[tuple[str, Batch]]] = {
    PACKAGED: [
        ("full", Batch(4, 128, 256)), ("full", Batch(2, 256, 256)), ("full", Batch(8, 48, 200)), ("full-8bit", Batch(4, 128, 256)),
        ("lora-r8", Batch(4, 128, 256)), ("lora-r8", Batch(1, 256, 160)), ("lora-r128", Batch(4, 128, 256)),
        ("lora-r8-qkv", Batch(4, 128, 256)), ("qlora-r8", Batch(4, 128, 256)), ("qlora-r8", Batch(2, 256, 320)),
    ],
    "gemma-3-270m": [("full", Batch(2, 96, 100)), ("lora-r8", Batch(2, 128, 128)), ("qlora-r8", Batch(2, 128, 128))],
    "opt-350m": [
        ("full", Batch(2, 128, 128)), ("full-8bit", Batch(2, 128, 128)), ("lora-r8", Batch(4, 128, 256)),
        ("qlora-r8", Batch(2, 128, 128)),
    ],
    "gpt2-large": [
        ("full", Batch(1, 96, 64)), ("lora-r8", Batch(1, 128, 64)), ("lora-r8", Batch(4, 96, 200)), ("qlora-r8", Batch(2, 96, 96)),
    ],
    "opt-1.3b": [
        ("full", Batch(1, 128, 64)), ("lora-r8", Batch(1, 128, 64)), ("lora-r8", Batch(2, 160, 160)),
        ("qlora-r8", Batch(2, 96, 96)),
    ],
    "gpt-neo-1.3b": [
        ("full", Batch(1, 128, 64)), ("lora-r8", Batch(1, 128, 64)), ("lora-r8-qkv", Batch(2, 128, 128)),
        ("qlora-r8", Batch(2, 96, 96)),
    ],
    "llama-3-8b": [("full", Batch(1, 128, 64)), ("lora-r8", Batch(1, 128, 64))],
}  # fmt: skip

# As many tokens as a micro-batch of profile `adapters`
ADAPTER_BATCH = Batch(2, 128, 128)
LORA_R8 = {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "lora_dropout": 0.1}
# Kinds of adapters in addition to those of the profile
MORE_ADAPTERS: dict[str, dict[str, Any]] = {
    "rslora-r8": {**LORA_R8, "use_rslora": True},
    "olora-r8": {**LORA_R8, "init_lora_weights": "olora"},
    # On a CPU PEFT gives it at most one butterfly factor
    "boft-b16": {"peft_type": "BOFT", "boft_block_size": 16},
    "hra-r4": {"peft_type": "HRA", "r": 4},
    "shira-r8": {"peft_type": "SHIRA", "r": 8},
    "fourierft-n11630": {"peft_type": "FOURIERFT", "n_frequency": 11630},
}


def measure(adapters: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """A line for each of `CELLS`, or for each named adapter (an empty list: for all), and a
    summary.

    Raises:
        UsageError: no adapter has such a name.
    """
    errors: list[float] = []
    with TemporaryDirectory(prefix="featherweight-estimate-") as folder:
        for line in _grid(Path(folder)) if adapters is None else _adapters(adapters):
            errors += [abs(line["error"])] if line["error"] is not None else []
            yield line
    yield {
        "benchmark": "estimate",
        "cells_measured": len(errors),
        "median_error": median(errors) if errors else None,
        "worst_error": max(errors, default=None),
    }


def _grid(folder: Path) -> Iterator[dict[str, Any]]:
    for model, cells in CELLS.items():
        yield from _cells(_stage(model, folder), model, cells)


def _adapters(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    plain = configuration.load(PROJECT / "experiments.yaml").model_dump()
    plain["methods"] |= {name: {"kind": "adapter", "peft": settings} for name, settings in MORE_ADAPTERS.items()}
    stage = Project(data_root(), Experiments.model_validate(plain), "adapters")
    compared = [name for name in stage.settings.methods if stage.experiments.method(name).traits.has_adapter]
    known = [*compared, *MORE_ADAPTERS]
    for name in names:
        if name not in known:
            raise UsageError(f"--adapters: got {name!r}; {expected_one_of(name, known)}")
    yield from _cells(stage, PACKAGED, [(name, ADAPTER_BATCH) for name in names or known], whole=True)


def _stage(model: str, folder: Path) -> Project:
    """The packaged model from the data root; any other model with random weights in `folder`."""
    plain = configuration.load(PROJECT / "experiments.yaml").model_dump()
    if model == PACKAGED:
        return Project(data_root(), Experiments.model_validate(plain), "local")
    # gemma-3's modules have gemma's names
    like = plain["models"].get(model) or {**plain["models"]["gemma-2b-it"], "overrides": {}}
    plain["models"][model] = {**like, "source": {"random": model}}
    return Project(DataRoot(folder / model), Experiments.model_validate(plain), "local")


def _cells(
    stage: Project, model: str, cells: list[tuple[str, Batch]], *, whole: bool = False
) -> Iterator[dict[str, Any]]:
    """Lines of the cells. `whole`: the measured process imports everything that a training cell
    imports, 0.1 GB more than a step needs."""
    config = shipped.named(model)
    questions = [
        {
            "recipe": stage.recipe_of(model, method),
            "config": config,
            "batches": [asdict(batch), asdict(shorter(batch))],
            "device": "cpu",
        }
        for method, batch in cells
    ]
    room = psutil.virtual_memory().total / 1e9
    for (method, batch), question, answer in zip(cells, questions, estimate.answers_to(questions), strict=True):
        if "because" in answer:
            why = f"no prediction: {answer['because']}"
            yield {"benchmark": "estimate", "model": model, "method": method, "error": None, "verdict": why}
            continue
        predicted = answer["cpu"]["peak"] / 1e9
        line = {
            "benchmark": "estimate",
            "model": model,
            "method": method,
            "batch": str(batch),
            "trainable_params": answer["trainable"],
            "predicted_gb": predicted,
        }
        free = psutil.virtual_memory().available / 1e9
        if predicted > 0.97 * room:
            yield {**line, "measured_gb": None, "error": None, "verdict": f"does not fit {room:.1f} GB"}
        elif predicted > 0.97 * free:
            yield {**line, "measured_gb": None, "error": None, "verdict": f"not measured: {free:.1f} GB are free now"}
        else:
            folder = store.fetch(stage.data, stage.experiments, model, say=lambda _: None)
            cell = {"recipe": question["recipe"], "batch": asdict(batch), "weights": str(folder), "whole": whole}
            measurement = _measured(cell)
            assert measurement["trainable_params"] == answer["trainable"], (method, measurement, answer)
            training = answer["cpu"]["train"] / 1e9
            yield {
                **line, "predicted_gb": training, "measured_gb": measurement["peaks_gb"][-1],
                "error": training / measurement["peaks_gb"][-1] - 1, "two_steps_gb": measurement["peaks_gb"][1],
                "predicted_load_gb": answer["cpu"]["load"] / 1e9, "load_gb": measurement["load_peak_gb"], "verdict": "fits",
            }  # fmt: skip


def _measured(cell: dict[str, Any]) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.estimate_child"],
        input=json.dumps(cell), env=child_environment(), capture_output=True, text=True, check=False, cwd=PROJECT,
    )  # fmt: skip
    if process.returncode:
        raise RuntimeError(f"the measured process ended with {process.returncode}: {process.stderr[-500:]}")
    return json.loads(process.stdout.splitlines()[-1])
