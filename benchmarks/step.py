"""Forward and backward pass of one optimizer step on the packaged model, LoRA r8, eight examples.

Compares our batches and head with the usual padded batch and full logits. Both losses must agree.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from benchmarks.clock import best_seconds
from pipelines.lake.paths import PROJECT, data_root
from pipelines.project import Project
from pipelines.records.reading import read_corpus
from pipelines.settings import experiments as configuration
from pipelines.train.trainer import batches, loading
from pipelines.train.trainer.examples import IGNORE, Tokenized
from pipelines.train.trainer.losses import head_on_positions, token_losses
from pipelines.train.trainer.prompts import PromptFormat
from pipelines.weights import store

MODEL, EXAMPLES = "smollm2-135m", 8


def measure() -> Iterator[dict[str, Any]]:
    loading.quiet()
    experiments = configuration.load()
    recipe = {**Project(data_root(), experiments, "local").recipe_of(MODEL, "lora-r8"), "dropout": 0.0}
    folder = store.fetch(data_root(), experiments, MODEL)
    torch.manual_seed(1)
    model = loading.add_adapter(loading.load_model(folder, recipe), recipe)
    form = PromptFormat(loading.load_tokenizer(folder), "chat")
    records = [record for record in read_corpus(PROJECT / "data" / "corpus.json") if record["language"] == "en"][
        :EXAMPLES
    ]
    examples = [form.tokenize({**record, "example_id": str(i)})[0] for i, record in enumerate(records)]
    tokens = sum(len(example) for example in examples)
    losses = {"ours": _ours(model, examples), "usual": _usual(model, examples)}
    ours = best_seconds(lambda: _ours(model, examples), rounds=3)
    usual = best_seconds(lambda: _usual(model, examples), rounds=3)
    yield {
        "benchmark": "step",
        "model": MODEL,
        "tokens_per_second": tokens / ours,
        "usual_tokens_per_second": tokens / usual,
        "speedup": usual / ours,
        "loss": losses["ours"],
        "usual_loss": losses["usual"],
        "losses_agree": abs(losses["ours"] - losses["usual"]) < 1e-4,
    }


def _ours(model: Any, examples: list[Tokenized]) -> float:
    learned, total = sum(example.learned for example in examples), 0.0
    with head_on_positions(model) as positions:
        for batch in batches.micro_batches(examples, max_tokens=256):
            loss = token_losses(model, batch, positions, torch.device("cpu")).sum() / learned
            loss.backward()
            total += loss.item()
    model.zero_grad()
    return total


def _usual(model: Any, examples: list[Tokenized]) -> float:
    """Right-padded to the longest example, with an attention mask, logits at every position and the
    prompt masked in the labels."""
    longest = max(len(example) for example in examples)
    ids = torch.tensor([e.input_ids + [0] * (longest - len(e)) for e in examples])
    mask = torch.tensor([[1] * len(e) + [0] * (longest - len(e)) for e in examples])
    labels = torch.tensor([e.labels + [IGNORE] * (longest - len(e)) for e in examples])
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    loss = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=IGNORE
    )
    loss.backward()
    model.zero_grad()
    return loss.item()
