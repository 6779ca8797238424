"""A transformers folder (safetensors) written as a GGUF file, a tensor at a time."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from pipelines.errors import UnavailableError
from pipelines.export import architectures
from pipelines.export.architectures import Architecture, Config
from pipelines.export.native import quantize_rows
from pipelines.export.vocabulary import write_vocabulary
from pipelines.files import read_json, replacing

SCHEMES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}
# where a row is no multiple of a K type's 256 values, llama.cpp takes these (llama-quant.cpp)
NARROWER = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: its name in the safetensors and in the GGUF file, its final shape (rows first) and type."""

    source: str
    name: str
    shape: tuple[int, ...]
    type: Type


@dataclass(frozen=True)
class Written:
    """What was written: tensors per type, and the rule that splits text."""

    types: dict[str, int]
    split: str

    def in_words(self, scheme: str) -> str | None:
        """What a reader of the scheme's name should know: tensors that its types do not fit."""
        others = {name: count for name, count in self.types.items() if name in ("Q5_0", "Q5_1", "Q8_0", "F16")}
        if scheme != "Q4_K_M" or not others:
            return None
        listed = ", ".join(f"{count} {name}" for name, count in self.types.items())
        return f"rows that are no multiple of 256 values have another type than Q4_K or Q6_K, as in llama.cpp: {listed}"


def write_gguf(folder: Path, file: Path, scheme: str, *, name: str, texts: Sequence[str] = ()) -> Written:
    """Write the model of `folder` to `file` (under another name first), its weights in `scheme` (a key of SCHEMES).

    `texts`: what tokens must be equal on, beside texts of our own.

    Raises:
        UnavailableError: the architecture or the tokenizer cannot be written, with what can.
        WorkError: the folder of `file` cannot be written.
    """
    from pipelines.train.loading import load_tokenizer

    config: Config = read_json(folder / "config.json") or {}
    architecture = architectures.for_config(config)
    with replacing(file) as partial, ExitStack() as stack:
        weights = _Weights(folder, stack)
        tensors = plan(weights, architecture, config, scheme)
        writer = gguf.GGUFWriter(partial, architecture.name)
        writer.add_name(name)
        writer.add_file_type(SCHEMES[scheme])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        architecture.describe(writer, config)
        words = next(tensor.shape[0] for tensor in tensors if tensor.name == "token_embd.weight")
        split = write_vocabulary(writer, load_tokenizer(folder), words, texts)
        for tensor in tensors:
            shape = gguf.quant_shape_to_byte_shape(tensor.shape, tensor.type)  # the writer counts the bytes of a row
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), int(np.prod(shape)), tensor.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(
                stored(architecture.turn(tensor.source, weights[tensor.source], config), tensor.type)
            )
        writer.close()
    return Written(dict(Counter(tensor.type.name for tensor in tensors)), split)


class _Weights:
    """The tensors of a folder's safetensors files by name, read when asked for, as float32."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from safetensors import safe_open

        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            opened = stack.enter_context(safe_open(path, "pt"))
            self._files |= dict.fromkeys(opened.keys(), opened)

    def names(self) -> list[str]:
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def __getitem__(self, name: str) -> np.ndarray:
        return self._files[name].get_tensor(name).float().numpy()


def plan(weights: _Weights, architecture: Architecture, config: Config, scheme: str) -> list[Tensor]:
    """Every tensor that is to be written, in the order of names.

    Raises:
        UnavailableError: llama.cpp knows no place for one of them.
    """
    names = gguf.get_tensor_name_map(architecture.id, architectures.layers(config))
    tied = bool(config.get("tie_word_embeddings", config["model_type"] == "gpt2"))
    found: list[tuple[str, str, tuple[int, ...]]] = []
    for source in weights.names():
        if source.endswith(architecture.left_out) or (tied and source == "lm_head.weight"):
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UnavailableError(
                f"llama.cpp has no place for the tensor {source} in its {architecture.name}: use --merge."
            )
        shape = weights.shape(source)
        turned = architecture.turn(source, np.broadcast_to(np.float32(0), shape), config).shape
        found.append((source, name, turned))
    has_output = any(name == "output.weight" for _, name, _ in found)
    choose = _Choice(scheme, architectures.layers(config), has_output)
    return [
        Tensor(source, name, shape, choose(name, shape)) for source, name, shape in sorted(found, key=lambda t: t[1])
    ]


@dataclass(frozen=True)
class _Choice:
    """Which type a tensor gets; for Q4_K_M as `llama_tensor_get_type` in llama-quant.cpp decides."""

    scheme: str
    layers: int
    has_output: bool

    def __call__(self, name: str, shape: tuple[int, ...]) -> Type:
        if self.scheme == "F32" or len(shape) == 1 or name == "position_embd.weight":
            return Type.F32
        if self.scheme == "F16":
            return Type.F16
        wanted = Type.Q8_0 if self.scheme == "Q8_0" else self._mixed(name)
        if wanted in NARROWER and shape[-1] % 256:
            wanted = NARROWER[wanted]
        return Type.F16 if shape[-1] % 32 else wanted

    def _mixed(self, name: str) -> Type:
        if name == "output.weight" or (name == "token_embd.weight" and not self.has_output):
            return Type.Q6_K
        if name.endswith("attn_qkv.weight"):
            return Type.Q5_K
        if name.endswith(("attn_v.weight", "ffn_down.weight")):
            return Type.Q6_K if self._more_bits(int(name.split(".")[1])) else Type.Q4_K
        return Type.Q4_K

    def _more_bits(self, layer: int) -> bool:
        """The first and last eighth of the layers, and every third between."""
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2


def stored(array: np.ndarray, kind: Type) -> np.ndarray:
    """The tensor as the file holds it."""
    if kind == Type.F32:
        return np.ascontiguousarray(array, dtype=np.float32)
    if kind == Type.F16:
        return array.astype(np.float16)
    return quantize_rows(array, int(kind))
