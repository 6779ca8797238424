"""Adapters by PEFT's own configuration classes, and the check that a saved adapter equals the
trained one."""
# ruff: noqa: TID253

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import UnavailableError, WorkError
from pipelines.lake.files import read_json, write_json
from pipelines.runs.worker import is_out_of_memory
from pipelines.settings.methods import AS_EMBEDDINGS, MOVES_RANKS, traits_of
from pipelines.train.trainer import moving_ranks, rounding, virtual_tokens

Recipe = dict[str, Any]
# A text's tokens, and the loss of each token after the first, before training.
Check = tuple[list[int], list[float]]
# The file beside the saved adapter.
CHECK = "reload_check.json"
CHECK_TOKENS = 128
# The tolerated deviation of a token's loss (nats): a share of the change by training, but at least
# the effect of rounding in float32 (False) or in half precision (True).
SHARE, FLOOR = 0.05, {False: 1e-3, True: 0.1}
# Values of init_lora_weights that have no effect unless PEFT first gets sample texts.
NEEDS_DATA = ("corda", "lora_ga")
# PEFT's default targets of LoRA on a Llama.
LORAS_DEFAULT = {"q_proj", "v_proj"}


def config_of(model: Any, recipe: Recipe, linear: Sequence[str]) -> Any:
    """PEFT's configuration for the recipe.

    Without `target_modules` an adapter goes to the recipe's `targets` (`auto`: `linear`), if PEFT's
    default for it are the projections of LoRA. For other adapters PEFT chooses the modules.

    Raises:
        UnavailableError: PEFT has no such method, or refuses its settings.
    """
    import peft

    traits = traits_of(recipe)
    settings = dict(traits.peft)
    kind = settings.pop("peft_type")
    with in_pefts_words(recipe):
        classes = {
            getattr(name, "value", name): config_class
            for name, config_class in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()
        }
        if kind not in classes:
            raise UnavailableError(f"PEFT {peft.__version__} has no {kind}; it has {', '.join(sorted(classes))}")
        fields = {field.name: field.type for field in dataclasses.fields(classes[kind])}

        # Refuse settings that PEFT would accept in silence.
        # GPT-2's Conv1D stores its weights transposed.
        transposed = model.config.model_type == "gpt2"
        _can_be_trained_here(kind, settings, transposed=transposed)
        _are_what_they_say(settings, fields)
        for name in ("target_modules", "modules_to_save"):
            _modules_exist(model, name, settings.get(name))

        # Fill in what follows from the recipe and the model.
        if "target_modules" in fields and recipe["targets"] is not None and _goes_where_lora_goes(kind):
            settings["target_modules"] = list(linear) if recipe["targets"] == "auto" else recipe["targets"]
        if "fan_in_fan_out" in fields:
            settings.setdefault("fan_in_fan_out", transposed)
        _set_by_us(model, recipe, settings)
        return classes[kind](task_type="CAUSAL_LM", **settings)


def _set_by_us(model: Any, recipe: Recipe, settings: dict[str, Any]) -> None:
    """Fill in the settings that follow from the model and the plan.

    Raises:
        UnavailableError: this trainer does not support LoftQ with these settings.
    """
    traits = traits_of(recipe)
    if traits.moves_ranks:
        settings["total_step"] = moving_ranks.UNPLANNED
    # OPT-350M's embeddings are narrower than its hidden states.
    if traits.peft_type in AS_EMBEDDINGS:
        settings.setdefault("token_dim", model.get_input_embeddings().embedding_dim)
    if settings.get("prompt_tuning_init") == "TEXT":
        settings.setdefault("tokenizer_name_or_path", model.name_or_path)
    # PEFT adds plain LoRA; `rounding` then sets its first weights.
    if traits.starts_from_rounding:
        rounding.require_known(settings, recipe)
        settings |= {"init_lora_weights": True}
        settings.pop("loftq_config", None)


