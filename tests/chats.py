"""A planted lake whose cells can really answer: a tiny model, adapters of it, and a full model.

The adapters have random weights; the full model is trained.
"""

from dataclasses import replace
from pathlib import Path

import yaml

from pipelines.runs.cells import Attempt
from pipelines.settings import experiments
from tests.fakes import planted
from tests.fakes.planted import Lake
from tests.tiny import TARGETS, save_tiny, tiny_model

METHODS = {
    "lora-r4": {"kind": "lora", "rank": 4},
    "few-shot": {"kind": "none", "shots": 2},
    "bm25": {"kind": "none", "retrieval": {"from": "train", "by": "bm25", "k": 2}},
    "prompt-tuning": {"kind": "adapter", "peft": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}},
    "prefix-tuning": {"kind": "adapter", "peft": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}},
    "pissa": {"kind": "adapter", "peft": {"peft_type": "LORA", "r": 4, "init_lora_weights": "pissa"}},
}


def lake(root: Path, model: Path) -> Lake:
    """A lake without cells, whose model `tiny` lies in the folder `model`."""
    root.mkdir(parents=True, exist_ok=True)
    made = planted.lake(root, methods=METHODS)
    path = root / "experiments.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["models"]["tiny"] |= {"source": {"path": str(model)}, "lora_targets": TARGETS["llama"]}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return Lake(replace(made.project, experiments=experiments.load(path)))


def with_adapter(attempt: Attempt, *, seed: int) -> Attempt:
    """The attempt, with an adapter of random weights as its result."""
    import torch

    from pipelines.train.trainer import loading

    adapted = loading.add_adapter(tiny_model("llama"), {**attempt.spec.recipe, "dropout": 0})
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    adapted.save_pretrained(str(attempt.model_folder))
    return attempt


def with_model(attempt: Attempt, *, seed: int) -> Attempt:
    """The attempt, with a whole model of other random weights as its result."""
    import torch

    save_tiny(attempt.model_folder)
    model = tiny_model("llama")
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(attempt.model_folder)
    return attempt
