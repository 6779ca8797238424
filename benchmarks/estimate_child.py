"""Memory of complete optimizer steps in a separate process: `python -m benchmarks.estimate_child`.

Standard input holds the cell as JSON (recipe, weights folder, batch; `whole`: import everything
that a cell imports). Standard output is the measurement as JSON.

Like a cell's steps, a step has several micro-batches: the longest, a shorter one, and one with an
additional row. They differ from step to step, because a real heap holds pieces of all shapes.
Model, adapter, optimizer, head and loss are the trainer's own.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from pipelines.estimate.batch import Batch
from pipelines.estimate.child import framework
from pipelines.runs.process import die_with_parent, offer_to_oom_killer
from pipelines.settings.methods import traits_of
from pipelines.train.trainer import loading
from pipelines.train.trainer.losses import head_on_positions, step_loss
from pipelines.train.trainer.measure.memory import give_back_freed, peak_resident_bytes, reset_peaks
from pipelines.train.trainer.optimizers import make_optimizer

# Length of each optimizer step's longest example, as a share of the cell's longest
STEPS = (1.0, 0.93, 0.85, 1.0)


def main() -> None:
    die_with_parent()
    offer_to_oom_killer()
    cell: dict[str, Any] = json.load(sys.stdin)
    loading.quiet()
    if cell.get("whole", True):
        # A training cell imports more than this module does
        framework()
    torch.manual_seed(1)
    recipe, folder = cell["recipe"], Path(cell["weights"])
    loading.load_tokenizer(folder)
    model = loading.load_model(folder, recipe)
    if traits_of(recipe).has_adapter:
        model = loading.add_adapter(model, recipe)
    if recipe["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loaded = peak_resident_bytes()
    give_back_freed()
    reset_peaks()
    peaks = train(model, recipe, Batch(**cell["batch"]))
    trainable, _ = loading.parameter_counts(model)
    measured = {"load_peak_gb": loaded / 1e9, "peaks_gb": [peak / 1e9 for peak in peaks], "trainable_params": trainable}
    print(json.dumps(measured))


def scaled(batch: Batch, share: float, *, rows: int | None = None) -> Batch:
    """`batch` with `share` of its length and of each row's learned tokens."""
    rows = rows or batch.rows
    length = int(batch.length * share)
    return Batch(rows, length, min(rows * (length - 1), max(rows, int(batch.learned * share * rows / batch.rows))))


def shorter(batch: Batch) -> Batch:
    """The second longest micro-batch of a step with `batch`; gradients of the first already
    exist."""
    return scaled(batch, 0.7)


def train(model: Any, recipe: dict[str, Any], batch: Batch) -> list[int]:
    """Train, and return the peak resident memory in bytes after each step."""
    optimizer = make_optimizer(model, recipe)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    peaks = []
    with head_on_positions(model) as positions:
        for share in STEPS:
            longest = scaled(batch, share)
            for one in (longest, shorter(longest), scaled(batch, 0.48 * share, rows=batch.rows + 1)):
                step_loss(model, one.examples(), positions, torch.device("cpu"), learned=one.learned).backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe["gradient_clip"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            peaks.append(peak_resident_bytes())
    return peaks


if __name__ == "__main__":
    main()
