"""Ranks of one cell without torchrun.

They are forked from a server that has imported their modules, so that a pair starts at once.
"""

import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runs.command import CellCommand, RunningCommand
from pipelines.runs.status import RENDEZVOUS
from pipelines.train.trainer.child import train_cell
from tests.in_process import WatchedWorker
from tests.test_runs_cells import CPU_MESSAGE

NEEDED = ["torch.distributed", "transformers.models.llama", "peft", "pipelines.train.trainer.loop"]


def work(folder: Path, place: tuple[int, int, str], stop_at: int | None, poor_at: int | None) -> None:
    """The process of rank `place[0]` of `place[1]`; the ranks meet at `place[2]`.

    After step `stop_at` the last rank is asked to stop, like by a SIGTERM that reaches no
    other; after step `poor_at` it runs out of memory.
    """
    rank, count, meeting = place
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), RENDEZVOUS: meeting}
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        worker = WatchedWorker(folder)

        def at_point(_worker: WatchedWorker, row: dict[str, Any]) -> None:
            if rank == count - 1 and row["step"] == stop_at:
                worker.ask_to_stop()
            if rank == count - 1 and row["step"] == poor_at:
                raise RuntimeError(CPU_MESSAGE)

        worker.at_point = at_point
        code = worker.run(train_cell)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@dataclass
class ForkedCommand(RunningCommand):
    processes: list[Any]

    def poll(self) -> int | None:
        codes = [process.exitcode for process in self.processes]
        if all(code is not None for code in codes) or any(codes):
            return next((code for code in codes if code), 0)
        return None

    def stop(self, *, grace_seconds: float = 0) -> None:
        for process in self.processes:
            process.join(600 if self.poll() is not None else 0)
            process.kill()
            process.join()


@dataclass(frozen=True)
class Forked:
    """A launcher that starts one rank per device of the command."""

    stop_at: int | None = None
    poor_at: int | None = None

    def start(self, command: CellCommand) -> ForkedCommand:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(NEEDED)
        meeting = f"file://{tempfile.mkdtemp(dir=command.folder)}/ranks"
        places = [(rank, command.devices, meeting) for rank in range(command.devices)]
        faults = (self.stop_at, self.poor_at)
        processes = [context.Process(target=work, args=(command.folder, place, *faults)) for place in places]
        for process in processes:
            process.start()
        return ForkedCommand(processes)
