"""A run's complete state between two optimizer steps, on disk: complete or absent, and without
pickle.

Tensors (trainable weights, optimizer states, random states) are stored as safetensors; numbers,
batch order and measured sums as JSON. A run that resumes gives the same bits as one that never
stopped, on the same machine with the same number of threads and ranks. The first rank writes the
state that all ranks share. Every other rank writes its own random states beside it and, if weights
are sharded, its shards of weights and optimizer states.

With early stopping the best step's weights have a folder of their own beside the checkpoints. Each
checkpoint links that file, so it keeps its own best weights when a better step replaces the folder.
"""
# ruff: noqa: TID253

import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from pipelines.lake.disk import DiskFullError, is_full
from pipelines.lake.files import read_json, write_json
from pipelines.runs.checkpoints import BEST, CURVE, FOLDER, STATE, TENSORS, whole
from pipelines.settings.methods import traits_of
from pipelines.train.trainer.devices import paged
from pipelines.train.trainer.devices.ranks import Ranks, local_part, with_local_part
from pipelines.train.trainer.tensor_file import save_file

Json = dict[str, Any]
Tensors = dict[str, torch.Tensor]
# The folder of the best step's weights, without the step's number.
BEST_FOLDER = ".best"


@dataclass(frozen=True)
class Random:
    """The states of all random generators at one moment."""

    tensors: Tensors
    numbers: Json

    @classmethod
    def now(cls) -> "Random":
        _, keys, position, has_gauss, gauss = np.random.get_state()
        tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
        if torch.cuda.is_available():
            tensors["cuda"] = torch.cuda.get_rng_state()
        version, internal, gauss_next = random.getstate()
        numbers = {
            "numpy": [int(position), int(has_gauss), float(gauss)],
            "python": [version, list(internal), gauss_next],
        }
        return cls(tensors, numbers)

    def set(self) -> None:
        torch.set_rng_state(self.tensors["torch"])
        if "cuda" in self.tensors:
            torch.cuda.set_rng_state(self.tensors["cuda"])
        keys = self.tensors["numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, *self.numbers["numpy"]))
        version, internal, gauss_next = self.numbers["python"]
        random.setstate((version, tuple(internal), gauss_next))


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]
) -> tuple[Tensors, dict[str, Json]]:
    """The optimizer's state by the parameter's position: tensors as `<position>/<name>`, and
    numbers separately."""
    tensors: Tensors = {}
    numbers: dict[str, Json] = {}
    for place, parameter in enumerate(parameters):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{place}/{name}"] = local_part(value)
            else:
                numbers.setdefault(str(place), {})[name] = value
    return tensors, numbers


def set_optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Json],
) -> None:
    """Restore what `optimizer_state` returned. Paged memory stays where it is and gets new
    content."""
    if paged.is_paged(optimizer):
        paged.make_room(optimizer)
    for place, values in numbers.items():
        optimizer.state[parameters[int(place)]] |= values
    for key, value in tensors.items():
        place, _, name = key.partition("/")
        parameter = parameters[int(place)]
        current = optimizer.state[parameter].get(name)
        if paged.is_page(current):
            current.copy_(value)
            continue
        # Every state lies on its parameter's device. The fused kernel's step counter is never
        # sharded.
        placed = value.to(parameter.device) if name == "step" else with_local_part(parameter, value)
        optimizer.state[parameter][name] = placed


def write(
    attempt: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    state: Json,
    ranks: Ranks | None = None,
    best: Path | None = None,
) -> Path:
    """Write `checkpoints/step-<step>/` in the attempt's folder and remove the older ones.

    `best` is the folder that `write_best` returned, if it has run. All of `ranks` call this
    together.

    Raises:
        DiskFullError: the disk is full; the incomplete checkpoint is removed.
    """
    ranks = ranks or Ranks()
    final = attempt / FOLDER / f"step-{step:08}"
    with _whole_or_absent(final, f"the checkpoint of step {step}", ranks) as partial:
        save_file(_local(tensors), file := partial / rank_file(TENSORS, ranks.rank))
        write_json(partial / rank_file(STATE, ranks.rank), state)
        _flush(file)
        if best:
            _link(best / rank_file(TENSORS, ranks.rank), partial / rank_file(BEST, ranks.rank))
        if ranks.rank == 0 and (curve := attempt / CURVE).exists():
            shutil.copyfile(curve, partial / CURVE)
    if ranks.rank == 0:
        for older in whole(attempt):
            if older != final:
                shutil.rmtree(older, ignore_errors=True)
    ranks.wait()
    return final


