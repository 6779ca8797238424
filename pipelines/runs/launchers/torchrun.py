"""Several processes for one cell on this machine, by torchrun.

`python -m pipelines.runs.launchers.torchrun COUNT FOLDER ARGUMENTS` starts `python ARGUMENTS` COUNT
times (the ranks). It ends when all ranks have ended. When one rank fails, it ends all of them.

torchrun itself (torch.distributed.run) does the work. This process adds three things: it dies with
its parent and takes the ranks with it, it ends by the signal or exit code of the rank that ended
first, and nothing listens on any address but loopback.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.lake.files import read_json, write_json
from pipelines.runs.command import CellCommand, Placement
from pipelines.runs.deepspeed import require_deepspeed
from pipelines.runs.launchers.base import Launcher
from pipelines.runs.launchers.local import LocalCommand, LocalLauncher
from pipelines.runs.process import PARENT, die_with_parent
from pipelines.runs.status import EXIT_LOST, RANKS, RENDEZVOUS


class TorchrunLauncher(Launcher):
    """Starts one process on this machine for each device of the command.

    A single one starts like with the local launcher.
    """

    @property
    def runs(self) -> tuple[str, ...]:
        return (__name__,)

    def start(self, command: CellCommand) -> LocalCommand:
        return LocalLauncher().start(with_ranks(command))

    def require(self, placement: Placement) -> None:
        require_deepspeed(placement.sharding)


def with_ranks(command: CellCommand) -> CellCommand:
    """The command that runs `command` once per device."""
    if command.devices == 1:
        return command
    arguments = ["-m", __name__, str(command.devices), str(command.folder), *command.arguments]
    return replace(command, arguments=arguments)


def main(count: int, folder: Path, arguments: Sequence[str]) -> int:
    """The exit code of the ranks: 0 if all succeeded, negative for a signal."""
    die_with_parent()
    # The ranks die with this process.
    os.environ[PARENT] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    if (read_json(folder / "spec.json") or {}).get("sharding") not in (None, "none", "ddp"):
        # Each layer is assembled and freed again. glibc's heap would keep the freed pieces
        # (SmolLM2, full: 4.1 GB per rank instead of 2.4); allocations above this threshold bypass
        # the heap.
        os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))
    _stay_on_loopback()
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with tempfile.TemporaryDirectory(prefix="featherweight-ranks-") as meeting:
        os.environ[RENDEZVOUS] = f"file://{meeting}/ranks"
        options = [
            f"--nproc-per-node={count}", "--nnodes=1", "--max-restarts=0", "--rdzv-backend=c10d", "--rdzv-id=cell",
            f"--rdzv-endpoint={meeting}/agent", "--rdzv-conf=store_type=file", "--local-addr=127.0.0.1",
        ]  # fmt: skip
        try:
            run.run(run.parse_args([*options, *_as_script(arguments)]))
        except ChildFailedError as error:
            return _first_to_end(folder, error.failures)
        except SignalException as stopped:
            return -stopped.sigval
    return 0


def _as_script(arguments: Sequence[str]) -> list[str]:
    return ["--module", *arguments[1:]] if arguments[0] == "-m" else list(arguments)


def _stay_on_loopback() -> None:
    """Make the ranks meet in a file, because PyTorch's own store listens on all addresses without
    authentication. Their sockets use the loopback interface."""
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    if sys.platform == "linux":
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def _first_to_end(folder: Path, failures: dict[int, Any]) -> int:
    """Find the rank whose end ended the others (which lost it, or got SIGTERM); record and return
    its exit code."""
    follow = {-signal.SIGTERM: 1, EXIT_LOST: 2}
    rank, failure = min(
        failures.items(), key=lambda item: (follow.get(item[1].exitcode, 0), item[1].timestamp, item[0])
    )
    write_json(folder / RANKS, {"rank": rank, "exit_code": failure.exitcode})
    return failure.exitcode


def end_as(code: int) -> None:
    """End this process by the signal -`code`, or with exit code `code`."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


LAUNCHER = TorchrunLauncher

if __name__ == "__main__":
    end_as(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
