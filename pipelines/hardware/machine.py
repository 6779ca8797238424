"""This machine without importing torch: its class, its memory, and the kernel's out-of-memory
counter."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from pipelines.hardware import cuda_devices

# The prefix of the names of devices that are no cards.
PROCESSOR = "cpu: "


def cuda_query(field: str) -> list[str]:
    """nvidia-smi's `field` (such as `driver_version`) for each visible device; a slice has the
    value of its card."""
    values = cuda_devices.query(field)
    return [values[device.index][0] for device in cuda_devices.visible() if device.index in values]


def cuda_name() -> str | None:
    """Name of the first visible CUDA device, or None. The driver reports it, so this needs no
    import of torch."""
    return next((device.name for device in cuda_devices.visible()), None)


def cuda_count() -> int:
    """How many CUDA devices a process started now would see."""
    return len(cuda_devices.visible())


def cuda_memory_bytes() -> int | None:
    """Total memory of the first visible CUDA device; None without one, or if it shares the
    machine's memory."""
    return next((device.memory_bytes for device in cuda_devices.visible()), None)


def cuda_capability() -> tuple[int, int] | None:
    """Compute capability of the first visible CUDA device; None without one, or if a driver before
    2022 omits it."""
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
    """The devices that a cell ran on: the device's name, and for several devices their number and
    the sharding.

    `name` None means this machine's class.
    """
    name = name or machine_class()
    return name if devices == 1 else f"{name} × {devices}, {sharding}"


def device_slugs(devices: int = 1) -> list[str]:
    """Short names of the devices that a cell uses exclusively: `cuda-1`, with nvidia-smi's number
    of the card, or `cpu`.

    They are sorted, so that two cells that wait for several devices never wait for each other.
    """
    used = {device.index for device in cuda_devices.visible()[:devices]}
    return [f"cuda-{index}" for index in sorted(used)] or ["cpu"]


def device_slug() -> str:
    """Short name of the device that a cell on one device uses."""
    return device_slugs()[0]


def oom_kills() -> int:
    """How often the kernel's out-of-memory killer has struck so far, on this machine and in this
    cgroup."""
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
    """Whether the process that had `pid` at `started` (seconds since the epoch) still runs; a
    reused pid does not count.

    `within` is the tolerated difference in seconds between `started` and the kernel's start time.
    """
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < within and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def own_identity() -> dict[str, Any]:
    """This process's identity, by which others can later tell whether it still runs (`is_alive`).

    `boot` and `ticks` stay valid when somebody sets the clock; the kernel derives `pid_started`
    from that clock.
    """
    known: dict[str, Any] = {"pid": os.getpid(), "pid_started": psutil.Process().create_time()}
    ticks = _ticks(os.getpid())
    return known | ({"boot": _boot(), "ticks": ticks} if ticks is not None else {})


def is_alive(identity: Mapping[str, Any]) -> bool:
    """Whether the process with that `own_identity` still runs; identities of earlier versions have
    no `boot`."""
    if "boot" not in identity:
        return process_is_alive(identity["pid"], identity.get("pid_started", 0.0))
    if identity["boot"] != _boot() or _ticks(identity["pid"]) != identity["ticks"]:
        return False
    return psutil.pid_exists(identity["pid"]) and psutil.Process(identity["pid"]).status() != psutil.STATUS_ZOMBIE


@cache
def _boot() -> str:
    """The kernel's id of the current boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _ticks(pid: int) -> int | None:
    """The start time of the process in clock ticks since the boot (proc(5), stat, field 22); None
    if it is unreadable."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])
