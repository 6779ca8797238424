"""A memory budget on a card: it must limit the card's memory, not the process's, and a refusal must
be an outcome with a message."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.card.bench import Bench
from benchmarks.card.cells import Cell, run
from benchmarks.card.models import OPT
from benchmarks.card.verdicts import Line, finding
from pipelines.runs.process import child_environment

# Share of a card that is smaller than the budget
SHARE = 0.8
CONTEXT_GB = 1.0
LIMIT_GB = 3
START = """
import json, resource, sys
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
import torch
torch.zeros(1, device="cuda")
torch.cuda.synchronize()
lines = open("/proc/self/status", encoding="ascii").read().splitlines()
print(json.dumps({line.split(":")[0]: int(line.split()[1]) / 1e6 for line in lines if line.startswith(("VmData", "RssAnon"))}))
"""


def check(bench: Bench) -> Iterator[Line]:
    budget = 3.0 if bench.dry else min(20.0, SHARE * _card_gb())
    # Without checkpointing it needs more than the budget: 16 bytes a parameter, and activations
    changes = {"gradient_checkpointing": False}
    cell = Cell(bench, OPT, "full", steps=1, changes=changes, spec={"memory_budget_gb": budget})
    result = run(cell, bench.work / "budget", limit=bench.left() - 10)
    yield {"model": cell.model, "method": cell.method, "memory_budget_gb": budget, **result}
    names_bytes = result["status"] == "out_of_memory" and (bench.dry or bool(result.get("bytes_requested")))
    yield finding("refused in words", f"{result['status']}: {result.get('detail')}", bench.judged(names_bytes))
    if bench.dry:
        yield finding("within budget", "no card is in use", None)
        yield finding("no limit on the host", "there is no CUDA to start", None)
        return
    if (peak := result.get("whole_card_gb")) is not None:
        used = peak - (result["whole_card_before_gb"] or 0.0)
        seen = f"peak use: {used:.1f} of {budget:.1f} GB"
        yield finding("within budget", seen, used <= budget + CONTEXT_GB)
    free, limited = (_start(limit, bench.left() - 2) for limit in (0, LIMIT_GB * 10**9))
    yield {"cuda_started": free, f"cuda_started_under_{LIMIT_GB}_gb": limited}
    how = limited["ended"] if limited["code"] else "it starts"
    agrees = free["code"] == 0 and limited["code"] != 0
    yield finding("no limit on the host", f"{how}; without a limit it holds {free['said']}", agrees)


def _card_gb() -> float:
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 1e9


def _start(limit: int, seconds: float) -> dict[str, Any]:
    """Start CUDA in a separate process under a limit on private memory in bytes (0: none). Returns
    how it ended, and its memory."""
    try:
        process = subprocess.run(
            [sys.executable, "-c", START, str(limit)],
            env=child_environment(), capture_output=True, encoding="utf-8", errors="replace", timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"code": -9, "said": "", "ended": f"it hung for {seconds:.0f} s"}
    last = (process.stderr.strip().splitlines() or [""])[-1][:200]
    return {
        "code": process.returncode,
        "said": process.stdout.strip(),
        "ended": f"exit code {process.returncode}: {last}",
    }
