"""What the optimizers keep, and what a step of theirs holds for a moment. Sizes in bytes, of parameters in float32."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.settings.methods import LORA_FA, traits_of

BLOCK = 256  # values that share one absmax in bitsandbytes' 8-bit states
IN_FLOAT32 = ("adamw", LORA_FA)
SMALLEST_IN_8_BITS = 4096  # parameters with fewer values keep float32 states (`min_8bit_size`)


def state_bytes(sizes: Sequence[int], optimizer: str) -> int:
    """Adam's two states of parameters with so many values each (Kingma and Ba 2015): float32, or 8 bits and a float32 for every
    256 values (Dettmers et al. 2022; `bitsandbytes.optim.optimizer.Optimizer2State.init_state`). LoRA-FA keeps float32 ones of what
    it trains."""
    if optimizer in IN_FLOAT32:
        return sum(8 * size for size in sizes)
    return sum(8 * n if n < SMALLEST_IN_8_BITS else 2 * n + 8 * -(-n // BLOCK) for n in sizes)


def importance_bytes(sizes: Sequence[int], recipe: Mapping[str, Any]) -> int:
    """Two float32 values of each that trains, by which AdaLoRA moves ranks (trainer/moving_ranks.py); else nothing."""
    return sum(8 * size for size in sizes) if traits_of(recipe).moves_ranks else 0


def transient_bytes(counted: Any, optimizer: str, *, on_card: bool) -> float:
    """The most that a step holds beside states and gradients: nothing where the update is one kernel, as torch.optim.AdamW's is
    (fused) and on a card bitsandbytes' in 8 bits; on a CPU that takes six float32 copies of one parameter
    (`_optimizer_update_8bit_blockwise_cpu`). LoRA-FA, plain PyTorch anywhere, makes three of one parameter: its projected gradient,
    that in bfloat16 and back, and the root of the second state."""
    if optimizer == LORA_FA:
        return 3 * counted.largest
    return 0 if optimizer == "adamw" or on_card else 6 * counted.largest
