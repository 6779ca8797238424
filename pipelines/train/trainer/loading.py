"""Load a model for training or evaluation: dtype from the hardware, 4-bit where asked, an adapter on top."""
# ruff: noqa: TID253

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from pipelines.errors import UnavailableError, WorkError
from pipelines.lake.files import read_json
from pipelines.settings.methods import LORA_FA, traits_of
from pipelines.train.trainer import from_texts, peft_adapter, rounding, virtual_tokens
from pipelines.train.trainer.adapters import fuse
from pipelines.train.trainer.cpu import four_bits
from pipelines.train.trainer.cpu.dropout import make_cheap
from pipelines.train.trainer.cpu.products import use_faster_products
from pipelines.train.trainer.devices import card
from pipelines.train.trainer.gated import use_lean_gates
from pipelines.train.trainer.precision import compute_dtype, result_dtype, weights_dtype

FLASH = "flash_attention_2"


def quiet() -> None:
    """Progress bars and hints of the libraries say nothing to somebody who reads a cell's log."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def stops_of(folder: Path) -> list[int]:
    """The ids that generation ends at: those of the folder's generation configuration, without one its configuration's, as
    transformers reads them."""
    generation = read_json(folder / "generation_config.json")
    stops = (generation or read_json(folder / "config.json") or {}).get("eos_token_id")
    return [stops] if isinstance(stops, int) else list(stops or ())


def load_model(
    folder: Path, recipe: dict[str, Any], *, on_device: bool = True, dtype: torch.dtype | None = None
) -> Any:
    """The model of `folder` on this machine's device (else on the CPU), quantized if the recipe says so; nothing is made trainable
    yet. Its weights have the format in which they train, unless `dtype` names another.

    Raises:
        UnavailableError: the folder holds no weights.
    """
    if not (folder / "config.json").exists():
        raise UnavailableError(f"no model in {folder}: run `featherweight fetch {recipe['model']}`.")
    options: dict[str, Any] = {"dtype": dtype or weights_dtype(recipe), "trust_remote_code": False}
    if recipe["quantization"]:
        if not torch.cuda.is_available():
            four_bits.prepare()
        options["quantization_config"] = _quantization(recipe)
    if torch.cuda.is_available() and on_device:
        options["device_map"] = {"": torch.cuda.current_device()}
    in_float32 = options["dtype"] is torch.float32 and not recipe["quantization"]
    half = _stored_half(folder) if in_float32 and "device_map" in options else None
    model = _with_attention(folder, recipe, options | {"dtype": half or options["dtype"]})
    if half:
        model = model.float()
    if recipe["quantization"] and not torch.cuda.is_available():
        keep_unpacked(model)
        let_go_of_file(model)
    if not torch.cuda.is_available():
        use_faster_products(model)
        use_lean_gates(model)
    return model


def _stored_half(folder: Path) -> torch.dtype | None:
    """The half-precision format that all weights of the folder have in their files, if a model of it can be loaded so and widened.
    On the way to a card the weights are half as many bytes in it. None where there is no such format."""
    dtypes: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            dtypes |= {shard.get_slice(name).get_dtype() for name in shard.keys()}  # noqa: SIM118
    stored = {"BF16": torch.bfloat16, "F16": torch.float16}.get(dtypes.pop()) if len(dtypes) == 1 else None
    return None if stored is None or _computes_numbers(folder, stored) else stored


def _computes_numbers(folder: Path, dtype: torch.dtype) -> bool:
    """Whether a model of the folder that is loaded as `dtype` has computed numbers of its own in that format (Gemma's scale of the
    embedding). Widened they differ from those of a model that was loaded in float32. Asked of a model without bytes, since two
    whole ones may not fit a card."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        empty_model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return any(buffer.dtype is dtype for buffer in empty_model.buffers())


def _quantization(recipe: dict[str, Any]) -> Any:
    """4 bits as nf4 or fp4, the scales quantized once more unless the recipe says otherwise (Dettmers et al. 2023), or int8
    with outlier columns kept apart (Dettmers et al. 2022)."""
    from transformers import BitsAndBytesConfig

    if recipe["quantization"] == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe["quantization"],
        bnb_4bit_use_double_quant=recipe.get("double_quantization", True),
        bnb_4bit_compute_dtype=compute_dtype(recipe) or torch.float32,
    )


