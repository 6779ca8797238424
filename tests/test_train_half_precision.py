"""Half precision as on a card, rehearsed on a CPU: what is rounded, what stays float32, and the
format of a result."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.cuda._utils import _get_device_index
from torch.nn import functional
from transformers import AutoModelForCausalLM

from pipelines.evaluate.cell import evaluate
from pipelines.extras.export import merge
from pipelines.extras.export.cell import ExportRequest, export
from pipelines.lake.files import read_json
from pipelines.runs.run import RunHooks
from pipelines.train.trainer import adapters, checkpoint, chunked, loading, precision
from pipelines.train.trainer.child import in_format, name_format
from pipelines.train.trainer.cpu import dropout, four_bits
from pipelines.train.trainer.examples import Tokenized
from pipelines.train.trainer.losses import head_on_positions, step_loss
from pipelines.train.trainer.prompts import PromptFormat
from tests.in_process import InProcess, clean_for, trained
from tests.project import TinyProject
from tests.test_train_four_bits import packed
from tests.test_train_losses import RECORDS, same_mask
from tests.tiny import ARCHITECTURES, MORE_ARCHITECTURES, TARGETS, only, save_tiny, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
# The first scale of a GradScaler.
SCALE = 65536.0
LORA: dict[str, Any] = {
    "model": "tiny", "kind": "lora", "precision": "bf16", "attention": "auto", "quantization": None, "rank": 4, "alpha": 16,
    "dropout": 0.0, "gradient_checkpointing": False,
}  # fmt: skip
FULL = {**LORA, "kind": "full"}


@pytest.fixture(scope="module")
def examples() -> list[Tokenized]:
    form = PromptFormat(tiny_tokenizer(), "chat")
    return [only(form, record) for record in RECORDS]


def off(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The relative error over all elements together."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


# the output head


@pytest.mark.parametrize("autocast", [True, False])
def test_the_heads_gradient_in_float16_is_as_exact_as_float16(autocast: bool) -> None:
    """Shares of a step with thousands of learned tokens lie below float16's range, and the loss's
    scale above it."""
    torch.manual_seed(1)
    learned, words, width = 3000, 8000, 32
    hidden, weight = torch.randn(64, width), torch.randn(words, width) / 4
    targets = torch.randint(words, (64,))
    if not autocast:
        hidden, weight = hidden.half(), weight.half()
    exact = hidden.half().double().requires_grad_(), weight.half().double().requires_grad_()
    (functional.cross_entropy(exact[0] @ exact[1].t(), targets, reduction="sum") / learned).backward()
    hidden.requires_grad_()
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
        loss = chunked.summed_loss(hidden, weight, targets, cap=None, share=1 / learned)
    (loss * SCALE).backward()
    for gradient, expected in zip((hidden.grad, weight.grad), (exact[0].grad, exact[1].grad), strict=True):
        assert gradient is not None and expected is not None and gradient.isfinite().all()
        assert off(gradient.double() / SCALE, expected) < 1e-3


def test_the_first_scaled_step_of_a_float16_base_has_finite_gradients(examples: list[Tokenized]) -> None:
    recipe = {**LORA, "precision": "fp16", "targets": TARGETS["llama"]}
    model = loading.add_adapter(tiny_model("llama").half(), recipe).train()
    scaler = precision.make_scaler(recipe, CPU)
    with head_on_positions(model) as positions:
        scaler.scale(step_loss(model, examples, positions, CPU, learned=sum(e.learned for e in examples))).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert scaler.get_scale() == SCALE and all(g is not None and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    ("gigabytes", "vocabulary", "rows"),
    [
        (80, 256_000, 2048),
        (80, 50_257, 2048),
        (24, 256_000, 768),
        (16, 256_000, 512),
        (16, 50_257, 2048),
        (1, 256_000, 64),
    ],
)
def test_pieces_of_the_head_grow_with_the_card(
    gigabytes: int, vocabulary: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = round(gigabytes * 1.01e9)
    assert chunked.rows_on_card(vocabulary, total) == rows
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=4 * total))
    # A memory budget; like PyTorch's own, it refuses a device without a number.
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda card: 1 / 4 + 0 * _get_device_index(card))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for card in (torch.device("cuda"), torch.device("cuda:1")):
        assert chunked.rows_of_piece(vocabulary, card) == rows
    assert chunked.rows_of_piece(vocabulary, CPU) == max(16, chunked.PIECE_BYTES // (4 * vocabulary))


def test_the_heads_gradient_is_summed_in_float32_over_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """It uses products that a CPU lacks; here they are built from those that it has."""

    def mm(left: torch.Tensor, right: torch.Tensor, *, out_dtype: torch.dtype) -> torch.Tensor:
        return left.to(out_dtype).matmul(right.to(out_dtype))

    def addmm(total: torch.Tensor, left: Any, right: Any, *, out_dtype: torch.dtype, out: torch.Tensor) -> torch.Tensor:
        assert out is total and total.dtype is out_dtype is torch.float32
        return out.add_(left.to(out_dtype) @ right.to(out_dtype))

    torch.manual_seed(2)
    hidden, weight, targets = torch.randn(70, 24), torch.randn(300, 24, requires_grad=True), torch.randint(300, (70,))
    expected = torch.zeros(300, 24)
    for inputs, piece in zip(hidden.bfloat16().split(32), targets.split(32), strict=True):
        grad_logits = functional.linear(inputs, weight.detach().bfloat16()).float().softmax(-1)
        grad_logits[range(len(piece)), piece] -= 1
        expected += grad_logits.bfloat16().float().t() @ inputs.float()
    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(chunked, "sums_in_float32", lambda matrix: matrix.dtype is torch.bfloat16)
    monkeypatch.setattr(chunked, "rows_of_piece", lambda *_: 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunked.summed_loss(hidden, weight, targets, cap=None, share=1.0).backward()
    assert weight.grad is not None and weight.grad.dtype is torch.float32
    # bfloat16 would round by four times as much.
    assert off(weight.grad, expected) < 5e-4


# autocast


@contextmanager
def norms_as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a card, autocast computes layer norms in float32 and leaves their results in it."""
    plain = functional.layer_norm

    def layer_norm(input: torch.Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            return plain(input.float(), shape, weight.float(), bias.float(), eps)
        return plain(input, shape, weight, bias, eps)

    with monkeypatch.context() as patched:
        patched.setattr(functional, "layer_norm", layer_norm)
        yield


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_all_that_passes_through_a_frozen_base_keeps_its_format(
    quantization: str | None, examples: list[Tokenized], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = "opt" if quantization else "gpt2"
    recipe = {**LORA, "quantization": quantization, "targets": TARGETS[architecture]}
    model = loading.add_adapter(loading.load_model(save_tiny(tmp_path / "tiny", architecture), recipe), recipe).train()
    formats_seen: dict[str, torch.dtype] = {}
    for name, module in model.named_modules():
        if name.endswith(("ln_1", "mlp", "c_proj", "fc2", "layer_norm")):
            module.register_forward_hook(
                lambda _module, _given, made, name=name: formats_seen.update({name: made.dtype})
            )
    with norms_as_on_a_card(monkeypatch), head_on_positions(model) as positions, precision.autocast(recipe, CPU):
        step_loss(model, examples, positions, CPU, learned=10).backward()
    assert len(formats_seen) >= 6 and set(formats_seen.values()) == {torch.bfloat16}
    assert all(p.grad.dtype is torch.float32 for p in model.parameters() if p.requires_grad)


PEFTS: dict[str, dict[str, Any]] = {
    "VERA": {"r": 16}, "IA3": {}, "LN_TUNING": {}, "LOHA": {"r": 4}, "OFT": {}, "RANDLORA": {}, "DELORA": {},
    "PREFIX_TUNING": {"num_virtual_tokens": 4}, "TRAINABLE_TOKENS": {"token_indices": [1, 2]},
    "LORA": {"r": 4, "use_dora": True, "modules_to_save": ["lm_head"], "target_modules": ["embed_tokens", "q_proj"]},
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [name if name in ("LORA", "IA3") else pytest.param(name, marks=pytest.mark.slow) for name in PEFTS]
)
def test_other_adapters_of_pefts_fit_a_half_precision_base_without_autocast(
    kind: str, examples: list[Tokenized]
) -> None:
    recipe = {**LORA, "kind": "adapter", "targets": None, "peft": {"peft_type": kind, **PEFTS[kind]}}
    model = loading.add_adapter(tiny_model("llama").bfloat16(), recipe).train()
    with head_on_positions(model) as positions, precision.autocast(recipe, CPU):
        assert not torch.is_autocast_enabled("cpu")
        step_loss(model, examples, positions, CPU, learned=10).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert gradients and all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_autocast_is_for_master_weights_and_keeps_no_copies_where_they_are_cast_again() -> None:
    layer = torch.nn.Linear(8, 8)
    for recipe in (FULL, {**FULL, "gradient_checkpointing": True}):
        with precision.autocast(recipe, CPU):
            first, second = (layer(torch.ones(1, 8)).grad_fn for _ in range(2))
            assert layer(torch.ones(1, 8)).dtype is torch.bfloat16
        casts = {id(fn.next_functions[-1][0].next_functions[0][0]) for fn in (first, second)}  # type: ignore[union-attr]
        assert len(casts) == (2 if recipe["gradient_checkpointing"] else 1)
    for frozen in (LORA, {**LORA, "kind": "none"}, {**FULL, "precision": "fp32"}):
        with precision.autocast(frozen, CPU):
            assert not torch.is_autocast_enabled("cpu")


# the format of a result


@pytest.fixture
def cleaned(project: TinyProject) -> TinyProject:
    whole = {"kind": "full", "precision": "bf16", "early_stop_patience": 3, "validation_share": 0.2}
    training = {"epochs": 1, "eval_every_steps": 1, "checkpoint_every_steps": 1}
    project.change(methods={"full-half": whole}, profiles={"local": {"training": training}})
    return clean_for(project)


def formats(file: Path, prefix: str = "") -> set[str]:
    with safe_open(file, "pt") as held:
        return {held.get_slice(name).get_dtype() for name in held.keys() if name.startswith(prefix)}  # noqa: SIM118


def test_a_full_result_is_saved_in_the_format_that_it_computes_in(
    cleaned: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_formats: list[set[str]] = []
    write = checkpoint.write

    def seen(attempt: Path, *args: Any, **kwargs: Any) -> Path:
        final = write(attempt, *args, **kwargs)
        saved_formats.append(formats(final / checkpoint.TENSORS, "weights/") | formats(final / checkpoint.BEST))
        return final

    monkeypatch.setattr(checkpoint, "write", seen)
    attempt = trained(cleaned, "full-half")
    assert attempt.status == "ok", attempt.result.detail
    # Master weights.
    assert saved_formats and all(one == {"F32"} for one in saved_formats)
    assert formats(attempt.model_folder / "model.safetensors") == {"BF16"}
    assert (read_json(attempt.model_folder / "config.json") or {})["dtype"] == "bfloat16"
    # The format during training.
    assert attempt.result.measured["weights_dtype"] == "float32"
    evaluated = loading.load_trained(tmp_path, dict(attempt.spec.recipe), attempt.model_folder)
    assert {parameter.dtype for parameter in evaluated.parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_a_full_result_is_evaluated_and_exported_in_that_format(cleaned: TinyProject, tmp_path: Path) -> None:
    attempt = trained(cleaned, "full-half")
    hooks = RunHooks(say=lambda _message: None, launcher=InProcess())
    stage, key = cleaned.resolved(), cleaned.key("full-half")
    measured = evaluate(stage, key, hooks=hooks)[0].result.measured
    written = export(stage, key, ExportRequest(output=tmp_path), hooks=hooks)
    merged, recipe = tmp_path / "merged", dict(attempt.spec.recipe)
    assert written.result.status == "ok" and formats(merged / "model.safetensors") == {"BF16"}
    form = PromptFormat.of(merged, recipe)
    held_out = [example for record in stage.selected.eval for example in form.tokenize(record)]
    for model in (merge.trained_model(tmp_path, recipe, attempt.model_folder), merge.saved_model(merged, recipe)):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        bits = merge.measured_bits_per_byte(model, held_out, 2048)
        assert bits == pytest.approx(measured["eval_bits_per_byte"], rel=1e-4)


def test_a_divided_model_is_saved_in_that_format_too(tmp_path: Path) -> None:
    model = tiny_model("llama-tied")
    # Numbers that bfloat16 cannot represent.
    counted = {"of a buffer": torch.tensor([257, 65_537])}
    assert in_format(counted, torch.bfloat16)["of a buffer"].tolist() == [257, 65_537]
    state = model.state_dict()
    held = in_format(state, torch.bfloat16)
    assert held.keys() == state.keys() and held["lm_head.weight"] is held["model.embed_tokens.weight"]
    model.save_pretrained(tmp_path, state_dict=held)
    name_format(tmp_path, torch.bfloat16)
    assert formats(tmp_path / "model.safetensors") == {"BF16"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype is torch.bfloat16
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, state[name].bfloat16())


# The latter computes its embedding's scale in its constructor, and is loaded in float32 at once.
@pytest.mark.parametrize("architecture", ["llama-tied", "gemma"])
def test_half_precision_files_of_a_full_cell_are_widened_on_the_card(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(architecture).bfloat16().save_pretrained(tmp_path)
    plain = loading.load_model(tmp_path, FULL)
    dtypes: list[Any] = []
    original = loading._load_complete
    monkeypatch.setattr(
        loading,
        "_load_complete",
        lambda folder, **options: dtypes.append(options["dtype"]) or original(folder, **options),
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    # The CPU takes the card's place.
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    widened = loading.load_model(tmp_path, FULL)
    assert dtypes == [torch.float32 if architecture == "gemma" else torch.bfloat16], (
        "one whole model, and no second one"
    )
    for kind in ("named_parameters", "named_buffers"):
        expected, actual = dict(getattr(plain, kind)()), dict(getattr(widened, kind)())
        assert actual.keys() == expected.keys()
        assert all(actual[n].dtype is one.dtype and torch.equal(actual[n], one) for n, one in expected.items())
    assert widened.get_output_embeddings().weight is widened.get_input_embeddings().weight
    tiny_model(architecture).save_pretrained(tmp_path / "wide")
    dtypes.clear()
    loading.load_model(tmp_path / "wide", FULL)
    assert dtypes == [torch.float32]


# adapters computed together


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_zero_divides_are_left_to_their_own_modules(
    dtype: torch.dtype, examples: list[Tokenized], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 3 assembles a weight only while its own module computes, and marks it."""
    model = loading.add_adapter(tiny_model("llama").to(dtype), {**LORA, "targets": TARGETS["llama"]}, for_card=dtype)
    together: list[int] = []
    plain = adapters.Group._outputs
    monkeypatch.setattr(adapters.Group, "_outputs", lambda group, x: together.append(1) or plain(group, x))
    for divided in (False, True):
        together.clear()
        if divided:
            for parameter in model.parameters():
                parameter.ds_id = 1  # pyright: ignore[reportAttributeAccessIssue]
        with torch.no_grad():
            model(input_ids=torch.tensor([examples[0].input_ids]), use_cache=False)
        assert bool(together) is not divided


# opt-350m covers the same code and more.
FAMILIES = [name for name in [*ARCHITECTURES, *MORE_ARCHITECTURES] if name != "opt"]
QUICK = ("gpt2", "opt-350m", "gemma", "llama", "nf4")


def targets_of(architecture: str, model: Any) -> list[str]:
    return TARGETS.get(architecture) or loading.linear_layers(model)


def fill(model: torch.nn.Module) -> None:
    """Equal numbers other than zero in everything that is trained."""
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.03)


@pytest.mark.parametrize("drop", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "architecture",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in [*FAMILIES, "nf4"]],
)
def test_adapters_over_a_half_precision_base_are_as_near_to_float32_as_pefts_under_autocast(
    architecture: str, drop: float, examples: list[Tokenized], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropout, "keep_mask", same_mask)
    monkeypatch.setattr(adapters, "keep_mask", same_mask)
    four_bit, name = architecture == "nf4", "llama" if architecture == "nf4" else architecture
    folder = save_tiny(tmp_path / "tiny", name)
    results: dict[str, dict[str, torch.Tensor]] = {}
    for way, precise in (("exact", "fp32"), ("autocast", "bf16"), ("ours", "bf16")):
        recipe = {**LORA, "precision": precise, "dropout": drop, "quantization": "nf4" if four_bit else None}
        recipe |= {"attention": "eager"} if name in ("gpt_neo", "gemma2") else {}
        monkeypatch.setattr(loading, "fuse", lambda _: None)
        model = loading.load_model(folder, recipe)
        model = loading.add_adapter(model, {**recipe, "targets": targets_of(name, model)}).train()
        if way == "ours":
            adapters.fuse(model, torch.bfloat16)
        adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
        assert adapted and all(("forward" in vars(module)) == (way == "ours") for module in adapted)
        for module in adapted if way == "ours" else ():
            module.forward.func.__self__.plain = ["PEFT's own, which is not to be called"] * 3
        fill(model)
        with head_on_positions(model) as positions, torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            loss = step_loss(model, examples, positions, CPU, learned=10)
        loss.backward()
        results[way] = {"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters() if p.requires_grad}}
    assert all(value.dtype is torch.float32 for value in results["ours"].values())
    assert off(results["ours"]["loss"], results["exact"]["loss"]) < 0.01
    errors = {
        way: [off(results[way][n], exact) for n, exact in results["exact"].items()] for way in ("autocast", "ours")
    }
    assert sum(errors["ours"]) < 1.3 * sum(errors["autocast"]) and max(errors["ours"]) < 0.08


def test_4_bits_are_unpacked_for_them_into_one_memory_of_the_bases_format() -> None:
    from bitsandbytes.functional import dequantize_4bit

    weights = [packed(torch.randn(shape).bfloat16()) for shape in ((64, 64), (64, 32))]
    for one in weights:
        made = four_bits.unpack(one, torch.bfloat16)
        assert made.dtype is torch.bfloat16 and torch.equal(made, dequantize_4bit(one, one.quant_state))
    assert len({four_bits.unpack(one, torch.bfloat16).data_ptr() for one in weights}) == 1
