"""Write a model without some of its layers. Run as a child: `python -m pipelines.train.shorten JSON`.

Which layers go, where only their number is given, follows Gromov et al. 2024, "The Unreasonable Ineffectiveness of the Deeper
Layers" (arXiv 2403.17887, section 3): the run of so many layers in a row whose input and output lie nearest to one another.
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

MAX_TOKENS = 1024  # read of each record
DIGITS = 6  # of a distance: other processors add in another order, and must choose the same layers
# Of the checked logits, in shares of the largest
TOLERANCE, HALF_TOLERANCE = 1e-5, 1e-2  # in float32, in a shorter format
PROBE_TOKENS = 24
WHOLE = ".whole"
INDEX = "model.safetensors.index.json"
SOURCE = "angular distance (arXiv 2403.17887)"


@dataclass(frozen=True)
class ShortenRequest:
    """The folder of the model to shorten and of the one to be made, both whole paths; which layers go; the data root, and how the
    model is asked (`prompt`, `template`)."""

    parent: Path
    folder: Path
    drop: Drop
    root: Path
    recipe: Json


@dataclass(frozen=True)
class Stack:
    """A model's blocks, one a layer, and the name that they have in it."""

    name: str
    blocks: nn.ModuleList


def shorten(request: ShortenRequest) -> None:
    """Fill `folder` with the model of `parent` without those layers, and the record of them.

    Raises:
        UsageError: there are not so many layers, or there is no train record to choose them by.
        UnavailableError: it is no model with one stack of blocks, or it computes something else without them.
    """
    config = read_json(request.parent / "config.json") or {}
    layers = shortened.layers_of(config)
    shortened.dropped_from(layers, request.drop)
    choice = _choose_layers(request)  # the whole model is gone by then
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
    """What the whole model says: which layers go and `why`, the name of its blocks, and its logits for `probe` without those."""

    dropped: list[int]
    why: Json
    stack: str
    probe: torch.Tensor
    logits: torch.Tensor


def _choose_layers(request: ShortenRequest) -> LayerChoice:
    """Ask the whole model; where its weights are in PyTorch's own format, they are in the folder WHOLE afterwards."""
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
    """Layers by their numbers in the first model, also where that in `parent` was shortened before."""
    parent_record = shortened.record_of_layers(parent) or {"of": layers, "left": list(range(layers))}
    numbers = [parent_record["left"][layer] for layer in remaining]
    return {
        "of": parent_record["of"],
        "left": numbers,
        "dropped": [layer for layer in range(parent_record["of"]) if layer not in numbers],
    }


def _loaded(folder: Path) -> Any:
    """The model on this machine's device, for one pass at a time; on a processor in float32, which holds every other format.

    Raises:
        WorkError: the files lack weights of the model: random ones would stand there.
    """
    options: Json = {"dtype": "auto" if torch.cuda.is_available() else torch.float32, "trust_remote_code": False}
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise WorkError(f"the weights lack {len(missing)} tensors of the model, the first is {missing[0]}")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def stack_of(model: Any) -> Stack:
    """The blocks that a text goes through one after the other.

    Raises:
        UnavailableError: there is no such list of modules, or more than one.
    """
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == layers}
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1 or len({id(block) for block in lists[outer[0]]}) != layers:
        raise UnavailableError(
            f"drop_layers: {type(model).__name__} has {len(outer)} stacks of {layers} blocks ({', '.join(outer) or 'none'}); "
            "expected one. Only a model whose text goes through one stack of blocks can be shortened."
        )
    return Stack(outer[0], lists[outer[0]])


def _nearest(model: Any, stack: Stack, request: ShortenRequest) -> Json:
    """The first layer of the run whose input and output are nearest, and what that was found by."""
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
    """Each record as it would be trained on, up to where its end is predicted; of a longer one the beginning."""
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
    """What goes into every block at the last token, and what comes out of the last one: (layers + 1, width), in float64."""
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
            f"drop_layers: {type(model).__name__} goes through {len(states) - 1} of its {len(stack.blocks)} blocks: it cannot be "
            "shortened."
        )
    return torch.stack(states)


def _hidden(args: tuple[Any, ...], kwargs: Json) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


