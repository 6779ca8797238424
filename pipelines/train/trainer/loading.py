"""Load a model for training or evaluation: the dtype from the hardware, 4-bit if requested, an
adapter on top."""
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
    """Silence the libraries' progress bars and hints, which do not help a reader of a cell's
    log."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def stops_of(folder: Path) -> list[int]:
    """The token ids that end generation, as transformers reads them.

    They come from the folder's generation configuration, or without one from its configuration.
    """
    generation = read_json(folder / "generation_config.json")
    stops = (generation or read_json(folder / "config.json") or {}).get("eos_token_id")
    return [stops] if isinstance(stops, int) else list(stops or ())


def load_model(
    folder: Path, recipe: dict[str, Any], *, on_device: bool = True, dtype: torch.dtype | None = None
) -> Any:
    """The model of `folder`, quantized if the recipe says so, before anything is made trainable.

    It lies on this machine's device, or without `on_device` on the CPU. Its weights have the format
    for training, unless `dtype` names another.

    Raises:
        UnavailableError: the folder holds no model.
        WorkError: the files lack some of the model's tensors.
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

    # Float32 weights whose files are in half precision travel to the card in half precision and are
    # widened there.
    in_float32 = options["dtype"] is torch.float32 and not recipe["quantization"]
    half = _stored_half(folder) if in_float32 and "device_map" in options else None
    model = _with_attention(folder, recipe, options | {"dtype": half or options["dtype"]})
    if half:
        model = model.float()

    # A CPU gets its own kernels.
    if recipe["quantization"] and not torch.cuda.is_available():
        keep_unpacked(model)
        let_go_of_file(model)
    if not torch.cuda.is_available():
        use_faster_products(model)
        use_lean_gates(model)
    return model


def _stored_half(folder: Path) -> torch.dtype | None:
    """The half-precision format of all weights in the folder's files, if the model can be loaded in
    it and widened.

    The weights then take half as many bytes on their way to a card. None if there is no such
    format.
    """
    dtypes: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            dtypes |= {shard.get_slice(name).get_dtype() for name in shard.keys()}  # noqa: SIM118
    stored = {"BF16": torch.bfloat16, "F16": torch.float16}.get(dtypes.pop()) if len(dtypes) == 1 else None
    return None if stored is None or _computes_numbers(folder, stored) else stored


def _computes_numbers(folder: Path, dtype: torch.dtype) -> bool:
    """Whether a model loaded as `dtype` computes buffers in that format, such as Gemma's scale of
    the embedding.

    Such buffers, widened, differ from those of a model loaded in float32. The test model holds no
    bytes, since two complete models may not fit a card.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        empty_model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return any(buffer.dtype is dtype for buffer in empty_model.buffers())


def _quantization(recipe: dict[str, Any]) -> Any:
    """nf4 or fp4 (Dettmers et al. 2023), or int8 with separate outlier columns (Dettmers et al.
    2022).

    The scales of 4-bit weights are quantized as well, unless the recipe says otherwise.
    """
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
    """Load the model with the recipe's attention.

    `auto` uses flash attention if it is installed and the model computes in half precision on a
    card. Otherwise transformers chooses: sdpa, or eager for an architecture without it (gpt-neo).

    Raises:
        UnavailableError: the recipe names flash attention, but it is not available.
    """
    attention = recipe["attention"]
    flash = card.has_flash_attention() and compute_dtype(recipe) is not None
    if attention == FLASH and not flash:
        raise UnavailableError(
            f"attention: {FLASH} needs a CUDA card of capability 8.0 or more, the package flash-attn "
            "and precision other than fp32"
        )
    if attention == "auto" and flash:
        try:
            return _load_complete(folder, attn_implementation=FLASH, **options)
        # Flash attention may not support this architecture, or not in this build.
        except (ValueError, ImportError):
            attention = "auto"
    if attention != "auto":
        options["attn_implementation"] = attention
    return _load_complete(folder, **options)


def _load_complete(folder: Path, **options: Any) -> Any:
    """The folder's model, with every tensor from its files.

    Raises:
        WorkError: the files lack tensors, which transformers would fill with random values. A
            tensor of another shape makes transformers itself raise.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise WorkError(
            f"the weights in {folder} lack {len(missing)} tensors of the model, the first is {missing[0]}: "
            "random values would replace them; fetch the model again, or repair its folder"
        )
    return model