def _are_what_they_say(settings: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Raises UnavailableError for settings that PEFT would read otherwise.

    PEFT takes any non-empty value for true. It also skips, without a word, initializations that
    need sample texts.
    """
    for name, value in settings.items():
        if fields.get(name) in (bool, "bool") and not isinstance(value, bool):
            raise UnavailableError(f"peft.{name}: got {value!r}; expected true or false")
    if (start := settings.get("init_lora_weights")) in NEEDS_DATA:
        raise UnavailableError(
            f"peft.init_lora_weights: {start} needs sample texts before it starts, which this trainer does not provide"
        )


def _modules_exist(model: Any, setting: str, names: Any) -> None:
    """Raises UnavailableError if a name matches no module. PEFT itself complains only if all of
    them are missing."""
    # Anything else is a pattern, or PEFT's own choice.
    if not isinstance(names, list):
        return
    paths = [f".{name}" for name, _ in model.named_modules()]
    if missing := [name for name in names if not any(path.endswith(f".{name}") for path in paths)]:
        raise UnavailableError(f"peft.{setting}: this model has no module {', '.join(map(str, missing))}")


def _tuner(kind: str) -> Any:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    return next(
        (tuner for name, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items() if getattr(name, "value", name) == kind), None
    )


def _goes_where_lora_goes(kind: str) -> bool:
    defaults = getattr(_tuner(kind), "target_module_mapping", None) or {}
    return set(defaults.get("llama") or ()) == LORAS_DEFAULT


def _can_be_trained_here(kind: str, settings: Mapping[str, Any], *, transposed: bool) -> None:
    keeps_ranks = kind == "ADAMSS" and not settings.get("use_asa")
    if hasattr(_tuner(kind), "update_and_allocate") and kind != MOVES_RANKS and not keeps_ranks:
        raise UnavailableError(
            f"{kind} moves its ranks after every step (PEFT's update_and_allocate); this trainer supports that for "
            f"{MOVES_RANKS} alone, and without it {kind} would be another method"
        )
    if settings.get("init_lora_weights") == "olora" and transposed:
        raise UnavailableError(
            "peft.init_lora_weights: PEFT's olora misreads this model's weights, which are stored transposed (Conv1D), and "
            "the model would start as another one: use pissa"
        )
    if kind == "CPT":
        raise UnavailableError(
            "CPT weighs the losses of its own tokens with those of a text, which this trainer does not support"
        )
    if kind == MOVES_RANKS and (end := settings.get("target_r", 8)) >= (start := settings.get("init_r", 12)):
        raise UnavailableError(
            f"peft.target_r: got {end}; expected less than init_r, {start}, the number of ranks at the start"
        )


@contextmanager
def in_pefts_words(recipe: Recipe) -> Iterator[None]:
    """Turn PEFT's errors about a user's own PEFT settings into UnavailableError.

    Errors of the short form pass through, since its settings are ours. So do out-of-memory errors
    of any library, which say nothing about settings.
    """
    try:
        yield
    except UnavailableError:
        raise
    except Exception as error:
        traits = traits_of(recipe)
        if traits.is_short or is_out_of_memory(error):
            raise
        raise UnavailableError(
            f"PEFT's {traits.peft_type} with these settings on this model: {_message_of(error)}"
        ) from error


def _message_of(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text:.400}" if text else type(error).__name__


def require_trainable(model: Any, recipe: Recipe, vocabulary: int) -> None:
    """Try a forward and a backward pass on a few tokens. Weights, gradients and random states end
    as they were.

    Raises:
        UnavailableError: the adapter fails, trains nothing, or shifts the tokens, so that losses
            would belong to others.
    """
    # The short form is known to work on every architecture of the grid.
    if traits_of(recipe).is_short:
        return
    from pipelines.train.trainer.checkpoint import Random

    before, device = Random.now(), next(model.parameters()).device
    ids = (torch.arange(8, device=device) % vocabulary).unsqueeze(0)
    model.train()
    with in_pefts_words(recipe):
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UnavailableError(f"{traits_of(recipe).peft_type} with these settings trains nothing of this model")
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        if (shift := logits.shape[1] - ids.shape[1]) != virtual_tokens.embedded(model):
            raise UnavailableError(
                f"{traits_of(recipe).peft_type} shifts a text's tokens by {shift} places, and its settings do not say so: "
                "the losses would belong to other tokens"
            )
        logits.float().logsumexp(-1).sum().backward()
    model.zero_grad(set_to_none=True)
    before.set()


def losses_of(model: Any, ids: Sequence[int]) -> list[float]:
    """The losses (nats) of a text's first CHECK_TOKENS tokens, without the very first, in eval
    mode."""
    training, checked_ids = model.training, list(ids[:CHECK_TOKENS])
    device = next(model.parameters()).device
    tokens = torch.tensor([checked_ids], device=device)
    model.eval()
    with torch.no_grad():
        all_logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0]
    logits = all_logits[virtual_tokens.embedded(model) : -1].float()
    model.train(training)
    return torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none").tolist()


@dataclass(frozen=True)
class ReloadCheck:
    """A text's tokens, and the losses of all but the first token before and after training."""

    input_ids: list[int]
    before: list[float]
    after: list[float]


def write_check(model: Any, check: Check, folder: Path) -> None:
    """Write the trained model's losses on a text, for `require_as_saved`."""
    ids, before = check
    write_json(folder / CHECK, asdict(ReloadCheck(list(ids[:CHECK_TOKENS]), before, losses_of(model, ids))))


def require_as_saved(model: Any, folder: Path) -> None:
    """Raises WorkError if the reloaded adapter gives other losses on the text of the check.

    A method may change the base when it starts, or draw random values that it does not save. Then
    its file alone does not restore it. The tolerance is relative to the change by training, since
    an adapter may be small.
    """
    record = read_json(folder / CHECK)
    # `kind: lora`, sharded training and earlier versions write no check.
    if record is None:
        return
    check = ReloadCheck(**record)
    half = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters())
    change = _furthest(check.before, check.after)
    deviation, limit = _furthest(losses_of(model, check.input_ids), check.after), max(FLOOR[half], SHARE * change)
    # Written so that NaN fails, too.
    if not deviation <= limit:
        raise WorkError(
            f"the saved adapter, loaded again, is not what was trained: a token's loss is off by {deviation:.2g} nats, "
            f"while training changed it by {change:.2g} at most. Its file alone does not hold the method's result (an "
            "initialization that changes the base or draws random values, or random parts that are not saved): choose "
            "another one in peft"
        )


def _furthest(one: Sequence[float], other: Sequence[float]) -> float:
    return max((abs(a - b) for a, b in zip(one, other, strict=True)), default=0.0)
