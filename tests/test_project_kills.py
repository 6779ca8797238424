"""Kills of a publisher: the data root stays readable at any moment, and no process of it
survives."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as parquet
import pytest
from safetensors import safe_open

from pipelines.lake.paths import DataRoot
from pipelines.lake.warehouse import KEPT
from tests.project import TinyProject
from tests.test_project_make_run import processes_of
from tests.test_project_old_lake import STATUSES, TABLES, unpacked

KILLS = 50
COMPARE = [sys.executable, "-m", "pipelines.cli", "compare"]


def published(data: DataRoot) -> dict[str, list[Any]]:
    """Every table of the publication, as any client reads it: its number of rows, and the
    comparison's measured numbers."""
    with duckdb.connect(str(data.warehouse), read_only=True) as db:
        counts = {table: db.execute(f'SELECT count(*) FROM "{table}"').fetchall() for table in TABLES}
        measured = "SELECT method, status, eval_bits_per_byte, run_id FROM comparison ORDER BY ALL"
        return {**counts, "measured": db.execute(measured).fetchall()}


def require_readable(data: DataRoot) -> None:
    """Raises where a file of the data root with its final name is incomplete; a curve and a log may
    end anywhere.

    A file is written inside a hidden folder, or under a hidden name, until it is whole.
    """
    for path in data.root.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(data.root).parts)
        if hidden or not path.is_file():
            continue
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".parquet":
            parquet.read_table(path)
        elif path.suffix == ".safetensors":
            with safe_open(path, "numpy") as tensors:
                assert tensors.keys()


def require_page(data: DataRoot) -> None:
    assert data.report.read_text(encoding="utf-8").rstrip().endswith("</html>")


@pytest.mark.slow
def test_fifty_kills_of_compare_leave_every_file_whole_and_no_process(tmp_path: Path) -> None:
    with unpacked(tmp_path) as data:
        project = TinyProject(data, tmp_path / "experiments.yaml")
        subprocess.run(COMPARE, stdout=subprocess.DEVNULL, check=True)
        began = time.monotonic()
        subprocess.run(COMPARE, stdout=subprocess.DEVNULL, check=True)
        # The moments of the kills spread over a whole call, whatever the load of the machine.
        length = time.monotonic() - began
        expected, chance, ended = published(data), random.Random(50), []
        assert {row[0]: row[1] for row in expected["measured"]} == STATUSES
        predictions = sorted((data.lake / "estimates").glob("*.json"))
        for kill in range(KILLS):
            # Some kills hit while a child of the publisher predicts memory.
            if kill % 5 == 0:
                chance.choice(predictions).unlink(missing_ok=True)
            process = subprocess.Popen(COMPARE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(chance.uniform(0, 1.05 * length))
            process.kill()
            ended.append(process.wait())
            # A child dies after its parent, not before; only pytest's own time-out ends this loop.
            while processes_of(project):
                time.sleep(0.05)
            require_readable(data)
            require_page(data)
            assert published(data) == expected
        assert ended.count(-signal.SIGKILL) > KILLS * 3 / 4, "most came while it ran"
        subprocess.run(COMPARE, stdout=subprocess.DEVNULL, check=True)
        assert published(data) == expected
        assert len(list((data.root / "warehouse").iterdir())) == KEPT, "half a publication is gone"
