"""What this machine is, found without importing torch: its class, memory, and the kernel's out-of-memory counter."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil

DRIVER_SECONDS = 600  # a driver that wakes up may take long; beside other work, longer


def cuda_query(field: str) -> list[str]:
    """What the driver's nvidia-smi says of `field` (such as `name`, `memory.total`), a line for each device; empty without one."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=DRIVER_SECONDS, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return []
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]


@cache
def cuda_name() -> str | None:
    """Name of the first CUDA device, or None. Asked of the driver, so that it costs no import of torch."""
    return next(iter(cuda_query("name")), None)


@cache
def cuda_count() -> int:
    """How many CUDA devices the driver lists."""
    return len(cuda_query("name"))


@cache
def machine_class() -> str:
    """The device that results were measured on: `NVIDIA T4` or `cpu: AMD EPYC, 2 cores`."""
    if gpu := cuda_name():
        return gpu
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"cpu: {model}, {len(os.sched_getaffinity(0))} cores"


def device_class(devices: int = 1, sharding: str = "none") -> str:
    """What a cell ran on: the machine's class, and where there were several devices, how many and how divided."""
    return machine_class() if devices == 1 else f"{machine_class()} × {devices}, {sharding}"


def device_slug() -> str:
    """Short name of the device that trains one cell at a time: `cuda-0` or `cpu`."""
    return "cuda-0" if cuda_name() else "cpu"


def oom_kills() -> int:
    """How often the kernel's out-of-memory killer has struck, in this machine or this cgroup, so far."""
    total = 0
    for file, key in (("/proc/vmstat", "oom_kill"), ("/sys/fs/cgroup/memory.events", "oom_kill")):
        try:
            for line in Path(file).read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                total += int(value) if name == key else 0
        except OSError:
            continue
    return total


def process_is_alive(pid: int, started: float, *, within: float = 2) -> bool:
    """True while the process that had `pid` at `started` (seconds since the epoch) runs; a reused pid is another one. `within`:
    how many seconds apart `started` and the kernel's word may be."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < within and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def own_identity() -> dict[str, Any]:
    """This process, so that others can see later whether it still lives (`is_alive`). `boot` and `ticks` stay true when the clock
    is set, by which the kernel tells `pid_started`."""
    known: dict[str, Any] = {"pid": os.getpid(), "pid_started": psutil.Process().create_time()}
    ticks = _ticks(os.getpid())
    return known | ({"boot": _boot(), "ticks": ticks} if ticks is not None else {})


def is_alive(identity: Mapping[str, Any]) -> bool:
    """Whether the process lives that said so of itself by `own_identity`, of this version or of one that knew no boot."""
    if "boot" not in identity:
        return process_is_alive(identity["pid"], identity.get("pid_started", 0.0))
    if identity["boot"] != _boot() or _ticks(identity["pid"]) != identity["ticks"]:
        return False
    return psutil.pid_exists(identity["pid"]) and psutil.Process(identity["pid"]).status() != psutil.STATUS_ZOMBIE


@cache
def _boot() -> str:
    """The kernel's name for the time since it was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _ticks(pid: int) -> int | None:
    """When the process was started, in clock ticks since the boot (proc(5), stat, field 22); None where that cannot be read."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(said.rpartition(")")[2].split()[19])
