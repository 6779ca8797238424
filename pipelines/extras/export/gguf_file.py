"""Conversion of a transformers folder (safetensors) to a GGUF file by llama.cpp's converter.

The converter does not write the mixed 4-bit scheme. It is made from the float32 file, one tensor at
a time.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from pipelines.errors import UnavailableError, WorkError
from pipelines.extras.export import convert
from pipelines.extras.export.native import quantize_rows
from pipelines.lake.files import read_json, replacing
from pipelines.runs.process import child_environment, stop_group

# The converter's output type for each scheme.
SCHEMES = {"F32": "f32", "F16": "f16", "Q8_0": "q8_0", "Q4_K_M": "f32"}
# llama.cpp's substitutes for rows that are no multiple of a K type's 256 values (llama-quant.cpp).
NARROWER = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
INSTALL = (
    "llama.cpp's converter is not installed: `make setup`, or `pip install --no-deps --require-hashes --target {} "
    "--requirement requirements-converter.lock`"
)


@dataclass(frozen=True)
class GgufSummary:
    """The number of tensors per type in a written file."""

    types: dict[str, int]

    def in_words(self, scheme: str) -> str | None:
        """A note on tensors whose type differs from the scheme's name; None without any."""
        others = {name: count for name, count in self.types.items() if name in ("Q5_0", "Q5_1", "Q8_0", "F16")}
        if scheme != "Q4_K_M" or not others:
            return None
        listed = ", ".join(f"{count} {name}" for name, count in self.types.items())
        return f"rows that are no multiple of 256 values have another type than Q4_K or Q6_K, as in llama.cpp: {listed}"


def write_gguf(folder: Path, file: Path, scheme: str, *, name: str, texts: Sequence[str] = ()) -> GgufSummary:
    """Write the model of `folder` to `file` atomically, with weights in `scheme` (a key of
    SCHEMES).

    `texts` are further texts on which the tokens must agree.

    Raises:
        UnavailableError: llama.cpp does not support the architecture or the tokenizer, or its
            converter is not installed.
        WorkError: the converter failed, or the folder of `file` cannot be written.
    """
    # A killed process may have left a partial file as large as the model.
    for left in file.parent.glob(f".{file.name}.*"):
        left.unlink(missing_ok=True)
    with replacing(file) as partial:
        job = {"folder": str(folder), "kind": SCHEMES[scheme], "name": name, "texts": list(texts)}
        if scheme == "Q4_K_M":
            plain = partial.with_suffix(".float32")
            try:
                _convert({**job, "file": str(plain)})
                _mix(plain, partial)
            finally:
                plain.unlink(missing_ok=True)
        else:
            _convert({**job, "file": str(partial)})
        _require_own_head(folder, partial)
    return GgufSummary(dict(Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors)))


def _require_own_head(folder: Path, file: Path) -> None:
    """Raise UnavailableError if the output head has its own weights and the file lacks them.

    For some architectures, such as Gemma, llama.cpp always uses the embedding as the head.
    """
    tied = (read_json(folder / "config.json") or {}).get("tie_word_embeddings", True)
    if not tied and not any(tensor.name == "output.weight" for tensor in gguf.GGUFReader(file).tensors):
        raise UnavailableError(
            "llama.cpp uses the embedding as this architecture's output head, but here the head has its own weights (it had "
            "an adapter, or was trained untied): use --merge, a transformers folder works for every model."
        )


def _convert(job: dict[str, object]) -> None:
    """Run the converter in a separate process, since it brings other versions of imported
    packages."""
    if not (convert.FOLDER / "convert_hf_to_gguf.py").exists():
        raise UnavailableError(INSTALL.format(convert.FOLDER))
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.extras.export.convert"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=child_environment({"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}),
        start_new_session=True,
    )
    try:
        out, error = process.communicate(json.dumps(job))
    finally:
        stop_group(process)
    try:
        answer = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = " | ".join(error.strip().splitlines()[-2:])
        raise WorkError(
            f"llama.cpp's converter ended without an answer (exit {process.returncode}): {last:.800}"
        ) from None
    if answer["refused"]:
        raise UnavailableError(f"{answer['refused']}: use --merge, a transformers folder works for every model.")


def _mix(plain: Path, file: Path) -> None:
    """Rewrite a float32 GGUF file as Q4_K_M, with all its metadata."""
    reader = gguf.GGUFReader(plain)
    if experts := next((tensor.name for tensor in reader.tensors if tensor.data.ndim > 2), None):
        raise UnavailableError(
            f"{experts} has more than rows and columns (a mixture of experts?): no Q4_K_M of it; use --gguf Q8_0."
        )
    field = reader.get_field("general.architecture")
    assert field is not None
    writer = gguf.GGUFWriter(file, field.contents())
    for known in reader.fields.values():
        left_out = known.name.startswith("GGUF.") or known.name in ("general.architecture", "general.file_type")
        # The writer does not accept empty lists.
        if not left_out and known.contents() != []:
            kind, *inner = known.types
            writer.add_key_value(known.name, known.contents(), kind, inner[-1] if inner else None)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    names = {tensor.name for tensor in reader.tensors}
    layers = len({name.split(".")[1] for name in names if name.startswith("blk.")})
    choose = _TypeChooser(layers, has_output="output.weight" in names)
    kinds = {tensor.name: choose(tensor.name, tensor.data.shape) for tensor in reader.tensors}
    for tensor in reader.tensors:
        # The writer expects the row size in bytes.
        shape = gguf.quant_shape_to_byte_shape(tensor.data.shape, kinds[tensor.name])
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), int(np.prod(shape)), kinds[tensor.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(stored(tensor.data, kinds[tensor.name]))
    writer.close()


@dataclass(frozen=True)
class _TypeChooser:
    """Chooses the type of a tensor as `llama_tensor_get_type` in llama-quant.cpp does for
    Q4_K_M."""

    layers: int
    has_output: bool

    def __call__(self, name: str, shape: tuple[int, ...]) -> Type:
        if len(shape) == 1 or name == "position_embd.weight":
            return Type.F32
        kind = self._mixed(name)
        if kind in NARROWER and shape[-1] % 256:
            kind = NARROWER[kind]
        return Type.F16 if shape[-1] % 32 else kind

    def _mixed(self, name: str) -> Type:
        if name == "output.weight" or (name == "token_embd.weight" and not self.has_output):
            return Type.Q6_K
        if name.endswith("attn_qkv.weight"):
            return Type.Q5_K
        if name.endswith(("attn_v.weight", "ffn_down.weight")):
            return Type.Q6_K if self._more_bits(int(name.split(".")[1])) else Type.Q4_K
        return Type.Q4_K

    def _more_bits(self, layer: int) -> bool:
        """True for the first and last eighth of the layers, and for every third layer between."""
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2


def stored(array: np.ndarray, kind: Type) -> np.ndarray:
    """The tensor in the file's format."""
    if kind == Type.F32:
        return np.ascontiguousarray(array, dtype=np.float32)
    if kind == Type.F16:
        return array.astype(np.float16)
    return quantize_rows(array, int(kind))
