"""Write a model as safetensors with its tokenizer. Run as a child: `python -m
pipelines.weights.convert GGUF FOLDER`.

For a folder from the hub, `--torch FOLDER` converts PyTorch weights and `--check FOLDER` checks the
tokenizer.
"""

import sys
from pathlib import Path
from typing import Any

from pipelines.runs.process import die_with_parent


def convert_gguf(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    # Without dequantize=True the model counts as quantized and cannot be trained or saved.
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if pre_tokenizer_of(gguf) == "smollm":
        split_digits(tokenizer)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pre_tokenizer_of(gguf: Path) -> str | None:
    """The name of the rule that splits text before the tokenizer merges pieces
    (`tokenizer.ggml.pre`)."""
    from gguf import GGUFReader

    field = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    return None if field is None else field.contents()


def split_digits(tokenizer: Any) -> None:
    """Split off each digit, then split as GPT-2 does: SmolLM2's rule, which transformers does not
    read from a GGUF.

    Without it, spaces before numbers are tokenized differently.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def convert_torch(folder: Path) -> None:
    """Replace a folder's PyTorch weights by safetensors. They are read with weights_only, never
    unpickled freely."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", use_safetensors=False, trust_remote_code=False, output_loading_info=True
    )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        sys.exit(
            f"Its weights lack {len(missing)} tensors of the model, the first is {missing[0]}: random values would replace them"
        )
    model.save_pretrained(folder)
    # Last, so that a killed conversion runs again.
    for old in folder.glob("pytorch_model*.bin*"):
        old.unlink()


def check_tokenizer(folder: Path) -> None:
    """Exit with a message if the folder's tokenizer cannot be loaded, or gives no positions of its
    tokens."""
    from transformers import AutoTokenizer

    kinds = ", ".join(sorted(path.name for path in folder.glob("*token*"))) or "none"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        sys.exit(f"Its tokenizer files: {kinds}; expected tokenizer.json. {lines[0]:.300}")
    if not tokenizer.is_fast:
        sys.exit(
            f"Its tokenizer files: {kinds}; expected tokenizer.json, or files that transformers can convert to one"
        )


if __name__ == "__main__":
    die_with_parent()
    if sys.argv[1] == "--torch":
        convert_torch(Path(sys.argv[2]))
    elif sys.argv[1] == "--check":
        check_tokenizer(Path(sys.argv[2]))
    else:
        convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
