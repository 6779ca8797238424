"""An adapter by PEFT's own configuration class, and whether what was saved of one is what was trained."""
# ruff: noqa: TID253

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import UnavailableError, WorkError
from pipelines.files import read_json, write_json
from pipelines.methods import traits_of

Recipe = dict[str, Any]
CHECK = "reload_check.json"  # beside the saved adapter
CHECK_TOKENS = 128
TOLERANCE = (
    0.01  # of the loss (nats per token), or so many nats: half precision and another order of sums stay far below
)
LORAS_DEFAULT = {"q_proj", "v_proj"}  # where PEFT puts LoRA on a Llama, unless told otherwise


def config_of(model: Any, recipe: Recipe, linear: Sequence[str]) -> Any:
    """PEFT's configuration for the recipe. Where it names no modules: those of the recipe's `targets` (`auto`: `linear`), for an
    adapter that PEFT, too, puts on the projections that LoRA goes to; of others PEFT knows better where they belong.

    Raises:
        UnavailableError: PEFT has no such method, or refuses its settings.
    """
    import peft

    traits = traits_of(recipe)
    given = dict(traits.peft)
    kind = given.pop("peft_type")
    with in_pefts_words(recipe):
        known = {getattr(name, "value", name): made for name, made in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        if kind not in known:
            raise UnavailableError(f"PEFT {peft.__version__} has no {kind}; it has {', '.join(sorted(known))}")
        _can_be_trained_here(kind)
        fields = {field.name for field in dataclasses.fields(known[kind])}
        _modules_exist(model, given.get("target_modules"))
        if "target_modules" in fields and recipe["targets"] is not None and _goes_where_lora_goes(kind):
            given["target_modules"] = list(linear) if recipe["targets"] == "auto" else recipe["targets"]
        if "fan_in_fan_out" in fields:
            given.setdefault("fan_in_fan_out", model.config.model_type == "gpt2")  # its Conv1D keeps weights transposed
        return known[kind](task_type="CAUSAL_LM", **given)


def _modules_exist(model: Any, named: Any) -> None:
    """PEFT itself complains only where none of the names is found."""
    if not isinstance(named, list):
        return  # a pattern, or PEFT's own choice
    there = [f".{name}" for name, _ in model.named_modules()]
    if missing := [name for name in named if not any(path.endswith(f".{name}") for path in there)]:
        raise UnavailableError(f"peft.target_modules: this model has no module {', '.join(map(str, missing))}")


def _tuner(kind: str) -> Any:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    return next(
        (made for name, made in PEFT_TYPE_TO_TUNER_MAPPING.items() if getattr(name, "value", name) == kind), None
    )


def _goes_where_lora_goes(kind: str) -> bool:
    defaults = getattr(_tuner(kind), "target_module_mapping", None) or {}
    return set(defaults.get("llama") or ()) == LORAS_DEFAULT


def _can_be_trained_here(kind: str) -> None:
    if hasattr(_tuner(kind), "update_and_allocate"):
        raise UnavailableError(
            f"{kind} moves its ranks about after every step (PEFT's update_and_allocate), which is not done here: without it, it "
            "would be another method"
        )


@contextmanager
def in_pefts_words(recipe: Recipe) -> Iterator[None]:
    """Raises UnavailableError for what PEFT raises about settings that are PEFT's own; of the short form's, we made them."""
    try:
        yield
    except (UnavailableError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        traits = traits_of(recipe)
        if traits.is_short:
            raise
        raise UnavailableError(
            f"PEFT's {traits.peft_type} with these settings on this model: {_said(error)}"
        ) from error


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text:.400}" if text else type(error).__name__


def require_trainable(model: Any, recipe: Recipe, vocabulary: int) -> None:
    """Try one step's forward and backward pass on a few tokens. Weights, gradients and random states are afterwards as before.

    Raises:
        UnavailableError: the adapter cannot compute them, trains nothing, or moves the tokens, so that losses would be of others.
    """
    if traits_of(recipe).is_short:
        return  # known to work, on every architecture of the grid
    from pipelines.train.checkpoint import Random

    before, device = Random.now(), next(model.parameters()).device
    ids = (torch.arange(8, device=device) % vocabulary).unsqueeze(0)
    model.train()
    with in_pefts_words(recipe):
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UnavailableError(f"{traits_of(recipe).peft_type} with these settings trains nothing of this model")
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        if logits.shape[:2] != ids.shape:
            raise UnavailableError(
                f"{traits_of(recipe).peft_type} puts {logits.shape[1] - ids.shape[1]} tokens of its own before a text, which moves "
                "all others: the losses here are not made for that"
            )
        logits.float().logsumexp(-1).sum().backward()
    model.zero_grad(set_to_none=True)
    before.set()


def loss_of(model: Any, ids: Sequence[int]) -> float:
    """Mean loss (nats per token) of the tokens after the first."""
    tokens = torch.tensor([list(ids)], device=next(model.parameters()).device)
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, tokens[0, 1:]).item()


def note_loss(model: Any, ids: Sequence[int], folder: Path) -> None:
    """Write down what the trained model says of a text, for `require_as_saved`."""
    training, checked = model.training, list(ids[:CHECK_TOKENS])
    loss = loss_of(model.eval(), checked)
    model.train(training)
    write_json(folder / CHECK, {"input_ids": checked, "loss": loss})


def require_as_saved(model: Any, folder: Path) -> None:
    """Raises WorkError where the adapter, loaded again, says something else of the noted text: a method may change the base when it
    begins, or draw what it does not save, and then its file alone does not bring it back."""
    noted = read_json(folder / CHECK)
    if noted is None:  # `kind: lora`, or saved by earlier code
        return
    found = loss_of(model.eval(), noted["input_ids"])
    if not math.isclose(found, noted["loss"], rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise WorkError(
            f"the saved adapter, loaded again, is not what was trained: {found:.4f} nats per token of a text that training left at "
            f"{noted['loss']:.4f}. Its file alone does not hold the method's result (an initialization that changes the base, or "
            "random parts that are not saved): choose another one in peft"
        )
