"""The child's half of a cell: read the spec, keep within its limits, report phases and points, end
with a verdict.

child.json always has everything that the child knows, so a kill loses nothing; the parent turns it
into result.json. If several processes train one cell (ranks, which torchrun numbers in the
environment), the first one reports for all. Every other rank writes rank-<n>.json, where the parent
looks for a verdict if the first left none.
"""

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.errors import UnavailableError, WorkError
from pipelines.hardware import machine
from pipelines.lake import disk
from pipelines.lake.files import read_json, write_json
from pipelines.runs import trackers
from pipelines.runs.process import (
    die_with_parent,
    is_capped,
    limit_memory,
    memory_left,
    offer_to_oom_killer,
    print_anything,
)
from pipelines.runs.status import EXIT_LOST, Status

STOPPED = "ended by SIGTERM from outside"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
Json = dict[str, Any]
# Messages of C++, CUDA, its libraries, Triton and NCCL for exhausted memory. cuBLAS reports
# NOT_INITIALIZED when it has no memory to start with.
OUT_OF_MEMORY = re.compile(
    r"out[ _]of[ _]memory|bad_alloc|bad allocation|can't allocate memory|cannot allocate memory|cudaErrorMemoryAllocation"
    r"|_ALLOC(ATION)?_FAILED|_STATUS_NOT_INITIALIZED when calling `?cublas(Lt)?Create",
    re.IGNORECASE,
)
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SIZE = r"([\d.]+) (bytes|KiB|MiB|GiB)"


class DivergedError(Exception):
    """The loss is no longer a finite number, or training made the model clearly worse."""


class StoppedError(Exception):
    """This process got a request to end. The message says how much of its work is saved."""


class LostRankError(Exception):
    """Another process of the same cell is gone. Its own report or its exit code has the reason."""


