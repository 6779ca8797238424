"""Write a model as safetensors with its tokenizer. Run as a child: `python -m pipelines.weights.convert GGUF FOLDER`, or for what
the hub gave `--torch FOLDER` (its PyTorch weights) and `--check FOLDER` (its tokenizer)."""

import sys
from pathlib import Path
from typing import Any

from pipelines.runs.process import die_with_parent


def convert_gguf(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    # Without dequantize=True the model counts as quantized: it cannot be trained or saved.
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
    """The name of the rule by which text is split before words are merged (`tokenizer.ggml.pre`)."""
    from gguf import GGUFReader

    field = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    return None if field is None else field.contents()


def split_digits(tokenizer: Any) -> None:
    """Each digit by itself, then as GPT-2 splits: SmolLM2's rule, which transformers does not take over from a GGUF. It shows in
    spaces before numbers."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def convert_torch(folder: Path) -> None:
    """PyTorch weights of a folder (read with weights_only, never unpickled freely) become safetensors in their place."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", use_safetensors=False, trust_remote_code=False, output_loading_info=True
    )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        sys.exit(
            f"Its weights lack {len(missing)} tensors of the model, the first is {missing[0]}: random ones would stand there"
        )
    model.save_pretrained(folder)
    for old in folder.glob("pytorch_model*.bin*"):  # last, so that a conversion that was killed is done again
        old.unlink()


def check_tokenizer(folder: Path) -> None:
    """Ends the process with a word where the folder's tokenizer cannot be loaded, or cannot say where its tokens stand."""
    from transformers import AutoTokenizer

    kinds = ", ".join(sorted(path.name for path in folder.glob("*token*"))) or "none"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        sys.exit(f"Its tokenizer files: {kinds}; expected tokenizer.json. {lines[0]:.300}")
    if not tokenizer.is_fast:
        sys.exit(f"Its tokenizer files: {kinds}; expected tokenizer.json, or what transformers can make one of")


if __name__ == "__main__":
    die_with_parent()
    if sys.argv[1] == "--torch":
        convert_torch(Path(sys.argv[2]))
    elif sys.argv[1] == "--check":
        check_tokenizer(Path(sys.argv[2]))
    else:
        convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
