"""Write a model without some of its layers. Run as a child: `python -m pipelines.train.shorten
JSON`.

If only the number of layers is given, the choice follows Gromov et al. 2024, "The Unreasonable
Ineffectiveness of the Deeper Layers" (arXiv 2403.17887, section 3). It drops the run of that many
consecutive layers whose input and output are closest to each other.
"""
# ruff: noqa: TID253

import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.clean.select import Selected
from pipelines.errors import UnavailableError, UsageError, WorkError
from pipelines.lake.files import read_json, write_json
from pipelines.lake.paths import DataRoot
from pipelines.runs.process import die_with_parent
from pipelines.train.chosen_layers import sample
from pipelines.train.trainer.examples import longest
from pipelines.train.trainer.loading import quiet
from pipelines.train.trainer.prompts import PromptFormat
from pipelines.train.trainer.templates import Unshown
from pipelines.weights import shortened
from pipelines.weights.shortened import Drop, Json

# Tokens read of each record.
MAX_TOKENS = 1024
# Digits of a distance. Rounding makes processors that sum in another order choose the same layers.
DIGITS = 6
# Tolerated differences of the checked logits, as shares of the largest: in float32 and in half
# precision.
TOLERANCE, HALF_TOLERANCE = 1e-5, 1e-2
PROBE_TOKENS = 24
# Subfolder for the complete model's weights, if they had to be converted to safetensors.
WHOLE = ".whole"
INDEX = "model.safetensors.index.json"
SOURCE = "angular distance (arXiv 2403.17887)"


@dataclass(frozen=True)
class ShortenRequest:
    """`parent` is the model to shorten, `folder` the new one, both absolute paths; `drop` names the
    layers to remove.

    `root` is the data root. `recipe` holds the model's prompt format (`prompt`, `template`).
    """

    parent: Path
    folder: Path
    drop: Drop
    root: Path
    recipe: Json


@dataclass(frozen=True)
class Stack:
    """A model's blocks, one per layer, and the name of their list in the model."""

    name: str
    blocks: nn.ModuleList


def shorten(request: ShortenRequest) -> None:
    """Fill `folder` with the model of `parent` without those layers, and with the record of them.

    Raises:
        UsageError: the model has too few layers, or there is no train record to choose them by.
        UnavailableError: the model has no single stack of blocks, or the shortened one computes
            something else.
    """
    config = read_json(request.parent / "config.json") or {}
    layers = shortened.layers_of(config)
    shortened.dropped_from(layers, request.drop)
    # The complete model is out of memory again when this returns.
    choice = _choose_layers(request)
    weights = request.folder / WHOLE if (request.folder / WHOLE).exists() else request.parent
    remaining = [layer for layer in range(layers) if layer not in choice.dropped]
    _copy_small_files(request.parent, request.folder)
    write_json(
        request.folder / "config.json", shortened.without(_with_layer_lists(request.parent, config), choice.dropped)
    )
    write_weights(weights, request.folder, choice.stack, remaining)
    shutil.rmtree(request.folder / WHOLE, ignore_errors=True)
    _require_same(request.folder, choice.probe, choice.logits)
    write_json(request.folder / shortened.RECORD, _record(request.parent, layers, remaining) | choice.why)


@dataclass(frozen=True)
class LayerChoice:
    """The layers to drop and `why`, the name of the model's `stack`, and its logits for `probe`
    without those layers."""

    dropped: list[int]
    why: Json
    stack: str
    probe: torch.Tensor
    logits: torch.Tensor


def _choose_layers(request: ShortenRequest) -> LayerChoice:
    """Run the complete model. Weights in PyTorch's own format are converted into the folder
    WHOLE."""
    model = _loaded(request.parent)
    stack = stack_of(model)
    if isinstance(request.drop, int):
        why = _nearest(model, stack, request)
        dropped = list(range(why["first"], why["first"] + request.drop))
    else:
        why, dropped = {"by": "named in drop_layers"}, list(request.drop)
    probe = _probe(model)
    logits = logits_without(model, stack, dropped, probe)
    if not list(request.parent.glob("*.safetensors")):
        model.save_pretrained(request.folder / WHOLE)
    return LayerChoice(dropped, why, stack.name, probe, logits)


def _record(parent: Path, layers: int, remaining: Sequence[int]) -> Json:
    """The record of layers, by their numbers in the original model, even if `parent` is already a
    shortened one."""
    parent_record = shortened.record_of_layers(parent) or {"of": layers, "left": list(range(layers))}
    numbers = [parent_record["left"][layer] for layer in remaining]
    return {
        "of": parent_record["of"],
        "left": numbers,
        "dropped": [layer for layer in range(parent_record["of"]) if layer not in numbers],
    }


