"""A small lake with planted cells: real files and fingerprints, invented numbers, no weights and no
training."""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import yaml

from pipelines.clean.clean import CleaningResult
from pipelines.compare.columns.comparison import COMPARISON
from pipelines.compare.columns.examples import SFT_EXAMPLES, SFT_REJECTS
from pipelines.compare.table import Row
from pipelines.evaluate.cell import evaluated_by
from pipelines.hardware.machine import own_identity
from pipelines.lake.files import read_json, stable_hash, write_json, write_jsonl
from pipelines.lake.paths import DataRoot
from pipelines.lake.warehouse import arrow_table
from pipelines.project import Project, Resolved
from pipelines.runs.cells import Attempt, CellKey, Evaluation
from pipelines.runs.result import write_result
from pipelines.runs.status import Status
from pipelines.settings import experiments

_run_numbers = itertools.count(1)

CONFIGURATION: dict[str, Any] = {
    "models": {"tiny": {"source": {"hub": "planted/tiny"}, "prompt": "chat", "lora_targets": ["q_proj"]}},
    "methods": {
        "base": {"kind": "none"},
        "full": {"kind": "full"},
        "lora-r8": {"kind": "lora", "rank": 8, "dropout": 0.1},
        "qlora-r8": {"kind": "lora", "rank": 8, "quantization": "nf4"},
    },
    "profiles": {
        "local": {
            "models": ["tiny"],
            "methods": ["base", "full", "lora-r8", "qlora-r8"],
            "seeds": [1],
            "evaluation": {"answers": 2, "max_new_tokens": 8},
        }
    },
    "sources": {"corpus": True},
    "providers": {"local": {"kind": "local", "model": "tiny"}},
}
MEASURED = {
    "train_loss": 1.5, "train_seconds": 100.0, "tokens_per_second": 50.0, "load_seconds": 1.0, "truncated_share": 0.0,
    "unshown_share": 0.0, "peak_memory_gb": 2.0, "trainable_params": 1000, "total_params": 5000, "artifact_mb": 4.0, "layers": 2,
    "hidden_size": 64, "weights_dtype": "float32", "last_step": 2, "steps": 2,
}  # fmt: skip
# base trains nothing, so a real row has none of these measurements.
ONLY_TRAINED = (
    "train_loss",
    "train_seconds",
    "tokens_per_second",
    "truncated_share",
    "unshown_share",
    "peak_memory_gb",
    "artifact_mb",
)
EVALUATED = {
    "eval_loss": 1.4, "eval_bits_per_byte": 0.9, "chrf": 30.0, "answer_tokens": 16, "p50_latency_ms": 120.0,
    "eval_records": 2, "eval_set": "two-records",
}  # fmt: skip


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`one` with the keys of `other` laid over its own, at every depth."""
    both = dict(one)
    for key, value in other.items():
        both[key] = merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both


@dataclass(frozen=True)
class Lake:
    """A stage in a folder of its own, with examples and the planted cells."""

    project: Project

    @property
    def data(self) -> DataRoot:
        return self.project.data

    def resolved(self) -> Resolved:
        """The project resolved with its current examples."""
        return self.project.resolve()

    def configured(self, **changes: Any) -> "Lake":
        """The same lake under a changed experiments.yaml."""
        path = self.data.root / "experiments.yaml"
        path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), changes)), encoding="utf-8")
        return Lake(replace(self.project, experiments=experiments.load(path)))

    def examples(self, train: Sequence[str] = ("a", "b", "c"), held_out: Sequence[str] = ("y", "z")) -> None:
        """Make these the current examples, as cleaning would."""
        rows = [_example(text, "train") for text in train] + [_example(text, "eval") for text in held_out]
        folder = self.data.clean / stable_hash(rows)
        folder.mkdir(parents=True, exist_ok=True)
        for name, columns, content in (("examples", SFT_EXAMPLES, rows), ("rejects", SFT_REJECTS, [])):
            schema = arrow_table([], columns).schema
            parquet.write_table(pa.Table.from_pylist(content, schema=schema), folder / f"{name}.parquet")
        result = CleaningResult(folder, folder.name, len(rows), len(rows), 0, len(train), len(held_out), {})
        recorded = {k: v for k, v in vars(result).items() if k not in ("folder", "reused")}
        write_json(self.data.clean / "current.json", recorded)

    def spec(
        self, key: CellKey, *, budget: float | None = None, prints: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The spec of an attempt at `key` under the current configuration and examples."""
        plan = self.resolved().plan(key)
        settings = self.project.experiments.training_for(self.project.profile, key.model, key.method)
        return {
            "run_id": f"20260101T{next(_run_numbers):09}-aaaaaa", "model": key.model, "method": key.method, "seed": key.seed,
            "profile": self.project.profile, "root": str(self.data.root), "recipe": plan.recipe,
            "fingerprints": {**plan.fingerprints, **(prints or {})},
            "memory_budget_gb": budget, "time_limit_minutes": 30, "learning_rate_source": settings.learning_rate_source,
        }  # fmt: skip

    def started(self, method: str, *, pid: int | None = None, seed: int = 1, **spec: Any) -> Attempt:
        """An attempt recorded as running, in this process or in the one with `pid`."""
        key = CellKey("tiny", method, seed)
        document = self.spec(key, **spec)
        folder = key.folder(self.data) / document["run_id"]
        write_json(folder / "spec.json", document)
        state = {"status": "running", "phase": "load", "started_at": "2026-01-01T00:00:00+00:00", **own_identity()}
        write_json(folder / "state.json", state | ({"pid": pid} if pid else {}))
        return Attempt(key, folder)

    def trained(
        self, method: str, status: Status = "ok", *, phase: str = "save", detail: str | None = None,
        device: str | None = None, curve: Sequence[Row] = (), seed: int = 1, budget: float | None = None,
        prints: Mapping[str, str] | None = None, **measured: Any,
    ) -> Attempt:  # fmt: skip
        """A finished attempt; `measured` overrides the invented numbers, and None removes one."""
        attempt = self.started(method, seed=seed, budget=budget, prints=prints)
        numbers = {k: v for k, v in {**MEASURED, **measured}.items() if v is not None}
        if method == "base":
            numbers = {k: v for k, v in numbers.items() if k not in ONLY_TRAINED} | {"trainable_params": 0}
        write_json(
            attempt.folder / "child.json", {"phase": phase, "measured": numbers, "versions": {"torch": "2.13.0"}}
        )
        write_jsonl(attempt.folder / "curve.jsonl", curve)
        write_result(attempt.folder, status, phase, detail)
        if device:
            result = attempt.folder / "result.json"
            write_json(result, (read_json(result) or {}) | {"device": device})
        return Attempt(attempt.key, attempt.folder)

    def evaluated(
        self,
        attempt: Attempt,
        status: Status = "ok",
        *,
        detail: str | None = None,
        answers: Sequence[Row] = (),
        losses: Sequence[Row] = (),
        **measured: Any,
    ) -> Evaluation:
        """A finished evaluation of `attempt`, with the evaluation's current fingerprint."""
        prints = evaluated_by(self.resolved()).fingerprints
        folder = attempt.folder / "evaluations" / f"20260101T{next(_run_numbers):09}-bbbbbb"
        replace(attempt.spec, fingerprints=prints).write(folder)
        write_json(
            folder / "child.json",
            {"phase": "evaluate", "measured": {**EVALUATED, **measured} if status == "ok" else {}},
        )
        write_jsonl(folder / "answers.jsonl", answers)
        write_jsonl(folder / "losses.jsonl", losses)
        write_result(folder, status, "evaluate", detail)
        return Evaluation(attempt, folder)

    def cell(
        self, method: str, *, bits: float = 0.9, eval_set: str = "two-records", noise: float = 0.01, records: int = 12,
        **training: Any,
    ) -> Attempt:  # fmt: skip
        """An ok attempt with a good evaluation of `bits` per byte over `records` records."""
        attempt = self.trained(method, **training)
        values = losses(bits, records=records, noise=noise, own=f"{method} {training.get('seed', 1)}", prefix=eval_set)
        self.evaluated(attempt, eval_bits_per_byte=bits, eval_set=eval_set, eval_records=records, losses=values)
        return attempt

    def killed_at_start(self, method: str) -> Path:
        """The folder of an attempt whose parent was killed before it wrote a file."""
        folder = CellKey("tiny", method, 1).folder(self.data) / f"20260101T{next(_run_numbers):09}-cccccc"
        folder.mkdir(parents=True)
        return folder


