"""A report of many invented rows: models × methods of every outcome, some with curves, intervals
and a sweep of ranks."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipelines.compare.advice import advise
from pipelines.compare.quality import Qualities
from pipelines.compare.ranking import make_picks
from pipelines.compare.report import Content, write_report
from pipelines.compare.table import Row
from pipelines.lake.files import write_json, write_jsonl
from pipelines.lake.paths import DataRoot
from pipelines.runs.cells import CellKey
from tests.fakes import planted
from tests.fakes.planted import answer, row

SIZES = {
    "smollm2-135m": 0.13, "gemma-3-270m": 0.27, "opt-350m": 0.35, "qwen2.5-0.5b": 0.5, "gpt2-large": 0.77,
    "llama-3.2-1b": 1.2, "opt-1.3b": 1.3, "gpt2-xl": 1.6, "gemma-2b-it": 2.5, "llama-3-8b-instruct": 8.0,
}  # fmt: skip
RANKS = {"lora-r4": 4, "lora-r8": 8, "lora-r32": 32, "lora-r128": 128, "lora-r256": 256, "qlora-r8": 8, "qlora-r64": 64}
METHODS = ("base", "full", "full-8bit", *RANKS)
BUDGET = 24.0


def rows_of(models: Sequence[str], methods: Sequence[str]) -> list[Row]:
    """Invented rows, equal on every call: cells above 24 GB ran out of memory, and a few ended
    otherwise."""
    luck = random.Random(7)
    rows = [_row(model, method, luck) for model in models for method in methods]
    for one in rows:
        one["advice"] = advise(one, rows)
    return rows


def _row(model: str, method: str, luck: random.Random) -> Row:
    size, base = SIZES[model], 1.62 - 0.12 * list(SIZES).index(model) / 10
    common = {"model": model, "method": method, "run_id": f"{model}-{method}", "data_fingerprint": "d" * 64,
              "code_version": "c" * 40, "train_records": 800, "eval_records": 120, "seeds": 1, "profile": "local",
              "total_params": round(size * 1e9), "finished_at": datetime(2026, 11, 29, 3, 12, 9, tzinfo=UTC)}  # fmt: skip
    if method == "base":
        return row(**common, trainable_params=0, eval_bits_per_byte=base, base_bits_per_byte=base, chrf=13.0)
    share = {"full": 16.0, "full-8bit": 8.5}.get(method, 1.6 if method.startswith("qlora") else 3.2)
    needed = 0.6 + size * share * luck.uniform(0.95, 1.1) + RANKS.get(method, 0) / 400
    trained = {**common, "estimated_memory_gb": needed * 0.97, "memory_budget_gb": BUDGET, "rank": RANKS.get(method)}
    ends = luck.random()
    if needed > BUDGET:
        return row(**trained, status="out_of_memory", phase="probe", seeds_ok=0, status_detail=f"tried {needed:.1f} GB")
    if ends < 0.04:
        return row(**trained, status="missing", seeds_ok=0)
    if ends < 0.08:
        return row(**trained, status="diverged", phase="train", seeds_ok=0, status_detail="loss is not finite")
    gain = 0.09 * luck.uniform(0.4, 1.1)
    seconds = 40 * size * luck.uniform(0.8, 1.6) * (1.4 if method.startswith("qlora") else 1)
    return row(
        **trained, trainable_params=round(size * 1e7), eval_bits_per_byte=base - gain, base_bits_per_byte=base, delta_base=-gain,
        delta_base_low=-gain - 0.02, delta_base_high=-gain + 0.025, rates="shared", chrf=luck.uniform(10, 30),
        peak_memory_gb=needed,
        memory_vs_full=luck.uniform(0.2, 0.9), train_seconds=seconds, speedup_vs_full=luck.uniform(0.8, 1.7),
        tokens_per_second=2000 / size, artifact_mb=size * 40, p50_latency_ms=90 * size, is_pareto=luck.random() < 0.25,
        speed_disturbed=luck.random() < 0.05, other_cpu_pct=30.0, is_stale=ends > 0.95,
        stale_because="recipe" if ends > 0.95 else None, learning_rate=1e-4, device="cuda: NVIDIA L4", layers=24,
    )  # fmt: skip


def write_grid(folder: Path, models: int, methods: int, *, curves: int = 2) -> DataRoot:
    """Write the report of the first `models` × `methods`, three days old; the first `curves` models
    have curves."""
    names = list(SIZES)[:models]
    lake = planted.lake(
        folder,
        models={name: {"source": {"hub": f"planted/{name}"}, "prompt": "chat", "lora_targets": ["q_proj"]} for name in names},
        methods={name: _method(name) for name in METHODS},
        profiles={"local": {"models": names, "methods": list(METHODS[:methods])}},
    )  # fmt: skip
    rows = rows_of(names, METHODS[:methods])
    for one in rows:
        if one["model"] in names[:curves] and one["status"] == "ok" and one["method"] != "base":
            _plant_curve(lake.data, one)
    answers = [
        answer(f"e{number}", run_id=one["run_id"], prompt=f"Recommend a book about the sea ({number}).",
               reference="The Old Man and the Sea.", answer=f"{one['method']} recommends The Sea, the Sea. " * (number + 1))
        for one in rows if one["status"] == "ok" for number in range(2)
    ]  # fmt: skip
    content = Content(rows, picks=make_picks(rows, Qualities({})), answers=answers)
    write_report(lake.project, content, published=datetime.now(UTC) - timedelta(days=3, hours=1))
    return lake.data


def _method(name: str) -> dict[str, object]:
    if name == "base":
        return {"kind": "none"}
    if name.startswith("full"):
        return {"kind": "full"}
    quantized = {"quantization": "nf4"} if name.startswith("qlora") else {}
    return {"kind": "lora", "rank": RANKS[name], "dropout": 0.1, **quantized}


def _plant_curve(data: DataRoot, row: Row) -> None:
    folder = CellKey(row["model"], row["method"], 1).folder(data) / "20260101T000000001-aaaaaa"
    luck, bits = random.Random(row["run_id"]), row["eval_bits_per_byte"]
    write_json(folder / "result.json", {"status": "ok", "phase": "save"})
    points = [
        {"examples": 8 * step, "train_loss": bits + 1.2 / step**0.5 + luck.gauss(0, 0.06), "elapsed_seconds": step}
        | ({"eval_loss": bits + 1.1 / step**0.5} if step % 10 == 0 else {})
        for step in range(1, 101)
    ]
    write_jsonl(folder / "curve.jsonl", points)