def _loaded(folder: Path) -> Any:
    """The model on this machine's device, for inference; on a CPU in float32, which holds every
    other format exactly.

    Raises:
        WorkError: the files lack weights of the model, and transformers would fill them with random
            values.
    """
    options: Json = {"dtype": "auto" if torch.cuda.is_available() else torch.float32, "trust_remote_code": False}
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise WorkError(f"the weights lack {len(missing)} tensors of the model, the first is {missing[0]}")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def stack_of(model: Any) -> Stack:
    """The list of blocks that a text goes through, one after the other.

    Raises:
        UnavailableError: there is no such list of modules, or more than one.
    """
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == layers}
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1 or len({id(block) for block in lists[outer[0]]}) != layers:
        raise UnavailableError(
            f"drop_layers: {type(model).__name__} has {len(outer)} stacks of {layers} blocks "
            f"({', '.join(outer) or 'none'}); expected one. Only a model with a single stack of blocks can be shortened."
        )
    return Stack(outer[0], lists[outer[0]])


def _nearest(model: Any, stack: Stack, request: ShortenRequest) -> Json:
    """The first layer of the run whose input and output are closest, with the distances and the
    data behind them."""
    assert isinstance(request.drop, int)
    selected = sample(DataRoot(request.root))
    form = PromptFormat.of(request.parent, request.recipe)
    texts = list(_texts(selected, form, longest(MAX_TOKENS, model.config.get_text_config(decoder=True))))
    if not texts:
        raise UsageError(
            "drop_layers: the model's chat template shows none of the train records: name the layers instead."
        )
    distances = run_distances(torch.stack([_states(model, stack, text) for text in texts]), request.drop)
    return {
        "first": min(range(len(distances)), key=distances.__getitem__),
        "by": SOURCE,
        "distances": distances,
        "records": len(texts),
        "data_fingerprint": selected.data_fingerprint,
    }


def _texts(selected: Selected, form: PromptFormat, limit: int) -> Iterator[list[int]]:
    """Each record's tokens as training shows them, up to the one that predicts the end; at most
    `limit` of them."""
    for record in selected.train:
        try:
            examples = form.tokenize(record)
        except Unshown:
            continue
        if not examples:
            continue
        learned = [place for place, label in enumerate(examples[-1].labels) if label >= 0]
        yield examples[-1].input_ids[: learned[-1] if learned else None][:limit]


@torch.no_grad()
def _states(model: Any, stack: Stack, ids: Sequence[int]) -> torch.Tensor:
    """The input of every block at the last token, and the output of the last block: (layers + 1,
    width), in float64."""
    states: list[torch.Tensor] = []

    def capture_input(_block: nn.Module, args: tuple[Any, ...], kwargs: Json) -> None:
        states.append(_hidden(args, kwargs)[0, -1].double().cpu())

    def capture_output(_block: nn.Module, _args: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[0, -1].double().cpu())

    with ExitStack() as hooks:
        for block in stack.blocks:
            hooks.callback(block.register_forward_pre_hook(capture_input, with_kwargs=True).remove)
        hooks.callback(stack.blocks[-1].register_forward_hook(capture_output).remove)
        model.base_model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    if len(states) != len(stack.blocks) + 1:
        raise UnavailableError(
            f"drop_layers: {type(model).__name__} runs {len(states) - 1} of its {len(stack.blocks)} blocks: "
            "it cannot be shortened."
        )
    return torch.stack(states)


def _hidden(args: tuple[Any, ...], kwargs: Json) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


def run_distances(states: torch.Tensor, count: int) -> list[float]:
    """The mean of arccos(cos(input, output)) / π over the samples, for each run of `count` layers,
    by its first layer.

    This is equation 7 of arXiv 2403.17887. `states`: (samples, layers + 1, width).
    """
    cosine = nn.functional.cosine_similarity(states[:, :-count], states[:, count:], dim=-1)
    distances = torch.arccos(cosine.clamp(-1, 1)) / math.pi
    return [round(distance, DIGITS) for distance in distances.mean(dim=0).tolist()]


@contextmanager
def passed_by(stack: Stack, dropped: Sequence[int]) -> Iterator[None]:
    """Inside the context these blocks return their input unchanged."""

    def pass_on(_block: nn.Module, args: tuple[Any, ...], kwargs: Json, output: Any) -> Any:
        hidden = _hidden(args, kwargs)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with ExitStack() as hooks:
        for layer in dropped:
            hooks.callback(stack.blocks[layer].register_forward_hook(pass_on, with_kwargs=True).remove)
        yield


def _probe(model: Any) -> torch.Tensor:
    """Tokens spread over the vocabulary: (1, PROBE_TOKENS)."""
    words = model.get_input_embeddings().num_embeddings
    return (torch.arange(PROBE_TOKENS) * 7919 % words)[None]


@torch.no_grad()
def logits_without(model: Any, stack: Stack, dropped: Sequence[int], ids: torch.Tensor) -> torch.Tensor:
    """The logits of the complete model with its blocks `dropped` passing their input through."""
    with passed_by(stack, dropped):
        return model(input_ids=ids.to(model.device), use_cache=False).logits.float().cpu()


