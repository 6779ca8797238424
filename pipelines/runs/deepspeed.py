"""What DeepSpeed is needed for. It is an extra, and a GPU's: nothing is imported here."""

from importlib.util import find_spec

from pipelines.errors import UnavailableError

ZERO_STAGES = {"zero2": 2, "zero3": 3}


def require_deepspeed(sharding: str) -> None:
    """Raises UnavailableError where `sharding` needs DeepSpeed and this process, which is to train, has none."""
    if sharding in ZERO_STAGES and find_spec("deepspeed") is None:
        raise UnavailableError(f"sharding: {sharding} needs DeepSpeed: make extras E=deepspeed, or use fsdp")