def write_best(attempt: Path, step: int, weights: Mapping[str, torch.Tensor], ranks: Ranks) -> Path:
    """Write the best step's weights in place of the previous best ones; returns their folder.

    All of `ranks` call this together, with {} if another rank's file holds their weights.

    Raises:
        DiskFullError: the disk is full; the incomplete folder is removed.
    """
    final = _best_folder(attempt, step)
    with _whole_or_absent(final, f"the weights of step {step}, the best so far", ranks) as partial:
        if weights:
            named = {f"weights/{name}": tensor for name, tensor in weights.items()}
            save_file(_local(named), file := partial / rank_file(TENSORS, ranks.rank))
            _flush(file)
    if ranks.rank == 0:
        for older in final.parent.glob(f"{BEST_FOLDER}-*"):
            if older != final:
                shutil.rmtree(older, ignore_errors=True)
    ranks.wait()
    return final


def take_over_best(earlier: Path, attempt: Path, step: int, ranks: Ranks) -> Path:
    """Bring the best step's weights from the checkpoint `earlier` into `attempt`, as `write_best`
    would write them."""
    final = _best_folder(attempt, step)
    with _whole_or_absent(final, f"the weights of step {step}, the best so far", ranks) as partial:
        _link(earlier / rank_file(BEST, ranks.rank), partial / rank_file(TENSORS, ranks.rank))
    ranks.wait()
    return final


def _best_folder(attempt: Path, step: int) -> Path:
    return attempt / FOLDER / f"{BEST_FOLDER}-{step:08}"


@contextmanager
def _whole_or_absent(final: Path, what: str, ranks: Ranks) -> Iterator[Path]:
    """A folder that all of `ranks` write into; it gets the name `final` when all have finished.

    Raises:
        DiskFullError: the disk is too full for `what`.
    """
    partial = final.with_name(f".{final.name.removeprefix('.')}.partial")
    try:
        if ranks.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        ranks.wait()
        yield partial
        ranks.wait()
        if ranks.rank == 0:
            _flush(partial)
            # A resumed run that stops again before its next step writes the same step once more.
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _flush(final.parent)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_full(error):
            raise DiskFullError(what, final.parent.parent, None) from error
        raise


def _link(file: Path, name: Path) -> None:
    """Link `file`, if it exists, as `name`; a file system without links gets a copy."""
    if not file.exists():
        return
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


def rank_file(name: str, rank: int) -> str:
    """The file name of that rank: `name` for the first one, `rank-<rank>.<name>` for the others."""
    return f"rank-{rank}.{name}" if rank else name


def read_state(checkpoint: Path, rank: int = 0) -> Json:
    state = read_json(checkpoint / rank_file(STATE, rank))
    if state is None:
        raise ValueError(f"{checkpoint} is not a complete checkpoint: remove it, then run again")
    return state


def read_tensors(checkpoint: Path, group: str, rank: int = 0) -> Tensors:
    """The tensors whose names begin with `group`/, keyed by the rest of their names."""
    with safe_open(checkpoint / rank_file(TENSORS, rank), "pt") as file:
        names = [name for name in file.keys() if name.startswith(f"{group}/")]  # noqa: SIM118
        return {name.removeprefix(f"{group}/"): file.get_tensor(name) for name in names}


def copy_weights(checkpoint: Path, named: Mapping[str, torch.nn.Parameter], rank: int = 0) -> None:
    """Copy the checkpoint's weights into the parameters one at a time, so memory never holds two
    sets of them."""
    with safe_open(checkpoint / rank_file(TENSORS, rank), "pt") as file, torch.no_grad():
        for name, parameter in named.items():
            local_part(parameter).copy_(file.get_tensor(f"weights/{name}"))


def read_curve(checkpoint: Path) -> list[Json]:
    path = checkpoint / CURVE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def size(named: Mapping[str, torch.nn.Parameter], recipe: Mapping[str, Any]) -> int:
    """The bytes of a checkpoint: trainable weights, Adam's two states, and AdaLoRA's two states if
    ranks move.

    Each state is as large as the weights. An 8-bit state takes one byte per element and a float32
    per 256 elements.
    """
    weights = sum(p.numel() * p.element_size() for p in named.values())
    elements = sum(p.numel() for p in named.values())
    in_8_bits = recipe["optimizer"].endswith("8bit")
    states = round(2 * elements * (1 + 4 / 256)) if in_8_bits else 2 * weights
    return weights + states + (2 * weights if traits_of(recipe).moves_ranks else 0)


def _local(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """This rank's part of each of `tensors`."""
    return {name: local_part(tensor).detach() for name, tensor in tensors.items()}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
