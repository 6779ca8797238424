"""Whole optimizer steps of one batch in a process of its own, and what they took: `python -m benchmarks.estimate_child`, the
cell as JSON on standard input (recipe, weights folder, batch, steps), the measurement as JSON on standard output.

The batch is what a cell's longest would be; model, adapter, optimizer, head and loss are the trainer's own.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from pipelines.estimate.batch import Batch
from pipelines.process import die_with_parent, offer_to_oom_killer
from pipelines.train import loading
from pipelines.train.losses import head_on_positions, token_losses
from pipelines.train.memory import give_back_freed, peak_resident_bytes, reset_peaks
from pipelines.train.optimizers import make_optimizer


def main() -> None:
    die_with_parent()
    offer_to_oom_killer()
    cell: dict[str, Any] = json.load(sys.stdin)
    loading.quiet()
    torch.manual_seed(1)
    recipe, folder = cell["recipe"], Path(cell["weights"])
    loading.load_tokenizer(folder)
    model = loading.load_model(folder, recipe)
    if recipe["kind"] == "lora":
        model = loading.add_adapter(model, recipe)
    if recipe["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loaded = peak_resident_bytes()
    give_back_freed()
    reset_peaks()
    peaks = train(model, recipe, [Batch(**one) for one in cell["batches"]], cell["steps"])
    print(json.dumps({"load_peak_gb": loaded / 1e9, "peaks_gb": [peak / 1e9 for peak in peaks]}))


def train(model: Any, recipe: dict[str, Any], batches: list[Batch], steps: int) -> list[int]:
    """The peak of resident memory so far, after each step."""
    optimizer = make_optimizer(model, recipe)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    peaks = []
    with head_on_positions(model) as wanted:
        for _ in range(steps):
            for batch in batches:
                token_losses(model, batch.examples(), wanted, torch.device("cpu")).mean().backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe["gradient_clip"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            peaks.append(peak_resident_bytes())
    return peaks


if __name__ == "__main__":
    main()
