"""The estimating process: `python -m pipelines.estimate.child` reads questions (a JSON list) and
answers each in a line of JSON.

It imports the same libraries as a training process, so its memory before the first question is that
of such a process.
"""

import json
import logging
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from pipelines.estimate.cards import CARDS
from pipelines.runs.process import die_with_parent
from pipelines.settings.methods import traits_of
from pipelines.weights.shipped import width_of

Json = dict[str, Any]
# Fields of the recipe that a reader needs to interpret an answer.
RECIPE_FIELDS = ("precision", "fp16", "gradient_checkpointing", "fit_micro_batch")
# Bytes of a tokenizer with about 50,000 words, if none is loaded and measured (SmolLM2's takes 47
# MB).
TOKENIZER = 50_000_000
# Bytes of the matrix products that `pipelines.train.trainer.cpu.products` keeps ready, measured on
# SmolLM2.
PRODUCTS = 40_000_000


def framework() -> dict[bool, int]:
    """Resident bytes of a process that has loaded the libraries but no model. The key says
    whether the method has an adapter."""
    import torch
    from tensorboardX import SummaryWriter  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    from pipelines.clean.select import select  # noqa: F401
    from pipelines.train.trainer import loop  # noqa: F401
    from pipelines.train.trainer.cpu.products import onednn_is_faster

    def occupied() -> int:
        return psutil.Process().memory_info().rss + (PRODUCTS if onednn_is_faster() else 0)

    _first_step(torch)
    bare = occupied()
    from peft import LoraConfig  # noqa: F401

    return {False: bare, True: occupied()}


def _first_step(torch: Any) -> None:
    """Run a first product and a first optimizer step, since they allocate threads and buffers
    that stay."""
    layer = torch.nn.Linear(256, 256)
    layer(torch.ones(64, 256)).sum().backward()
    torch.optim.AdamW(layer.parameters()).step()