def run_distances(states: torch.Tensor, count: int) -> list[float]:
    """For each run of `count` layers, by its first one, the mean of arccos(cos(input, output)) / π over the samples: equation 7 of
    arXiv 2403.17887. `states`: (samples, layers + 1, width)."""
    cosine = nn.functional.cosine_similarity(states[:, :-count], states[:, count:], dim=-1)
    distances = torch.arccos(cosine.clamp(-1, 1)) / math.pi
    return [round(distance, DIGITS) for distance in distances.mean(dim=0).tolist()]


@contextmanager
def passed_by(stack: Stack, dropped: Sequence[int]) -> Iterator[None]:
    """Within it these blocks hand on what they are given."""

    def pass_on(_block: nn.Module, args: tuple[Any, ...], kwargs: Json, output: Any) -> Any:
        hidden = _hidden(args, kwargs)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with ExitStack() as hooks:
        for layer in dropped:
            hooks.callback(stack.blocks[layer].register_forward_hook(pass_on, with_kwargs=True).remove)
        yield


def _probe(model: Any) -> torch.Tensor:
    """Tokens from all over the vocabulary: (1, PROBE_TOKENS)."""
    words = model.get_input_embeddings().num_embeddings
    return (torch.arange(PROBE_TOKENS) * 7919 % words)[None]


@torch.no_grad()
def logits_without(model: Any, stack: Stack, dropped: Sequence[int], ids: torch.Tensor) -> torch.Tensor:
    """What the whole model says where its blocks `dropped` do nothing."""
    with passed_by(stack, dropped):
        return model(input_ids=ids.to(model.device), use_cache=False).logits.float().cpu()


def _require_same(folder: Path, probe: torch.Tensor, expected: torch.Tensor) -> None:
    """Raises UnavailableError where the model in `folder` says something else than the whole one whose dropped blocks do nothing:
    a block may depend on its number, or on others."""
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
            f"drop_layers: a model of its architecture cannot be written without these layers, since its blocks depend on their "
            f"place or on one another ({fault})"
        )


def _other_kinds(folder: Path) -> str | None:
    """What is wrong where transformers takes layers for others than the configuration says: some differ on long texts alone."""
    fields = shortened.per_layer(read_json(folder / "config.json") or {})
    loaded_fields = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config(decoder=True).to_dict()
    differing = [name for name, kinds in fields.items() if loaded_fields.get(name) != kinds]
    return f"transformers reads other {', '.join(differing)} than were written" if differing else None


def _with_layer_lists(parent: Path, config: Json) -> Json:
    """The configuration with what each layer is like spelled out, where it says that by a rule (every sixth layer is another): of
    fewer layers the rule would say something else."""
    loaded_fields = AutoConfig.from_pretrained(parent, trust_remote_code=False).get_text_config(decoder=True).to_dict()
    fields = shortened.per_layer(loaded_fields)
    if shortened.described(config) is config:
        return {**config, **fields}
    return {**config, "text_config": {**config["text_config"], **fields}}


def _copy_small_files(parent: Path, folder: Path) -> None:
    """Tokenizer, templates and generation settings: all but what holds or describes weights."""
    for path in parent.iterdir():
        holds_weights = path.suffix in (".safetensors", ".bin", ".gguf") or path.name.endswith(".index.json")
        if path.is_file() and not path.name.startswith(".") and not holds_weights:
            shutil.copyfile(path, folder / path.name)
    for path in parent.glob("additional_chat_templates"):
        shutil.copytree(path, folder / path.name, dirs_exist_ok=True)


def write_weights(parent: Path, folder: Path, stack: str, remaining: Sequence[int]) -> None:
    """The weights of the folder `parent` as they are, a file at a time, without those of layers that are not `left`; those that are
    get names that count from 0.

    Raises:
        UnavailableError: the files name the blocks otherwise than the model does.
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
    """The new name of a weight; None where it belongs to a layer that goes. Files may leave out the first parts of a module's name,
    as GPT-2's do (`h.0…` of `transformer.h.0…`)."""
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
    raise UnavailableError(f"drop_layers: no weight in the files belongs to {stack}, where the model has its blocks.")


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
