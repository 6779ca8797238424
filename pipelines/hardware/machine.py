"""What this machine is, found without importing torch: its class, memory, and the kernel's out-of-memory counter."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from pipelines.hardware import cuda_devices

PROCESSOR = "cpu: "  # how the name of a device begins that is no card


def cuda_query(field: str) -> list[str]:
    """What nvidia-smi says of `field` (such as `driver_version`) of each visible device, of a slice that of its card."""
    values = cuda_devices.query(field)
    return [values[device.index][0] for device in cuda_devices.visible() if device.index in values]


def cuda_name() -> str | None:
    """Name of the first visible CUDA device, or None. Asked of the driver, so that it costs no import of torch."""
    return next((device.name for device in cuda_devices.visible()), None)


def cuda_count() -> int:
    """How many CUDA devices a process started now would see."""
    return len(cuda_devices.visible())


def cuda_memory_bytes() -> int | None:
    """All memory of the first visible CUDA device; None without one, or where it shares the machine's."""
    return next((device.memory_bytes for device in cuda_devices.visible()), None)


def cuda_capability() -> tuple[int, int] | None:
    """Compute capability of the first visible CUDA device; None without one, or where the driver (before 2022) does not say it."""
    major, _, minor = next(iter(cuda_query("compute_cap")), "").partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def machine_class() -> str:
    """The device that results are measured on: `NVIDIA T4` or `cpu: AMD EPYC, 2 cores`."""
    return cuda_name() or processor()


@cache
def processor() -> str:
    """This machine's processor as a device: `cpu: AMD EPYC, 2 cores`."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{PROCESSOR}{model}, {len(os.sched_getaffinity(0))} cores"


def is_card(device: str | None) -> bool:
    """Whether a device's name is that of a CUDA card; False without a name."""
    return device is not None and not device.startswith(PROCESSOR)


def device_class(devices: int = 1, sharding: str = "none", *, name: str | None = None) -> str:
    """What a cell ran on: the device's name (None: that of the machine's class), and where there were several, how many and how
    divided."""
    name = name or machine_class()
    return name if devices == 1 else f"{name} × {devices}, {sharding}"


def device_slugs(devices: int = 1) -> list[str]:
    """Short names of the devices that a cell on so many of them uses, each of which one cell uses at a time: `cuda-1`, by
    nvidia-smi's number of the card, or `cpu`. In one order, so that two that wait for several never wait for each other."""
    used = {device.index for device in cuda_devices.visible()[:devices]}
    return [f"cuda-{index}" for index in sorted(used)] or ["cpu"]


def device_slug() -> str:
    """Short name of the device that a cell on one device uses."""
    return device_slugs()[0]


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
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])