def keep_unpacked(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in eval mode on CPUs with AVX512-BF16.

    Repacked weights give wrong gradients when training continues (observed in 0.50.2). They also
    compute in bf16, while the rows state fp32.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def let_go_of_file(model: Any) -> None:
    """Copy the tensors that were not quantized, so that the weights file can be unmapped.

    In a float32 model they are views of the mapped file. The embedding alone would keep all of it
    mapped, and it would count as the process's memory.
    """
    # By address, so that tied weights stay one tensor.
    copied: dict[int, torch.Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.numel():
            tensor.data = copied.setdefault(tensor.data_ptr(), tensor.data.clone())


def add_adapter(model: Any, recipe: dict[str, Any], *, for_card: torch.dtype | None = None) -> Any:
    """Freeze `model` and put the recipe's fresh adapter (float32) on it.

    With `for_card` the adapter is made as for a card that computes in that format, whatever this
    machine has.

    Raises:
        ValueError: a target names no linear module of the model, or one that shares its weights and
            is not the output head.
        UnavailableError: PEFT has no such method, or refuses its settings or this model.
    """
    with nullcontext() if recipe.get("quantization") else _without_bitsandbytes():
        adapted = _adapted(model, recipe)
    # LoRA-FA's optimizer freezes A as well, but only after the trainable parameters have been
    # counted.
    if recipe.get("optimizer") == LORA_FA:
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and ".lora_A." not in name)
    on_meta = next(adapted.parameters()).device.type == "meta"
    if traits_of(recipe).starts_from_rounding and not on_meta:
        plain = load_model(rounding.folder_of(model), {**recipe, "quantization": None}, on_device=False)
        rounding.make_up_for(adapted, plain)
    # An adapter that starts from texts may still change its ranks; `begin_from_texts` speeds it up
    # afterwards.
    if on_meta or not traits_of(recipe).starts_from_texts:
        speed_up(adapted, recipe, for_card=for_card)
    return adapted


def speed_up(adapted: Any, recipe: dict[str, Any], *, for_card: torch.dtype | None = None) -> None:
    """Fuse the adapters of a PEFT model that `pipelines.train.trainer.adapters` knows."""
    if for_card or torch.cuda.is_available():
        fuse(adapted, for_card or weights_dtype(recipe))
    else:
        make_cheap(adapted)
        fuse(adapted)


def begin_from_texts(adapted: Any, recipe: dict[str, Any], train: Any, *, seed: int) -> None:
    """Compute the first weights of an adapter that starts from the base's activations on training
    texts.

    Adapters of other methods already have their first weights.

    Raises:
        UnavailableError: the method cannot start from these examples or settings.
    """
    if not traits_of(recipe).starts_from_texts:
        return
    with peft_adapter.in_pefts_words(recipe):
        from_texts.begin(adapted, train, recipe, seed=seed)
    speed_up(adapted, recipe)


@contextmanager
def _without_bitsandbytes() -> Iterator[None]:
    """Keep PEFT from importing bitsandbytes, which takes as long as importing PyTorch.

    Only quantized layers need it, and a quantized model has imported it already.
    """
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
    """The last parts of the names of a model's linear layers, each once; the output head only with
    `head`."""
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
    """Raises ValueError if a target names no linear layer. PEFT itself complains only if all of
    them are missing."""
    linear = linear_layers(model, head=True)
    if missing := [target for target in targets if target.split(".")[-1] not in linear]:
        raise ValueError(
            f"targets: {', '.join(missing)} names no linear module of this model; it has {', '.join(linear)} (set lora_targets "
            "and attention_targets of the model, or targets of the method, in experiments.yaml)"
        )


def _can_be_merged(adapted: Any, recipe: dict[str, Any]) -> None:
    """Raises if a layer with an adapter shares its weights with another layer.

    The output head is allowed: merging gives it weights of its own, and the configuration can say
    so.
    """
    head = adapted.get_output_embeddings()
    others = [name for name in adapted_and_shared(adapted) if adapted.get_submodule(name) is not head]
    if not others:
        return
    advice = (
        f"{others[0].removeprefix('base_model.model.')} shares its weights with another layer, and merging the adapter "
        "would change both: leave it out"
    )
    if traits_of(recipe).is_short:
        raise ValueError(
            f"targets: {advice} (lora_targets of the model, or targets of the method, in experiments.yaml)"
        )
    raise UnavailableError(f"PEFT's {traits_of(recipe).peft_type} with these settings on this model: {advice}")


def load_trained(base: Path, recipe: dict[str, Any], trained: Path | None) -> Any:
    """The model that a cell saved in `trained`, for evaluation: a full model, or the base with its
    adapter.

    Without `trained` it is the base.

    Raises:
        WorkError: the reloaded adapter gives other losses than the trained one.
    """
    traits = traits_of(recipe)
    model = load_model(trained if trained and traits.trains_all else base, recipe, dtype=result_dtype(recipe))
    if trained and traits.has_adapter:
        model = attach_trained(model, trained)
        peft_adapter.require_as_saved(model, trained)
    return model.eval()


def attach_trained(model: Any, trained: Path) -> Any:
    """`model` with a cell's saved adapter."""
    with _without_bitsandbytes():
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(trained))


def merged(model: Any) -> Any:
    """The plain model of a PEFT model, with the adapter merged into its weights.

    An adapter on an output head that shares its weights with the embedding changes the head alone.
    A merge would change both, so the head gets weights of its own first, and the configuration says
    so.

    Raises:
        UnavailableError: the adapter does not change weights.
    """
    if virtual_tokens.embedded(model) or virtual_tokens.cached(model):
        raise UnavailableError(
            f"PEFT's {model.active_peft_config.peft_type.value} puts tokens of its own before a text and changes no "
            "weight: there is nothing to merge, and no GGUF can hold it; serve the adapter beside its base"
        )
    if adapted_and_shared(model):
        base = model.get_output_embeddings().get_base_layer()
        base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    return model.merge_and_unload()


def adapted_and_shared(model: Any) -> list[str]:
    """The names of the layers of a PEFT model that have an adapter and share their weights with
    another layer."""
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    adapted = {
        name: layer.get_base_layer() for name, layer in model.named_modules() if hasattr(layer, "get_base_layer")
    }
    return [name for name, base in adapted.items() if uses[id(getattr(base, "weight", None))] > 1]


def parameter_counts(model: Any) -> tuple[int, int]:
    """(trainable, total) parameters; a byte of packed 4-bit weights counts as two."""
    trainable = total = 0
    for parameter in model.parameters():
        quantized_shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        count = quantized_shape.numel() if quantized_shape is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total