class Worker:
    """One process of a cell.

    `report` is the content of child.json: phase, status, detail, measured numbers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rank, self.ranks = (int(os.environ.get(name, first)) for name, first in (("RANK", 0), ("WORLD_SIZE", 1)))
        spec = read_json(folder / "spec.json")
        if spec is None:
            raise SystemExit(f"{folder}/spec.json: missing or not JSON; start a cell with `featherweight train`")
        self.spec: Json = spec
        self.root = Path(spec["root"])
        self.report: Json = {"phase": "load", "measured": {}, "versions": package_versions()}
        self._pipes: Any = None
        self._trackers: list[trackers.Tracker] = []
        self._asked_to_stop = False

    def listen(self) -> None:
        """Make SIGTERM end the process at the next call of `stop_if_asked` instead of at once."""

        def note(*_: object) -> None:
            self._asked_to_stop = True

        signal.signal(signal.SIGTERM, note)

    def stop_if_asked(self) -> None:
        """Raises StoppedError after a SIGTERM."""
        if self._asked_to_stop:
            raise StoppedError(STOPPED)

    @property
    def asked_to_stop(self) -> bool:
        """Whether a SIGTERM came."""
        return self._asked_to_stop

    def phase(self, name: str) -> None:
        self.report["phase"] = name
        self.save()
        self.say(f"{name} …")

    def measure(self, **numbers: Any) -> None:
        self.report["measured"] |= numbers

    def runs_on(self, device: str) -> None:
        """Report the device that this process computes on, the row's `device`, since the parent may
        assume another one."""
        self.report["device"] = device
        self.save()

    def save(self) -> None:
        write_json(self.folder / (f"rank-{self.rank}.json" if self.rank else "child.json"), self.report)

    def say(self, message: str) -> None:
        if self.rank:
            return
        print(message, flush=True)
        if self._pipes:
            self._pipes.log.info(message)

    def point(self, row: Json, *, quietly: bool = False) -> None:
        """Add a point to curve.jsonl, and print it unless `quietly`."""
        if self.rank:
            return
        with (self.folder / "curve.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, allow_nan=False) + "\n")
        for tracker in self._trackers:
            tracker.point(row)
        if quietly:
            return
        losses = [
            f"{name.replace('_', ' ')} {row[name]:.4f}" for name in ("train_loss", "eval_loss") if row[name] is not None
        ]
        self.say(f"step {row['step']}/{row['steps']}: {', '.join(losses)}, {row['process_memory_mb'] / 1000:.2f} GB")

    def run(self, work: Callable[["Worker"], None]) -> int:
        """Do `work` and save the verdict; returns the exit code.

        0: done. 3: a verdict other than ok. EXIT_LOST: no verdict, because another process of the
        cell is gone.
        """
        with ExitStack() as stack:
            listens = _dagster_listens() and self.rank == 0
            self._pipes = stack.enter_context(_dagster_pipes()) if listens else None
            status: Status = "ok"
            try:
                self.save()
                self._trackers = trackers.open_trackers(self.spec, self.folder) if self.rank == 0 else []
                work(self)
            except UnavailableError as error:
                status = self._verdict("unavailable", str(error))
            except DivergedError as error:
                status = self._verdict("diverged", str(error))
            except StoppedError as error:
                status = self._verdict("killed", str(error))
            except Exception as error:
                if self.ranks > 1 and is_lost_rank(error) and not is_out_of_memory(error):
                    print(f"rank {self.rank}: another rank is gone: {error}", file=sys.stderr, flush=True)
                    return EXIT_LOST
                status = self._judge(error)
            self.report["status"] = status
            for tracker in self._trackers:
                tracker.close(status)
            if not self._last_word():
                return disk.EXIT_CODE
        return 0 if status == "ok" else 3

    def _last_word(self) -> bool:
        """Write the report; on a full disk, release the reserved space first.

        Returns whether it was written.
        """
        try:
            self.save()
        except WorkError:
            disk.release_space(self.folder)
            with suppress(WorkError):
                self.save()
                return True
            return False
        return True

    def _judge(self, error: Exception) -> Status:
        if disk.is_full(error):
            full = error if isinstance(error, disk.DiskFullError) else disk.DiskFullError("it", self.folder, None)
            self.report |= {"bytes_needed": full.needed, "bytes_available": full.available}
            return self._verdict("failed", str(full), per_rank=True)
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            free, on_card = bytes_free(str(error)), machine.is_card(self.report.get("device"))
            self.report["bytes_requested"] = bytes_requested(str(error))
            self.report["bytes_available"] = memory_left() if free is None and not on_card else free
            detail, budget = message.splitlines()[0][:300], self.spec.get("memory_budget_gb")
            allowed = f" (memory_budget_gb is {budget:g})" if on_card and budget else ""
            return self._verdict("out_of_memory", detail + allowed, per_rank=True)
        return self._verdict("failed", message[:1000], per_rank=True)

    def _verdict(self, status: Status, detail: str, *, per_rank: bool = False) -> Status:
        """Note the detail of a verdict. `per_rank`: the cause is specific to this rank."""
        self.report["detail"] = detail = f"rank {self.rank}: {detail}" if self.ranks > 1 and per_rank else detail
        print(f"{status}: {detail}", file=sys.stderr, flush=True)
        return status


def start(work: Callable[[Worker], None]) -> None:
    """Entry point of a child: `python -m MODULE FOLDER`."""
    die_with_parent()
    offer_to_oom_killer()
    print_anything()
    worker = Worker(Path(sys.argv[1]))
    budget = worker.spec.get("memory_budget_gb")
    # On a GPU the budget is one of its memory (trainer/devices/card.py). CUDA itself needs
    # gigabytes of this process's memory.
    limit_memory(round(budget * 1e9) if budget and machine.device_slug() == "cpu" else None)
    sys.exit(worker.run(work))


def is_lost_rank(error: BaseException) -> bool:
    """Whether `error` means that another process of the same cell is gone (gloo raises plain
    RuntimeErrors)."""
    message = str(error)
    return (
        isinstance(error, LostRankError)
        or type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
        or "Connection closed by peer" in message
        or "Connection reset by peer" in message
        or "gloo/transport" in message
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that memory ran out, on a GPU or in the process."""
    return (
        isinstance(error, MemoryError)
        # The errors of torch and of DuckDB.
        or type(error).__name__ in ("OutOfMemoryError", "OutOfMemoryException")
        or OUT_OF_MEMORY.search(str(error)) is not None
        # The message of oneDNN.
        or (is_capped() and "could not create a primitive" in str(error))
    )


def bytes_requested(message: str) -> int | None:
    """The size of the refused allocation, if the message names it."""
    return _size(r"allocate {}", message)


def bytes_free(message: str) -> int | None:
    """The free bytes on the GPU at the refused allocation, if the message names them; under a
    budget, the rest of that."""
    free, allowed = _size(r"of which {} is free", message), _size(r"{} allowed;", message)
    if free is None or allowed is None:
        return free
    allocated = _size(r"{} is allocated by PyTorch", message) or 0
    reserved = _size(r"{} is reserved by PyTorch", message) or 0
    return min(free, max(0, allowed - allocated - reserved))


def _size(words: str, message: str) -> int | None:
    """The size in bytes in `message` at the place of {} in `words`."""
    match = re.search(words.format(SIZE), message)
    return round(float(match.group(1)) * UNITS[match.group(2)]) if match else None


def package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _dagster_listens() -> bool:
    """Whether a Dagster step started this process and reads its messages."""
    return "DAGSTER_PIPES_CONTEXT" in os.environ


def _dagster_pipes() -> Any:
    from dagster_pipes import open_dagster_pipes

    return open_dagster_pipes()