def _require_same(folder: Path, probe: torch.Tensor, expected: torch.Tensor) -> None:
    """Raises UnavailableError if the model in `folder` does not give the `expected` logits.

    Those are the complete model's with its dropped blocks passed by. They differ if a block depends
    on its number or on other blocks.
    """
    try:
        model = _loaded(folder)
        logits = logits_without(model, stack_of(model), [], probe)
        error_share = (logits - expected).abs().max() / expected.abs().max()
        limit = TOLERANCE if model.dtype is torch.float32 else HALF_TOLERANCE
        fault = (
            _other_kinds(folder) if error_share <= limit else f"its logits are off by {error_share:.1e} of the largest"
        )
    except (ValueError, RuntimeError, KeyError, IndexError, WorkError) as error:
        fault = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    if fault:
        raise UnavailableError(
            f"drop_layers: a model of this architecture cannot be written without these layers, since its blocks depend "
            f"on their place or on one another ({fault})"
        )


def _other_kinds(folder: Path) -> str | None:
    """The per-layer fields that transformers reads differently from the configuration; None if it
    reads them all alike.

    Some kinds of layers differ only on long texts, so the logits alone do not show the fault.
    """
    fields = shortened.per_layer(read_json(folder / "config.json") or {})
    loaded_fields = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config(decoder=True).to_dict()
    differing = [name for name, kinds in fields.items() if loaded_fields.get(name) != kinds]
    return f"transformers reads other values of {', '.join(differing)} than were written" if differing else None


def _with_layer_lists(parent: Path, config: Json) -> Json:
    """The configuration with every per-layer field spelled out as a list.

    A rule such as "every sixth layer is of another kind" would mean something else for fewer
    layers.
    """
    loaded_fields = AutoConfig.from_pretrained(parent, trust_remote_code=False).get_text_config(decoder=True).to_dict()
    fields = shortened.per_layer(loaded_fields)
    if shortened.described(config) is config:
        return {**config, **fields}
    return {**config, "text_config": {**config["text_config"], **fields}}


def _copy_small_files(parent: Path, folder: Path) -> None:
    """Copy tokenizer, templates and generation settings: everything except weights and their
    index."""
    for path in parent.iterdir():
        holds_weights = path.suffix in (".safetensors", ".bin", ".gguf") or path.name.endswith(".index.json")
        if path.is_file() and not path.name.startswith(".") and not holds_weights:
            shutil.copyfile(path, folder / path.name)
    for path in parent.glob("additional_chat_templates"):
        shutil.copytree(path, folder / path.name, dirs_exist_ok=True)


def write_weights(parent: Path, folder: Path, stack: str, remaining: Sequence[int]) -> None:
    """Copy the weights of `parent` unchanged, one file at a time, without those of dropped layers.

    `remaining` are the other layers; in the names of their weights they count from 0.

    Raises:
        UnavailableError: the files name the blocks differently from the model.
    """
    files = _weight_files(parent)
    names = {name for file in files for name in _names(file)}
    rename = _renaming(names, stack, remaining)
    places, total = {}, 0
    for file in files:
        old_names = {new: name for name in _names(file) if (new := rename(name)) is not None}
        if not old_names:
            continue
        with safe_open(file, "pt") as shard:
            tensors = {new: shard.get_tensor(name) for new, name in old_names.items()}
            save_file(tensors, folder / file.name, metadata=shard.metadata() or {"format": "pt"})
        places |= dict.fromkeys(old_names, file.name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1 or files[0].name != "model.safetensors":
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _weight_files(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    index = read_json(folder / INDEX)
    if index is None:
        raise UnavailableError(f"no model.safetensors and no {INDEX} in {folder}: expected a transformers folder.")
    return sorted({folder / name for name in index["weight_map"].values()})


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as shard:
        return list(shard.keys())


def _renaming(names: set[str], stack: str, remaining: Sequence[int]) -> Callable[[str], str | None]:
    """A function from a weight's name to its new one, or to None if its layer is dropped.

    Files may omit the first parts of a module's name, as GPT-2's do (`h.0…` for
    `transformer.h.0…`).
    """
    parts, places = stack.split("."), {old: new for new, old in enumerate(remaining)}
    for start in range(len(parts)):
        pattern = re.compile(rf"({re.escape('.'.join(parts[start:]))}\.)(\d+)(\..+)")
        matches = {name: match for name in names if (match := pattern.fullmatch(name))}
        if not matches:
            continue

        def renamed(name: str, matches: dict[str, re.Match[str]] = matches) -> str | None:
            if name not in matches:
                return name
            before, layer, after = matches[name].groups()
            return f"{before}{places[int(layer)]}{after}" if int(layer) in places else None

        return renamed
    raise UnavailableError(f"drop_layers: no weight in the files belongs to {stack}, the model's list of blocks.")


def main() -> None:
    die_with_parent()
    quiet()
    request = json.loads(sys.argv[1])
    places = {name: Path(request[name]) for name in ("parent", "folder", "root")}
    try:
        shorten(ShortenRequest(**places, drop=request["drop"], recipe=request["recipe"]))
    except (UsageError, UnavailableError, WorkError) as error:
        print(error, file=sys.stderr)
        sys.exit(shortened.exit_code(error))


if __name__ == "__main__":
    main()
