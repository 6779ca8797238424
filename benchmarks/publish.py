"""Time to publish 1,000 finished cells (200,000 curve points, 32,000 answers), against a plain
CREATE TABLE of the same rows; and time to compare 1,000 cells on 100 records: intervals, Pareto
front, picks."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import duckdb
import numpy as np
import pyarrow as pa

from benchmarks.clock import best_seconds
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.columns.evaluation import EVALUATION_ANSWERS
from pipelines.compare.columns.training import TRAINING_CURVE
from pipelines.compare.compare import compare
from pipelines.compare.quality import Qualities, Quality
from pipelines.compare.ranking import make_picks, mark_pareto
from pipelines.compare.table import Row
from pipelines.lake.files import read_json, write_json
from pipelines.lake.paths import DataRoot
from pipelines.lake.warehouse import arrow_table, publish
from tests.fakes import planted

CELLS, POINTS, ANSWERS, RECORDS = 1000, 200, 32, 100


def measure() -> Iterator[dict[str, Any]]:
    point = {"train_loss": 3.1, "learning_rate": 1e-4, "process_memory_mb": 2000.0, "elapsed_seconds": 1.0}
    curve = [{**point, "run_id": f"run-{c}", "step": s, "examples": 8 * s} for c in range(CELLS) for s in range(POINTS)]
    answer = {
        "prompt": "Which book?" * 5,
        "reference": "Stoner." * 20,
        "answer": "Olive Kitteridge." * 12,
        "chrf": 21.5,
    }
    answers = [{**answer, "run_id": f"run-{c}", "example_id": str(a)} for c in range(CELLS) for a in range(ANSWERS)]
    tables = {
        "training_curve": arrow_table(curve, TRAINING_CURVE),
        "evaluation_answers": arrow_table(answers, EVALUATION_ANSWERS),
    }
    with TemporaryDirectory() as folder:
        data = DataRoot(Path(folder) / "data")
        ours = best_seconds(lambda: publish(data, tables), rounds=3)
        plain = best_seconds(lambda: _plain(Path(folder) / "plain.duckdb", tables), rounds=3)
        with duckdb.connect(str(data.warehouse), read_only=True) as db:
            counts = {name: db.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in tables}
    yield _from_the_lake()
    yield {
        "benchmark": "publish",
        "rows": {name: table.num_rows for name, table in tables.items()},
        "seconds": ours,
        "plain_create_seconds": plain,
        "over_plain": ours / plain,
        "reads_back_equal": counts == {name: table.num_rows for name, table in tables.items()},
    }
    rows, qualities = _compared()
    yield {
        "benchmark": "compare",
        "cells": CELLS,
        "records": RECORDS,
        "intervals_seconds": best_seconds(lambda: [qualities.difference(row, rows[0]) for row in rows], rounds=2),
        "pareto_seconds": best_seconds(lambda: mark_pareto(rows, qualities), rounds=2),
        "picks_seconds": best_seconds(lambda: make_picks(rows, qualities), rounds=2),
        "on_the_front": sum(bool(row["is_pareto"]) for row in rows),
    }


def _compared() -> tuple[list[Row], Qualities]:
    """Rows that trade quality for memory and time, with noise, so that many lie near the front."""
    rng, sampler = random.Random(1), np.random.default_rng(1)
    difficulty, sizes = sampler.normal(1.2, 0.3, RECORDS), np.full(RECORDS, 400.0)
    examples = tuple(f"e{number}" for number in range(RECORDS))
    rows, known = [], {}
    for number in range(CELLS):
        memory, seconds = rng.uniform(1, 40), rng.uniform(60, 6000)
        bits = difficulty + 0.2 / memory + 20 / seconds + sampler.normal(0, 0.03, RECORDS)
        numbers = {"eval_bits_per_byte": float(bits.mean()), "peak_memory_gb": memory, "train_seconds": seconds}
        rows.append({**COMPARISON.empty(), "model": "m", "method": f"r{number}", "status": "ok", **numbers})
        known["m", f"r{number}"] = Quality(examples, (bits * sizes * np.log(2))[None], sizes)
    return rows, Qualities(known)


def _from_the_lake() -> dict[str, Any]:
    """All of `compare`: 1,000 attempts read from their folders, all tables, the report; without
    memory predictions."""
    points = [
        {"step": s, "examples": 8 * s, "train_loss": 3.1, "learning_rate": 1e-4, "eval_loss": None}
        for s in range(POINTS)
    ]
    with TemporaryDirectory() as folder, patch("pipelines.compare.compare.keep_predictions"):
        lake = planted.lake(Path(folder))
        methods = list(lake.project.experiments.methods)
        for method in methods:
            attempt = lake.trained(method, curve=points)
            lake.evaluated(attempt, answers=[planted.answer(str(number)) for number in range(ANSWERS)])
            for seed in range(2, CELLS // len(methods) + 1):
                _copied(attempt.folder, seed)
        lake = lake.configured(profiles={"local": {"seeds": list(range(1, CELLS // len(methods) + 1))}})
        seconds = best_seconds(lambda: compare(lake.project), rounds=3)
        with duckdb.connect(str(lake.data.warehouse), read_only=True) as db:
            runs = db.execute("SELECT count(DISTINCT run_id) FROM training_runs").fetchall()[0][0]
    return {"benchmark": "publish from the lake", "attempts": runs, "seconds": seconds}


def _copied(attempt: Path, seed: int) -> None:
    """Copy an attempt as that of another seed."""
    name = f"{attempt.name}-{seed}"
    copy = attempt.parent.parent / str(seed) / name
    shutil.copytree(attempt, copy)
    for file in ("spec.json", "result.json"):
        write_json(copy / file, (read_json(copy / file) or {}) | {"run_id": name, "seed": seed})


def _plain(path: Path, tables: dict[str, pa.Table]) -> None:
    path.unlink(missing_ok=True)
    with duckdb.connect(str(path)) as db:
        for name, table in tables.items():
            db.register("incoming", table)
            db.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
            db.unregister("incoming")