def answer(request: Json, occupied: dict[bool, int]) -> Json:
    """The predictions for this machine's processor and for the card formats in `cards` of the
    request.

    `because` replaces them if there are none. `halved_gb`: training here with micro-batches of half
    as many tokens. `otherwise`: training on such cards with the other choice of gradient
    checkpointing, if that may change which cards fit.
    """
    from transformers import AutoConfig

    from pipelines.estimate import memory
    from pipelines.estimate.cards import ASSUMED_MEMORY
    from pipelines.estimate.rehearsal import groups_queries, rehearse
    from pipelines.train.trainer.chunked import rows_on_card
    from pipelines.train.trainer.examples import longest

    fields, recipe = dict(request["config"]), complete(request["recipe"])
    width = width_of(fields)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    recipe |= {"max_length": longest(recipe["max_length"], config, traits_of(recipe).virtual_tokens)}
    batches, source = batches_of(request, recipe, config)
    if not batches:
        return {"because": "no example fits max_length"}
    process = occupied[traits_of(recipe).has_adapter] + (read(request).size if request.get("examples") else TOKENIZER)

    def predict(recipe: Json, batches: list[Any], device: Any) -> memory.Prediction:
        counted = rehearse(config, recipe, batches, device)
        result.update(parameters=round(counted.parameters), trainable=round(counted.trainable))
        if device == "cpu":
            return memory.on_cpu(counted, recipe, framework=process, file_width=width)
        return memory.on_card(counted, recipe)

    # float16 is as wide as bfloat16. Their cards differ in the attention kernel and the pieces of
    # the output head.
    pieces = {rows_on_card(config.vocab_size, ASSUMED_MEMORY[one]) for one in ("bf16", "fp16")}
    same_cards = not groups_queries(config) and len(pieces) == 1

    def on_cards(recipe: Json) -> Json:
        by_format: Json = {}
        for device in request.get("cards", ()):
            if device == "fp16" and "bf16" in by_format and same_cards:
                by_format[device] = by_format["bf16"]
            else:
                by_format[device] = as_numbers(predict(recipe, batches, device))
        return by_format

    heaviest = max(batches, key=lambda batch: batch.tokens)
    result: Json = {"batch": str(heaviest), "batch_from": source, "epoch_tokens": epoch_tokens(request, recipe)}
    result["recipe"] = {name: recipe[name] for name in RECIPE_FIELDS if name in recipe}
    result["cpu"] = as_numbers(predict(recipe, batches, "cpu"))
    result |= on_cards(recipe)
    trains = traits_of(recipe).trains
    if request.get("halved") and trains:
        halved_recipe = {**recipe, "micro_batch_tokens": max(1, recipe["micro_batch_tokens"] // 2)}
        result["halved_gb"] = (
            predict(halved_recipe, batches_of(request, halved_recipe, config)[0], request["device"]).train / 1e9
        )
    if request.get("otherwise"):
        other_recipe = {**recipe, "gradient_checkpointing": not recipe["gradient_checkpointing"]}
        result["otherwise"] = on_cards(other_recipe) if trains and may_decide(result, recipe) else {}
    return result


def may_decide(result: Json, recipe: Json) -> bool:
    """Whether the other choice of gradient checkpointing may change which cards fit;
    checkpointing saves memory."""
    fits = [result[one]["peak"] <= card.usable for card in CARDS if (one := card.format(recipe)) in result]
    return any(fits) if recipe["gradient_checkpointing"] else not all(fits)


def as_numbers(prediction: Any) -> Json:
    return {**vars(prediction), "peak": prediction.peak}


def complete(recipe: Json) -> Json:
    """The recipe with defaults for training settings, which a recipe of kind none lacks; it
    trains nothing with them."""
    defaults = {"micro_batch_tokens": recipe["max_length"], "examples_per_step": 1, "optimizer": "adamw", "epochs": 1}
    return {**defaults, **recipe}


def batches_of(request: Json, recipe: Json, config: Any) -> tuple[list[Any], str]:
    """The micro-batches to rehearse, and their source: the request itself, the examples, or the
    settings."""
    from pipelines.estimate.batch import Batch, allowed, heaviest

    if request.get("batches"):
        return [Batch(**one) for one in request["batches"]], "the question"
    if not traits_of(recipe).trains:
        return allowed(recipe), "nothing is trained"
    if request["examples"] is None:
        return allowed(recipe), "the most that the settings allow (no examples or no tokenizer here)"
    model = request["tokenizer"]["of"]
    source = "the examples" if model == recipe["model"] else f"the examples, counted with {model}'s tokenizer"
    return heaviest(read(request).examples, recipe, [request["seed"]], config), source


def epoch_tokens(request: Json, recipe: Json) -> int | None:
    """The number of tokens of one epoch: those of the examples that fit max_length. None without
    examples."""
    if not request.get("examples"):
        return None
    return sum(len(example) for example in read(request).examples if len(example) <= recipe["max_length"])


@dataclass(frozen=True)
class Tokens:
    """The tokenized training examples, and the bytes that the tokenizer and the examples occupy
    in the process."""

    examples: list[Any]
    size: int


def read(request: Json) -> Tokens:
    tokenizer = request["tokenizer"]
    return _read(
        request["examples"], json.dumps(request["selection"]), tokenizer["folder"], json.dumps(tokenizer["recipe"])
    )


@cache
def _read(examples: str, selection: str, folder: str, recipe: str) -> Tokens:
    from pipelines.clean.select import Selection, select
    from pipelines.train.trainer import tokenizing
    from pipelines.train.trainer.prompts import PromptFormat

    before = psutil.Process().memory_info().rss
    settings = json.loads(recipe)
    form = PromptFormat.of(Path(folder), settings)
    records = select(Path(examples), Selection(**json.loads(selection))).train
    tokenized = tokenizing.tokenize(form, records, sys.maxsize, turns=settings.get("turns", "all"))
    return Tokens(tokenized.examples, max(TOKENIZER, psutil.Process().memory_info().rss - before))


def main() -> None:
    die_with_parent()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    occupied = framework()
    for request in json.load(sys.stdin):
        try:
            result = answer(request, occupied)
        # A model that cannot be built must not cost the others their answers.
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            result = {"because": f"it cannot be rehearsed: {lines[0]}"[:300]}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
