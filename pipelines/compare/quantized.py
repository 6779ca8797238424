"""The table `quantized_inference`: what `featherweight bit-widths` has measured of results at
several bit widths."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.hardware import machine
from pipelines.lake.paths import DataRoot
from pipelines.runs import cells
from pipelines.runs.cells import CellKey
from pipelines.runs.result import RunResult, result_in
from pipelines.settings.experiments import Experiments

Row = dict[str, Any]
# In the order of the table.
FORMATS = ("fp32", "bf16", "int8", "nf4", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m")
MEASURED = (
    "engine", "bits_per_byte", "size_mb", "p50_latency_ms", "tokens_per_second", "peak_memory_gb", "load_seconds",
    "answer_tokens", "eval_records", "eval_set",
)  # fmt: skip


def newest(folder: Path) -> RunResult | None:
    """The newest measurement in the folder of a result and format; None if there is none."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.exists() else []
    return result_in(folders[-1]) if folders else None


def rows(data: DataRoot, experiments: Experiments) -> list[Row]:
    """The table `quantized_inference`: the newest measurement of every result and format."""
    measured = list(_rows(data, experiments))
    plain = {(row["run_id"], row["eval_set"]): row["bits_per_byte"] for row in measured if row["format"] == "fp32"}
    for row in measured:
        reference = plain.get((row["run_id"], row["eval_set"]))
        if reference is not None and row["bits_per_byte"] is not None:
            row["bits_per_byte_vs_fp32"] = row["bits_per_byte"] - reference
    return measured


def _rows(data: DataRoot, experiments: Experiments) -> Iterator[Row]:
    for folder in sorted((data.lake / "bit_widths").glob("*/*/*/*")):
        model, method, seed, run_id = folder.parts[-4:]
        latest = cells.latest(data, CellKey(model, method, int(seed)))
        configured = experiments.models.get(model)
        for name in (name for name in FORMATS if (folder / name).exists()):
            result = newest(folder / name)
            if result is None:
                continue
            yield {
                **{column: result.measured.get(column) for column in MEASURED},
                "model": model,
                "method": method,
                "seed": int(seed),
                "run_id": run_id,
                "format": name,
                "status": result.status,
                "phase": result.phase,
                "detail": result.status_detail or result.measured.get("note"),
                "bits_per_byte_vs_fp32": None,
                "is_stale": latest is None or latest.run_id != run_id,
                "device": result.device or machine.machine_class(),
                "memory_budget_gb": result.memory_budget_gb,
                "finished_at": result.finished_at,
                "model_note": configured.note if configured else None,
            }
