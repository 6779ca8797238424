"""Every check, the most valuable first.

The expectations come from reading the code, not from a card. Each may turn out wrong; the checks
find that out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# File in the shared folder of a run that selects cells of the grid; without it all cells run
GRID_ONLY = "only.txt"


@dataclass(frozen=True)
class Check:
    """One check.

    - `runs`: its function as `module:function`
    - `seconds`: its limit
    - `asks`: its question
    - `expects`: expectations from reading the code, by short name; the function reports on each
      name
    """

    name: str
    runs: str
    seconds: float
    asks: str
    expects: Mapping[str, str] = field(default_factory=dict)


CHECKS = (
    Check(
        "attention", "benchmarks.card.attention:check", 45,
        "the environment; which attention kernel is chosen; what a new shape costs with cuDNN's attention on and off",
        {
            "cudnn first": "from capability 9.0 on cuDNN is chosen for head sizes up to 128 without dropout, while it is allowed",
            "no math": "from capability 8.0 on no causal case without a mask falls to the math kernel",
            "new shapes": "with cuDNN a new shape costs at least 5 times a repeated one; without it at most 2 times",
        },
    ),
    Check(
        "cells", "benchmarks.card.training:check", 135,
        "12 steps of whole cells in the shapes of gemma-2b-it and opt-1.3b: memory, speed, predictions",
        {
            "all end ok": "every cell ends ok",
            "loss falls": "in every cell the loss on held-out examples is lower at the end than before the first step",
            "fewer bytes": "on each model qlora-r8 allocates less than lora-r8, and lora-r8 less than full",
            "as predicted": "the allocated peak is within 10 % of the prediction in every cell",
        },
    ),
    Check(
        "profile", "benchmarks.card.profiling:check", 40,
        "one LoRA step of gemma-2b-it's and one of gpt2-large's shape: kernels by group, gaps, waits for the host",
        {
            "products lead": "in gemma-2b-it's step matrix products take at least half of the kernels' time",
            "bound by launches": "in gpt2-large's step kernels run less than 60 % of the time; in gemma-2b-it's more than 80 %",
            "few waits": "a step waits for the host at most four times a micro-batch",
        },
    ),
    Check(
        "head", "benchmarks.card.head:check", 40,
        "the output head alone, 256,000 words: pieces of several sizes, trained and frozen",
        {
            "same loss": "loss and gradients do not depend on the pieces (bfloat16: within 2 %)",
            "large pieces": "pieces of 2,048 rows take at most half of the time of pieces of 65 rows",
            "own choice": "the trainer's own choice of pieces takes at most 1.25 times the best one's time",
        },
    ),
    Check(
        "layers", "benchmarks.card.layers:check", 40,
        "a LoRA layer at gemma-2b-it's shapes by PEFT and by one function; norms and gated units",
        {
            "same gradients": "one function's gradients are PEFT's (cosine at least 0.99)",
            "one function": "one function takes at most 0.7 of the time of PEFT's layer under autocast",
            "norm": "the fused norm takes at most half of the time of the plain one",
        },
    ),
    Check(
        "budget", "benchmarks.card.budget:check", 40,
        "a cell that needs more than its memory budget; the effect of a process limit on CUDA",
        {
            "refused in words": "the cell ends out_of_memory and names the requested bytes",
            "within budget": "the card is never used beyond the budget and 1 GB of context",
            "no limit on the host": "under a limit of 3 GB on private memory CUDA does not start",
        },
    ),
    Check(
        "interruption", "benchmarks.card.interruption:check", 60,
        "SIGTERM in the middle and resuming from the checkpoint; host memory meanwhile; paged optimizers' memory",
        {
            "goes on": "the stopped cell resumes after its last whole step",
            "same losses": "its losses equal those of an uninterrupted cell (within 1 % on a card, exactly on a CPU)",
            "streamed": "writing a checkpoint takes less than 1 GB of host memory",
            "paged stays": "a paged optimizer's managed memory is not released when the optimizer is deleted",
        },
    ),
    Check(
        "numerics", "benchmarks.card.numerics:check", 40,
        "bfloat16 against float32 on one batch; padded rows against variable-length attention; 4 bits packed here and on a CPU",
        {
            "loss": "bfloat16's loss is within 1 % of float32's",
            "gradients": "every layer's gradient has float32's direction (cosine at least 0.98)",
            "variable length": "variable-length attention gives the result of padded rows (within 1 %)",
            "four bits": "4-bit weights packed on the card are the bits that the CPU's code packs",
        },
    ),
    Check(
        "trl", "benchmarks.card.trl:check", 55,
        "TRL's SFTTrainer on the same examples, at its default and at a better setting",
        {"ahead": "the trainer processes more useful tokens a second than TRL's best setting"},
    ),
    Check(
        "rest", "benchmarks.card.remaining:check", 60,
        "generation, the optimizer's step fused and not fused, float16 forced",
        {
            "decoding": "logits while decoding equal those of one pass over the whole text (cosine at least 0.99)",
            "fused": "AdamW's fused step takes at most 0.75 of the default's time, and makes no temporary copy",
            "own optimizer": "the trainer's AdamW is the fused one",
            "float16": "the head's gradient in float16, loss scaled by 65,536, is finite and within 1 % of float32's",
            "float16 cell": "a cell that is forced to float16 ends ok",
        },
    ),
)  # fmt: skip


def named(names: str | None) -> list[Check]:
    """The checks of a comma-separated list, the most valuable first; without a list all of them.

    Raises:
        ValueError: no check has one of these names.
    """
    if names is None:
        return list(CHECKS)
    selected = [name.strip() for name in names.split(",") if name.strip()]
    known = [check.name for check in CHECKS]
    unknown = [name for name in selected if name not in known]
    if unknown or not selected:
        raise ValueError(f"{', '.join(unknown) or repr(names)}: no such check; expected some of {', '.join(known)}")
    return [check for check in CHECKS if check.name in selected]
