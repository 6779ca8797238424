"""The memory of optimizers: their states, and the temporary memory of a step. Sizes are bytes
for parameters in float32."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.settings.methods import LORA_FA, traits_of

# Values that share one absmax in bitsandbytes' 8-bit states.
BLOCK = 256
IN_FLOAT32 = ("adamw", LORA_FA)
# Parameters with fewer values keep float32 states (`min_8bit_size`).
SMALLEST_IN_8_BITS = 4096


def state_bytes(sizes: Sequence[int], optimizer: str) -> int:
    """Bytes of Adam's two states for parameters of these sizes (Kingma and Ba 2015).

    States are float32, or 8 bits plus a float32 for every 256 values (Dettmers et al. 2022;
    `bitsandbytes.optim.optimizer.Optimizer2State.init_state`). LoRA-FA keeps float32 states of its
    trained parameters.
    """
    if optimizer in IN_FLOAT32:
        return sum(8 * size for size in sizes)
    return sum(8 * n if n < SMALLEST_IN_8_BITS else 2 * n + 8 * -(-n // BLOCK) for n in sizes)


def importance_bytes(sizes: Sequence[int], recipe: Mapping[str, Any]) -> int:
    """Bytes of the two float32 values per trained weight by which AdaLoRA moves ranks
    (trainer/moving_ranks.py); else 0."""
    return sum(8 * size for size in sizes) if traits_of(recipe).moves_ranks else 0


def transient_bytes(counted: Any, optimizer: str, *, on_card: bool) -> float:
    """The largest temporary memory of a step besides states and gradients.

    It is 0 if the update is one kernel: torch.optim.AdamW (fused), and bitsandbytes' 8-bit update
    on a card. On a CPU the 8-bit update takes six float32 copies of one parameter
    (`_optimizer_update_8bit_blockwise_cpu`). LoRA-FA, plain PyTorch everywhere, makes three copies
    of one parameter: its projected gradient, the same in bfloat16 and back, and the root of the
    second state.
    """
    if optimizer == LORA_FA:
        return 3 * counted.largest
    return 0 if optimizer == "adamw" or on_card else 6 * counted.largest
