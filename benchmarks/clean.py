"""Cleaning 10,000, 100,000 and 1,000,000 records with known plants, all rules on.

Measures records/s, peak memory, recall and precision of near-duplicates, and growth. Also measures
one huge bucket, and datasketch and datatrove on the near-duplicate step with the same texts.
`--records N` measures only that size.

- Recall: the share of planted pairs with an exact Jaccard at the threshold or above of which at
  least one record was dropped.
- Precision: the share of rejects whose exact Jaccard to their named twin reaches the threshold.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pyarrow.parquet as parquet

from benchmarks.clean_records import THRESHOLD, Plant, compared, jaccard, write_one_word_apart, write_records
from benchmarks.peers import peer_python

SIZES = (10_000, 100_000, 1_000_000)
ONE_WORD_APART = 100_000
PEER_RECORDS = 100_000
# The number of rejects whose Jaccard is measured again
CHECKED = 20_000
DUPLICATES = ("near_duplicate", "contamination")


def measure(records: int | None = None) -> Iterator[dict[str, Any]]:
    sizes = [records] if records else SIZES
    seconds: dict[int, float] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for size in sizes:
            line = _cleaning(folder, size)
            seconds[size] = line["seconds"]
            yield line | _growth(seconds, size)
        size = min(ONE_WORD_APART, sizes[-1])
        yield _one_word_apart(folder, size, seconds.get(size) or seconds[sizes[0]] * size / sizes[0])
        yield from _peers(folder, min(PEER_RECORDS, sizes[-1]))


def _cleaning(folder: Path, size: int) -> dict[str, Any]:
    file = folder / f"{size}.jsonl"
    plants = write_records(file, size)
    report, peak = _run(file, folder / f"data-{size}")
    return {
        "benchmark": "clean",
        "records": size,
        "seconds": round(report["seconds"], 2),
        "records_per_second": round(size / report["seconds"]),
        "peak_memory_gb": round(peak / 1e9, 3),
        "stages_seconds": report["stages"],
        "accepted": report["accepted"],
        "reasons": report["reasons"],
        **_judged(Path(report["folder"]), file, plants),
        "adds_up": report["accepted"] + sum(report["reasons"].values()) == report["read"] == size,
    }


def _growth(seconds: dict[int, float], size: int) -> dict[str, Any]:
    return {"time_over_tenth": round(seconds[size] / seconds[size // 10], 2)} if size // 10 in seconds else {}


def _run(file: Path, data: Path) -> tuple[dict[str, Any], int]:
    """The report of one run in a separate process, and the peak memory of its process group in
    bytes (RSS, sampled every 20 ms)."""
    command = [sys.executable, "-m", "benchmarks.clean_child", str(file), str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        peak = 0
        while child.poll() is None:
            peak = max(peak, _group_rss(child.pid))
            time.sleep(0.02)
        output = child.stdout.read() if child.stdout else ""
    if child.returncode:
        raise RuntimeError(f"cleaning {file} ended with {child.returncode}")
    return json.loads(output), peak


def _group_rss(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def _judged(result: Path, file: Path, plants: dict[int, Plant]) -> dict[str, Any]:
    rejects = parquet.read_table(result / "rejects.parquet", columns=["reason", "record"])
    dropped = {
        json.loads(record)["id"]: reason
        for reason, record in zip(rejects["reason"].to_pylist(), rejects["record"].to_pylist(), strict=True)
    }
    pairs = [(number, plant.of) for number, plant in plants.items() if plant.kind == "near"]
    missed = sum(number not in dropped and of not in dropped for number, of in pairs)
    defects = {n: p.kind for n, p in plants.items() if p.kind not in ("fresh", "near", "exact", "apart")}
    return {
        "planted_near_pairs": len(pairs),
        "near_duplicate_recall": round(1 - missed / max(1, len(pairs)), 5),
        **_precision(result),
        "planted_defects": len(defects),
        "defects_found": sum(number in dropped for number in defects),
        "fresh_dropped_by_a_rule": sum(
            plants[number].kind == "fresh" and reason not in (*DUPLICATES, "exact_duplicate")
            for number, reason in dropped.items()
        ),
    }


def _precision(result: Path) -> dict[str, Any]:
    """The share of near-duplicates and leaks whose reported similarity to their twin is right,
    measured again by sets in Python."""
    import duckdb

    with duckdb.connect() as db:
        rows = db.execute(
            """
            SELECT r.record, e.instruction, e.output, r.similarity, contains(r.detail, 'through others')
            FROM read_parquet($rejects) r JOIN read_parquet($examples) e ON e.record_id = r.twin
            WHERE r.reason IN ('near_duplicate', 'contamination') AND r.similarity IS NOT NULL
            ORDER BY r.record_id LIMIT $most
            """,
            {"rejects": str(result / "rejects.parquet"), "examples": str(result / "examples.parquet"), "most": CHECKED},
        ).fetchall()
    exact = [
        (
            jaccard(compared(json.loads(record)), compared({"instruction": question, "output": answer})),
            reported,
            through,
        )
        for record, question, answer, reported, through in rows
    ]
    direct = [similarity >= THRESHOLD for similarity, _, through in exact if not through]
    return {
        "near_duplicates_checked": len(exact),
        "near_duplicate_precision": round(sum(direct) / max(1, len(direct)), 5),
        "through_others": len(exact) - len(direct),
        "jaccard_equals_exact": all(abs(similarity - reported) < 1e-9 for similarity, reported, _ in exact),
    }


def _one_word_apart(folder: Path, size: int, normal_seconds: float) -> dict[str, Any]:
    file = folder / "one-word-apart.jsonl"
    write_one_word_apart(file, size)
    report, peak = _run(file, folder / "data-one-word")
    return {
        "benchmark": "clean, records that differ in one word",
        "records": size,
        "seconds": round(report["seconds"], 2),
        "over_normal_per_record": round(report["seconds"] / normal_seconds, 2),
        "peak_memory_gb": round(peak / 1e9, 3),
        "accepted": report["accepted"],
        "reasons": report["reasons"],
    }


def _peers(folder: Path, size: int) -> Iterator[dict[str, Any]]:
    """The near-duplicate step alone, on the same texts, by us and by the peers in a separate
    environment."""
    file = folder / f"texts-{size}.jsonl"
    plants = write_records(folder / "peer.jsonl", size)
    with (folder / "peer.jsonl").open(encoding="utf-8") as source, file.open("w", encoding="utf-8") as out:
        for record in map(json.loads, source):
            if plants[record["id"]].kind in ("fresh", "near", "apart"):
                out.write(json.dumps({"id": record["id"], "text": compared(record)}, ensure_ascii=False) + "\n")
    pairs = [(number, plant.of) for number, plant in plants.items() if plant.kind == "near"]
    for name, python in (("ours", sys.executable), ("datasketch", None), ("datatrove", None)):
        yield {
            "benchmark": "near-duplicates alone",
            **_peer(name, python or peer_python("near-duplicates"), file, pairs),
        }


def _peer(name: str, python: str | None, file: Path, pairs: list[tuple[int, int | None]]) -> dict[str, Any]:
    if python is None:
        return {"by": name, "unavailable": "its packages could not be installed"}
    command = [python, "-m", "benchmarks.clean_peers", name, str(file), str(THRESHOLD)]
    began = time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        return {
            "by": name,
            "unavailable": process.stderr.strip().splitlines()[-1][:300] if process.stderr else "it failed",
        }
    result = json.loads(process.stdout)
    dropped = set(result.pop("dropped"))
    missed = sum(number not in dropped and of not in dropped for number, of in pairs)
    return {
        "by": name,
        "whole_seconds": round(time.perf_counter() - began, 2),
        **result,
        "dropped": len(dropped),
        "near_duplicate_recall": round(1 - missed / max(1, len(pairs)), 5),
    }