def lake(root: Path, **changes: Any) -> Lake:
    """A lake under `root` with examples, no cells, and the configuration above with `changes`."""
    path = root / "experiments.yaml"
    path.write_text(yaml.safe_dump(merged(CONFIGURATION, changes)), encoding="utf-8")
    made = Lake(Project(DataRoot(root), experiments.load(path), "local"))
    made.examples()
    return made


def losses(bits: float, *, records: int = 12, noise: float = 0.01, own: str = "", prefix: str = "e") -> list[Row]:
    """Rows of losses.jsonl of 100 bytes each, together `bits` per byte.

    The difficulty of a record is equal for all models; `own` seeds the noise of this one, whose
    standard deviation is about `noise` bits per byte.
    """
    hard, luck = random.Random("hard"), random.Random(own)
    each = [(hard.gauss(0, 0.3), luck.gauss(0, noise)) for _ in range(records)]
    mean = sum(a + b for a, b in each) / records
    values = [bits + a + b - mean for a, b in each]
    return [
        {
            "example_id": f"{prefix}-{number:03}",
            "nats": value * 100 * math.log(2) + 1,
            "tokens": 26,
            "scored_nats": value * 100 * math.log(2),
            "bytes": 100,
        }
        for number, value in enumerate(values)
    ]


def row(**values: Any) -> Row:
    """A comparison row of an ok cell, overridden by `values`."""
    plain: Row = {"model": "tiny", "method": "full", "status": "ok", "is_stale": False, "seeds": 1, "seeds_ok": 1}
    return {**COMPARISON.empty(), **plain, "run_id": "run-1", "advice": "fits", "device": "cpu", **values}


def answer(example_id: str = "y", **values: Any) -> Row:
    """A row of answers.jsonl."""
    plain: Row = {"prompt": "Say hello", "reference": "Hello", "answer": "Hi", "answer_tokens": 1, "latency_ms": 9.0}
    return {"example_id": example_id, **plain, "chrf": 20.0, **values}


def _example(text: str, split: str) -> dict[str, str | None]:
    words = {
        "example_id": text,
        "instruction": f"Say {text}.",
        "input": "",
        "output": f"{text} it is.",
        "language": "en",
    }
    return {**SFT_EXAMPLES.empty(), **words, "source": "corpus", "split": split, "record_id": f"{text}-1"}