def _with_attention(folder: Path, recipe: dict[str, Any], options: dict[str, Any]) -> Any:
    """`auto` takes flash attention where it is installed and computes in half precision on a card, else what transformers
    chooses for the architecture: sdpa, or eager where it has none (gpt-neo).

    Raises:
        UnavailableError: flash attention is asked for by name and is not there.
    """
    attention = recipe["attention"]
    flash = card.has_flash_attention() and compute_dtype(recipe) is not None
    if attention == FLASH and not flash:
        raise UnavailableError(
            f"attention: {FLASH} needs a CUDA card of capability 8.0 or more, the package flash-attn and precision other than fp32"
        )
    if attention == "auto" and flash:
        try:
            return _load_complete(folder, attn_implementation=FLASH, **options)
        except (ValueError, ImportError):  # not for this architecture, or not with this build
            attention = "auto"
    if attention != "auto":
        options["attn_implementation"] = attention
    return _load_complete(folder, **options)


def _load_complete(folder: Path, **options: Any) -> Any:
    """The folder's model, no tensor of which is one that transformers made up.

    Raises:
        WorkError: its files lack some; a model of another shape is refused by transformers itself.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise WorkError(
            f"the weights in {folder} lack {len(missing)} tensors of the model, the first is {missing[0]}: random ones would stand "
            "there; fetch the model anew, or mend its folder"
        )
    return model


def keep_unpacked(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in eval mode on CPUs with AVX512-BF16: the repacked weights give wrong
    gradients when training goes on (seen in 0.50.2), and compute in bf16 where all rows state fp32."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def let_go_of_file(model: Any) -> None:
    """Copy what was not quantized. A float32 file's other weights are views of the whole file, which would stay mapped, and count
    as the process's memory, for the sake of its embedding."""
    copied: dict[int, torch.Tensor] = {}  # tied weights stay one
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.numel():
            tensor.data = copied.setdefault(tensor.data_ptr(), tensor.data.clone())


def add_adapter(model: Any, recipe: dict[str, Any], *, for_card: torch.dtype | None = None) -> Any:
    """Freeze `model` and put the recipe's fresh adapter (float32) on it. `for_card`: as on a card that computes in that format,
    whatever this machine has.

    Raises:
        ValueError: a target names no linear module of the model, or one that shares its weights and is not the output head.
        UnavailableError: PEFT has no such method, or refuses its settings or this model.
    """
    with nullcontext() if recipe.get("quantization") else _without_bitsandbytes():
        adapted = _adapted(model, recipe)
    if recipe.get("optimizer") == LORA_FA:  # its optimizer would do so later, when what trains has been counted
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and ".lora_A." not in name)
    on_meta = next(adapted.parameters()).device.type == "meta"
    if traits_of(recipe).starts_from_rounding and not on_meta:
        plain = load_model(rounding.folder_of(model), {**recipe, "quantization": None}, on_device=False)
        rounding.make_up_for(adapted, plain)
    if on_meta or not traits_of(recipe).starts_from_texts:  # which may still change its ranks
        speed_up(adapted, recipe, for_card=for_card)
    return adapted


def speed_up(adapted: Any, recipe: dict[str, Any], *, for_card: torch.dtype | None = None) -> None:
    """Let a PEFT model's adapters compute as `pipelines.train.trainer.adapters` does, where it knows them."""
    if for_card or torch.cuda.is_available():
        fuse(adapted, for_card or weights_dtype(recipe))
    else:
        make_cheap(adapted)
        fuse(adapted)


def begin_from_texts(adapted: Any, recipe: dict[str, Any], train: Any, *, seed: int) -> None:
    """Give an adapter that begins with what the base makes of training texts its first weights; others have theirs.

    Raises:
        UnavailableError: it cannot be done with these examples or settings.
    """
    if not traits_of(recipe).starts_from_texts:
        return
    with peft_adapter.in_pefts_words(recipe):
        from_texts.begin(adapted, train, recipe, seed=seed)
    speed_up(adapted, recipe)


@contextmanager
def _without_bitsandbytes() -> Iterator[None]:
    """PEFT imports it wherever it is installed, which takes as long as importing PyTorch; only quantized layers need it, and where
    there are any it is here already."""
    if "bitsandbytes" in sys.modules:
        yield
        return
    sys.modules["bitsandbytes"] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
        from peft import import_utils

        import_utils.is_bnb_available.cache_clear()
        import_utils.is_bnb_4bit_available.cache_clear()
    finally:
        del sys.modules["bitsandbytes"]


