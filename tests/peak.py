"""The most memory that a process has held: of its own program alone. getrusage counts what its parent held before it began, too."""

from pathlib import Path


def own_peak_bytes() -> int:
    """Of the calling process, since its program began (VmHWM of proc(5))."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
