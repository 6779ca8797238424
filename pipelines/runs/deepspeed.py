"""The shardings that need DeepSpeed.

It is an optional package for GPUs, so this module does not import it.
"""

from importlib.util import find_spec

from pipelines.errors import UnavailableError

ZERO_STAGES = {"zero2": 2, "zero3": 3}


def require_deepspeed(sharding: str) -> None:
    """Raises UnavailableError if `sharding` needs DeepSpeed and it is not installed."""
    if sharding in ZERO_STAGES and find_spec("deepspeed") is None:
        raise UnavailableError(f"sharding: {sharding} needs DeepSpeed: make extras E=deepspeed, or use fsdp")
