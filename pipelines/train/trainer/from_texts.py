"""EVA (Paischer et al. 2024): LoRA's A starts from the directions in which a layer's inputs vary
most.

The inputs are those of the first training examples. Layers whose inputs vary in more directions get
more of the ranks. PEFT computes this (`initialize_lora_eva_weights`) by an incremental
decomposition, which repeats the same batches until it converges.
"""
# ruff: noqa: TID253

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipelines.errors import UnavailableError
from pipelines.train.trainer import batches
from pipelines.train.trainer.checkpoint import Random
from pipelines.train.trainer.examples import IGNORE, Tokenized
from pipelines.train.trainer.losses import head_on_positions

# PEFT gets this many batches of the plan's first examples, over and over.
BATCHES = 8
# Passes over these batches after which the decomposition counts as not converging.
PASSES = 25


def begin(model: Any, train: Sequence[Tokenized], recipe: Mapping[str, Any], *, seed: int) -> None:
    """Give the fresh LoRA of `model` its first weights; ranks may then differ by layer.

    The random states end as they were.

    Raises:
        UnavailableError: the examples have too few tokens for the number of directions, or the
            decomposition does not converge.
    """
    from peft import initialize_lora_eva_weights

    config, before = model.active_peft_config, Random.now()
    directions = round(config.r * config.eva_config.rho)
    shown_batches = _batches(
        _in_order(train, recipe, seed), directions, learned_only=config.eva_config.use_label_mask, recipe=recipe
    )
    device = next(model.parameters()).device
    calls = 0

    with head_on_positions(model) as positions:
        # Nobody reads the logits, so the head computes one position.
        positions[:] = [torch.zeros(1, dtype=torch.long, device=device)]

        def forward(adapted: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
            nonlocal calls
            calls += 1
            if calls > PASSES * len(shown_batches):
                raise UnavailableError(
                    f"EVA has not settled after {PASSES} passes over {len(shown_batches)} batches: "
                    "take a smaller r or rho, a smaller tau, or more examples"
                )
            return adapted(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)

        initialize_lora_eva_weights(
            model,
            shown_batches,
            forward_fn=forward,
            prepare_model_inputs_fn=_places,
            prepare_layer_inputs_fn=_at_places,
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
    before.set()


def _places(inputs: Mapping[str, torch.Tensor], config: Any) -> torch.Tensor:
    """The positions, counted through the batch's rows, whose hidden states count."""
    counts = inputs["attention_mask"].bool()
    if config.eva_config.use_label_mask:
        counts &= inputs["labels"] != IGNORE
    return counts.flatten().nonzero().squeeze(1)


def _at_places(inputs: Any, places: torch.Tensor, _name: str) -> torch.Tensor:
    """A layer's inputs at `places`. PEFT's own function needs rows × length × width, but OPT merges
    the first two."""
    hidden = inputs if isinstance(inputs, torch.Tensor) else inputs[0]
    return hidden.reshape(-1, hidden.shape[-1])[places]


def _in_order(train: Sequence[Tokenized], recipe: Mapping[str, Any], seed: int) -> list[Tokenized]:
    """Each example once, in the order of the first epoch."""
    plan = batches.steps(train, epochs=min(1.0, recipe["epochs"]), per_step=recipe["examples_per_step"], seed=seed)
    return [example for step in plan for example in step]


def _batches(
    examples: Sequence[Tokenized], directions: int, *, learned_only: bool, recipe: Mapping[str, Any]
) -> list[dict[str, torch.Tensor]]:
    """At most BATCHES batches, each with at least `directions` tokens and the examples of an
    optimizer step.

    PEFT skips a batch with fewer tokens without a word, and would repeat that forever.

    Raises:
        UnavailableError: all examples together have fewer tokens.
    """
    full_batches: list[dict[str, torch.Tensor]] = []
    rows: list[Tokenized] = []
    for example in examples:
        rows.append(example)
        tokens = sum(row.learned if learned_only else len(row) for row in rows)
        if len(rows) >= recipe["examples_per_step"] and tokens >= directions:
            full_batches.append(_batch(rows))
            rows = []
        if len(full_batches) == BATCHES:
            break
    if rows and not full_batches and sum(row.learned if learned_only else len(row) for row in rows) >= directions:
        full_batches.append(_batch(rows))
    if not full_batches:
        raise UnavailableError(
            f"EVA looks for {directions} directions (r × rho) in the training examples, which learn fewer tokens: "
            "take a smaller r or rho, or more examples"
        )
    return full_batches


def _batch(rows: Sequence[Tokenized]) -> dict[str, torch.Tensor]:
    """Ids, mask and labels (IGNORE for tokens that are not learned), padded on the right."""
    longest = max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row.input_ids)
        labels[place, : len(row)] = torch.tensor(row.labels)
        mask[place, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
