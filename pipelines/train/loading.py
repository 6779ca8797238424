"""Load a model for training or evaluation: dtype from the hardware, 4-bit where asked, an adapter on top."""
# ruff: noqa: TID253

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from pipelines.errors import UnavailableError
from pipelines.train.dropout import make_cheap


def quiet() -> None:
    """Progress bars and hints of the libraries say nothing to somebody who reads a cell's log."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision() -> torch.dtype | None:
    """bfloat16 where the hardware computes it (CUDA capability 8.0 and up; PyTorch's own test counts emulation as support),
    float16 on older cards, None on a CPU, where half precision is emulated and far slower."""
    if not torch.cuda.is_available():
        return None
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def weights_dtype(recipe: dict[str, Any]) -> torch.dtype:
    """On a GPU `full` keeps fp32 master weights, LoRA a half-precision frozen base; on a CPU all is fp32."""
    if recipe["precision"] == "fp32" or recipe["kind"] == "full":
        return torch.float32
    if recipe["precision"] == "bf16":
        return torch.bfloat16
    return half_precision() or torch.float32


def load_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def load_model(folder: Path, recipe: dict[str, Any]) -> Any:
    """The model of `folder` on this machine's device, quantized if the recipe says so; nothing is made trainable yet.

    Raises:
        UnavailableError: the folder holds no weights.
    """
    if not (folder / "config.json").exists():
        raise UnavailableError(f"no model in {folder}: run `featherweight fetch {recipe['model']}`.")
    options: dict[str, Any] = {"dtype": weights_dtype(recipe)}
    if recipe["attention"] != "auto":
        options["attn_implementation"] = recipe["attention"]
    if recipe["quantization"]:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=recipe["quantization"],
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=half_precision() or torch.float32,
        )
    if torch.cuda.is_available():
        options["device_map"] = {"": 0}
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    if recipe["quantization"] and not torch.cuda.is_available():
        keep_unpacked(model)
    return model


def keep_unpacked(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in eval mode on CPUs with AVX512-BF16: the repacked weights give wrong
    gradients when training goes on (seen in 0.50.2), and compute in bf16 where all rows state fp32."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def add_adapter(model: Any, recipe: dict[str, Any]) -> Any:
    """Freeze `model` and put a fresh LoRA adapter (float32) on the recipe's target modules."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe["rank"],
        lora_alpha=recipe["alpha"] or 2 * recipe["rank"],
        lora_dropout=recipe["dropout"] or 0.0,
        target_modules=recipe["targets"],
        fan_in_fan_out=model.config.model_type == "gpt2",  # its Conv1D keeps weights transposed
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    if not torch.cuda.is_available():
        make_cheap(adapted)
    return adapted


def attach_trained(model: Any, recipe: dict[str, Any], trained: Path) -> Any:
    """`model` with the adapter that a LoRA cell saved."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(trained)) if recipe["kind"] == "lora" else model


def parameter_counts(model: Any) -> tuple[int, int]:
    """(trainable, total) parameters; a 4-bit weight packs two into a byte and counts as two."""
    trainable = total = 0
    for parameter in model.parameters():
        quantized_shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        count = quantized_shape.numel() if quantized_shape is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total