def _adapted(model: Any, recipe: dict[str, Any]) -> Any:
    from peft import get_peft_model

    config = peft_adapter.config_of(model, recipe, linear_layers(model))
    targets = recipe["targets"]
    if isinstance(targets, list) and getattr(config, "target_modules", None) == set(targets):
        _targets_exist(model, targets)
    with peft_adapter.in_pefts_words(recipe):
        adapted = get_peft_model(model, config)
    _can_be_merged(adapted, recipe)
    return adapted


def linear_layers(model: Any, *, head: bool = False) -> list[str]:
    """The names of a model's linear layers, each once, without the path in front; its output head only with `head`."""
    output = model.get_output_embeddings()
    names = {
        name.split(".")[-1]: None
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
        and not isinstance(module, torch.nn.Embedding)
        and (head or module is not output)
    }
    return list(names)


def _targets_exist(model: Any, targets: list[str]) -> None:
    """PEFT itself complains only where none of the names is found."""
    linear = linear_layers(model, head=True)
    if missing := [target for target in targets if target.split(".")[-1] not in linear]:
        raise ValueError(
            f"targets: {', '.join(missing)} names no linear module of this model; it has {', '.join(linear)} (set lora_targets "
            "and attention_targets of the model, or targets of the method, in experiments.yaml)"
        )


def _can_be_merged(adapted: Any, recipe: dict[str, Any]) -> None:
    """A head that shares the embedding's weights gets its own when it is merged; for other layers no configuration says so."""
    head = adapted.get_output_embeddings()
    others = [name for name in adapted_and_shared(adapted) if adapted.get_submodule(name) is not head]
    if not others:
        return
    advice = (
        f"{others[0].removeprefix('base_model.model.')} shares its weights with another layer, so that merging the adapter would "
        "change both: leave it out"
    )
    if traits_of(recipe).is_short:
        raise ValueError(
            f"targets: {advice} (lora_targets of the model, or targets of the method, in experiments.yaml)"
        )
    raise UnavailableError(f"PEFT's {traits_of(recipe).peft_type} with these settings on this model: {advice}")


def load_trained(base: Path, recipe: dict[str, Any], trained: Path | None) -> Any:
    """What a cell saved in `trained`, as evaluation runs it: a model of its own, or the base with its adapter beside it. Without
    `trained` the base.

    Raises:
        WorkError: the adapter, loaded again, is not what was saved.
    """
    traits = traits_of(recipe)
    model = load_model(trained if trained and traits.trains_all else base, recipe, dtype=result_dtype(recipe))
    if trained and traits.has_adapter:
        model = attach_trained(model, trained)
        peft_adapter.require_as_saved(model, trained)
    return model.eval()


def attach_trained(model: Any, trained: Path) -> Any:
    """`model` with the adapter that a cell saved."""
    with _without_bitsandbytes():
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(trained))


def merged(model: Any) -> Any:
    """The plain model of a PEFT model, its adapter worked into its weights.

    Raises:
        UnavailableError: the adapter is no change of weights.

    An adapter on an output head that shares its weights with the embedding changes the head alone. Merged as they are, the two
    would change together, so the head gets weights of its own first, and the configuration says so.
    """
    if virtual_tokens.embedded(model) or virtual_tokens.cached(model):
        raise UnavailableError(
            f"PEFT's {model.active_peft_config.peft_type.value} puts tokens of its own before a text and changes no weight: there "
            "is nothing to merge, and no GGUF can hold it; serve the adapter beside its base"
        )
    if adapted_and_shared(model):
        base = model.get_output_embeddings().get_base_layer()
        base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    return model.merge_and_unload()


def adapted_and_shared(model: Any) -> list[str]:
    """The names of a PEFT model's layers that have an adapter and share their weights with another layer."""
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    adapted = {
        name: layer.get_base_layer() for name, layer in model.named_modules() if hasattr(layer, "get_base_layer")
    }
    return [name for name, base in adapted.items() if uses[id(getattr(base, "weight", None))] > 1]


def parameter_counts(model: Any) -> tuple[int, int]:
    """(trainable, total) parameters; a 4-bit weight packs two into a byte and counts as two."""
    trainable = total = 0
    for parameter in model.parameters():
        quantized_shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        count = quantized_shape.numel() if quantized_shape is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total
