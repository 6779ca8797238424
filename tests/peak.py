"""The peak memory of a process, counted only for its own program.

getrusage also counts its parent's memory from before the start.
"""

from pathlib import Path


def own_peak_bytes() -> int:
    """The peak of the calling process since its program began (VmHWM of proc(5))."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
