"""The launcher of this machine: a child process in its own session."""

import subprocess
import time
from contextlib import suppress

import psutil

from pipelines.runs.command import CellCommand, RunningCommand
from pipelines.runs.launchers.base import Launcher
from pipelines.runs.process import spawn, stop_group

# Time for the kernel to remove killed processes.
GONE_SECONDS = 10.0


class LocalCommand(RunningCommand):
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._family = [psutil.Process(process.pid)]
        self._looked, self._asked = 0.0, 0

    @property
    def asked_bytes(self) -> int:
        return self._asked

    def poll(self) -> int | None:
        return self._process.poll()

    def memory_bytes(self) -> int:
        now = time.monotonic()
        try:
            # Finding children reads all of /proc, which is too slow for every poll.
            if now - self._looked > 1:
                self._family[1:], self._looked = self._family[0].children(recursive=True), now
            memory = [member.memory_info() for member in self._family]
            self._asked = max(self._asked, sum(one.data for one in memory))
            return sum(one.rss for one in memory)
        # A process ended between two reads.
        except psutil.Error:
            self._looked = 0.0
            return 0

    def stop(self, *, grace_seconds: float = 0) -> None:
        with suppress(psutil.Error):
            self._family[1:] = self._family[0].children(recursive=True)
        stop_group(self._process, grace_seconds=grace_seconds)
        # Processes in their own sessions, such as torchrun's, are not in the group.
        for member in self._family[1:]:
            with suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(self._family[1:], timeout=GONE_SECONDS)


class LocalLauncher(Launcher):
    """Starts a child process in its own session on this machine."""

    def start(self, command: CellCommand) -> LocalCommand:
        log = command.folder / "log.txt"
        return LocalCommand(spawn(command.arguments, log=log, env=command.env, keep_open=command.keep_open))


LAUNCHER = LocalLauncher
