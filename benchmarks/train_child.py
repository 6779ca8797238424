"""The training child with two additional clocks: `python -m benchmarks.train_child FOLDER` writes
the wall and processor seconds of its probe and optimizer steps to FOLDER/seconds.json."""

import time
from typing import Any

from pipelines.lake.files import write_json
from pipelines.runs.worker import Worker, start
from pipelines.train.trainer.child import train_cell

SECONDS = "seconds.json"


def timed(worker: Worker) -> None:
    from pipelines.train.trainer.loop import Trainer

    spent = {"wall": 0.0, "cpu": 0.0}

    def clocked(method: Any) -> Any:
        def run(*args: Any) -> None:
            wall, cpu = time.perf_counter(), time.process_time()
            method(*args)
            spent["wall"] += time.perf_counter() - wall
            spent["cpu"] += time.process_time() - cpu

        return run

    Trainer._probe, Trainer._advance = clocked(Trainer._probe), clocked(Trainer._advance)
    train_cell(worker)
    write_json(worker.folder / SECONDS, spent)


if __name__ == "__main__":
    start(timed)
