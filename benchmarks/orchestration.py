"""Overhead of Dagster, Pipes and publishing, as a share of a cell of five minutes.

The overhead is the time of the materializations outside the cell's own processes: its training, its
evaluation and that of its base. The cell itself is as short as possible. The first publication also
predicts the cell's memory, which happens once; the second has nothing left to predict.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from benchmarks import project
from pipelines.compare.compare import published_rows
from pipelines.lake.files import read_json

METHOD, CELL_SECONDS = "lora-r8", 300
PROGRAM = """
import json, sys, time
import dagster as dg
from assets.instance import owner_tags, prepare_home
from assets.project import partition_of
from assets.run import _dimension_tags, data_job, publish_job, training_job
prepare_home()
partition = str(partition_of(sys.argv[1], sys.argv[2]))
tags = {**owner_tags(), "dagster/partition": partition, **_dimension_tags(partition)}
quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
seconds = {}
with dg.DagsterInstance.get() as instance:
    for name, job, given in (("data", data_job, {}), ("cell", training_job, tags), ("publish", publish_job, {}),
                             ("publish_again", publish_job, {})):
        began = time.monotonic()
        done = dg.execute_job(dg.reconstructable(job), instance=instance, run_config=quiet, tags=given)
        assert done.success
        seconds[name] = time.monotonic() - began
print("RESULT " + json.dumps(seconds))
"""


def measure() -> Iterator[dict[str, Any]]:
    with TemporaryDirectory(prefix="featherweight-orchestration-") as folder:
        stage = project.make(Path(folder), train=8, held_out=3)
        plain = stage.experiments.model_dump(mode="json")
        plain["profiles"]["local"]["methods"] = [METHOD]
        settings = Path(folder) / "experiments.yaml"
        settings.write_text(yaml.safe_dump(plain), encoding="utf-8")
        env = {
            **os.environ, "FEATHERWEIGHT_DATA": str(stage.data.root), "FEATHERWEIGHT_EXPERIMENTS": str(settings),
            "FEATHERWEIGHT_PROFILE": "local", "DAGSTER_HOME": str(Path(folder) / "dagster"),
        }  # fmt: skip
        began = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM, project.PACKAGED, METHOD],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        total = time.monotonic() - began
        if process.returncode:
            raise RuntimeError(process.stderr[-800:])
        seconds = json.loads(next(line for line in process.stdout.splitlines() if line.startswith("RESULT "))[7:])
        results = [read_json(path) or {} for path in stage.data.cells.rglob("result.json")]
        own = sum(result["seconds"] for result in results)
        rows = published_rows(stage.data)
    outside = seconds["cell"] - own
    start_seconds = total - sum(seconds.values())
    yield {
        "benchmark": "orchestration",
        "cell_seconds": seconds["cell"],
        "own_processes_seconds": own,
        "dagster_and_pipes_seconds": outside,
        "own_processes": len(results),
        "publish_seconds": seconds["publish"],
        "publish_again_seconds": seconds["publish_again"],
        "start_seconds": start_seconds,
        "share_of_five_minutes": (outside + seconds["publish"]) / CELL_SECONDS,
        "share_without_prediction": (outside + seconds["publish_again"]) / CELL_SECONDS,
        "row_is_published": [row["status"] for row in rows if row["method"] == METHOD] == ["ok"],
    }
