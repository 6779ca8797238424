"""The fast loss equals the plain one: same value, same gradients, no leak between examples, for
every architecture of the grid."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.train.trainer import adapters, batches, chunked, fast_paths, gated, loading
from pipelines.train.trainer.cpu import dropout, products
from pipelines.train.trainer.cpu.dropout import CheapDropout, keep_mask
from pipelines.train.trainer.examples import IGNORE, Tokenized
from pipelines.train.trainer.losses import head_on_positions, scored_mask, step_loss, token_losses
from pipelines.train.trainer.prompts import PromptFormat
from tests.tiny import ARCHITECTURES, MORE_ARCHITECTURES, TARGETS, only, save_tiny, tiny_model, tiny_tokenizer

RECORDS = [
    {"example_id": "a", "instruction": "For a nurse?", "input": "After a night shift.", "output": "Olive Kitteridge."},
    {"example_id": "b", "instruction": "한 권만", "input": "", "output": "정세랑의 『보건교사 안은영』이요."},
    {"example_id": "c", "instruction": "One sentence, please.", "input": "", "output": "Read Stoner."},
]  # fmt: skip


@pytest.fixture(scope="module")
def examples() -> list[Tokenized]:
    form = PromptFormat(tiny_tokenizer(), "chat")
    return [only(form, record) for record in RECORDS]


def plain_losses(model: Any, example: Tokenized) -> torch.Tensor:
    """The plain computation: each row alone, unpadded, with full logits."""
    ids = torch.tensor([example.input_ids])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
    labels = torch.tensor(example.labels[1:])
    losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORE)
    return losses[labels != IGNORE]


CPU = torch.device("cpu")


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


# All rows at once, then sixteen at a time.
@pytest.mark.parametrize("piece", [chunked.PIECE_BYTES, 1])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MORE_ARCHITECTURES])
def test_losses_and_gradients_equal_the_plain_computation(
    architecture: str, piece: int, examples: list[Tokenized], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "PIECE_BYTES", piece)
    model = tiny_model(architecture)
    assert (chunked.plain_head(model) is not None) == fast_paths.ARCHITECTURES[model.config.model_type].head
    expected = torch.cat([plain_losses(model, example) for example in examples])
    expected.mean().backward()
    gradients = gradients_of(model)
    with head_on_positions(model) as positions:
        with_gradients = token_losses(model, examples, positions, CPU)
        with torch.no_grad():
            without = token_losses(model, examples, positions, CPU)
        total = step_loss(model, examples, positions, CPU, learned=len(expected))
        total.backward()
    torch.testing.assert_close(with_gradients, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(without, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, expected.mean(), rtol=1e-5, atol=1e-5)
    actual = gradients_of(model)
    assert actual.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "llama-tied", "gpt2", "opt-350m"])
def test_final_weights_equal_those_of_the_plain_computation(architecture: str, examples: list[Tokenized]) -> None:
    def trained(fast: bool) -> dict[str, torch.Tensor]:
        model = tiny_model(architecture)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        learned = sum(example.learned for example in examples)
        for _ in range(4):
            if fast:
                with head_on_positions(model) as positions:
                    for batch in batches.micro_batches(examples, max_tokens=60):
                        step_loss(model, batch, positions, CPU, learned=learned).backward()
            else:
                (torch.cat([plain_losses(model, example) for example in examples]).sum() / learned).backward()
            optimizer.step()
            optimizer.zero_grad()
        return {name: p.detach() for name, p in model.named_parameters()}

    ours, plain = trained(True), trained(False)
    for name, weight in plain.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-5)


def test_a_scaled_loss_has_scaled_gradients(examples: list[Tokenized]) -> None:
    model = tiny_model("llama-tied")
    results = []
    for scale in (1.0, 8.0):
        with head_on_positions(model) as positions:
            (step_loss(model, examples, positions, CPU, learned=10) * scale).backward()
        results.append(gradients_of(model))
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], 8 * gradient, rtol=1e-5, atol=1e-6)


def test_a_frozen_head_gets_no_gradient_and_an_unknown_one_is_left_to_the_model(examples: list[Tokenized]) -> None:
    model = tiny_model("llama")
    model.lm_head.weight.requires_grad_(False)
    with head_on_positions(model) as positions:
        step_loss(model, examples, positions, CPU, learned=10).backward()
    assert model.lm_head.weight.grad is None and model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
    fast = gradients_of(model)
    model.config.model_type = "something-new"
    assert chunked.plain_head(model) is None
    with head_on_positions(model) as positions:
        step_loss(model, examples, positions, CPU, learned=10).backward()
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, fast[name], rtol=1e-4, atol=1e-6)


def test_an_example_never_sees_another(examples: list[Tokenized]) -> None:
    model = tiny_model("llama")
    with head_on_positions(model) as positions, torch.no_grad():
        alone = token_losses(model, examples[:1], positions, torch.device("cpu"))
        together = token_losses(model, examples, positions, torch.device("cpu"))[: len(alone)]
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)


def test_the_head_is_whole_again_afterwards(examples: list[Tokenized]) -> None:
    model = tiny_model("gpt2")
    with head_on_positions(model) as positions:
        token_losses(model, examples, positions, torch.device("cpu"))
    ids = torch.tensor([examples[0].input_ids])
    assert model(input_ids=ids).logits.shape == (1, ids.shape[1], 600)


def test_special_tokens_do_not_count_in_bits_per_byte(examples: list[Tokenized]) -> None:
    mask = scored_mask(examples)
    assert len(mask) == sum(example.learned for example in examples)
    # One end token per example.
    assert int((~mask).sum()) == len(examples)


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_gradients_are_the_same_after_an_evaluation(
    quantization: str | None, examples: list[Tokenized], tmp_path: Path
) -> None:
    """bitsandbytes repacks 4-bit weights in eval mode on some CPUs, which makes gradients wrong."""
    recipe = {
        "model": "tiny", "kind": "lora", "precision": "auto", "attention": "auto", "quantization": quantization, "rank": 8,
        "alpha": 32, "dropout": 0.0, "targets": TARGETS["llama"],
    }  # fmt: skip
    model = loading.add_adapter(loading.load_model(save_tiny(tmp_path / "tiny"), recipe), recipe)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)

    def gradients() -> dict[str, torch.Tensor]:
        model.train()
        with head_on_positions(model) as positions:
            token_losses(model, examples, positions, torch.device("cpu")).mean().backward()
        by_name = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return by_name

    before = gradients()
    model.eval()
    with head_on_positions(model) as positions, torch.no_grad():
        token_losses(model, examples, positions, torch.device("cpu"))
    after = gradients()
    assert len(before) == 2 * len(TARGETS["llama"]) * 2
    for name, gradient in before.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(after[name], gradient, rtol=1e-5, atol=1e-7)


def same_mask(like: torch.Tensor, drop: float) -> torch.Tensor:
    """A mask for `keep_mask` that is equal for all tensors of one shape."""
    return (torch.rand(like.numel(), generator=torch.Generator().manual_seed(like.shape[-1])) >= drop).view(like.shape)


@pytest.mark.parametrize("drop", [0.0, 0.3])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma3_text", "llama-tied", "nf4"])
def test_fused_adapters_equal_peft(
    architecture: str, drop: float, examples: list[Tokenized], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four_bit, name = architecture == "nf4", "llama" if architecture == "nf4" else architecture
    monkeypatch.setattr(dropout, "keep_mask", same_mask)
    monkeypatch.setattr(adapters, "keep_mask", same_mask)
    recipe = {
        "model": "tiny", "kind": "lora", "precision": "auto", "attention": "auto", "quantization": "nf4" if four_bit else None,
        "rank": 4, "alpha": 16, "dropout": drop, "targets": TARGETS[name.replace("3_text", "").replace("-tied", "")],
    }  # fmt: skip
    folder = save_tiny(tmp_path / "tiny") if four_bit else None
    by_path, totals = {}, []
    for fused in (False, True):
        monkeypatch.setattr(loading, "fuse", adapters.fuse if fused else lambda _: None)
        model = loading.load_model(folder, recipe) if folder else tiny_model(name)
        if fused and not folder:
            products.use_faster_products(model)
            gated.use_lean_gates(model)
        model = loading.add_adapter(model, recipe).train()
        torch.manual_seed(2)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        with head_on_positions(model) as positions:
            loss = step_loss(model, examples, positions, CPU, learned=10)
        loss.backward()
        totals.append(loss.item())
        by_path[fused] = gradients_of(model)
        adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
        assert all(("forward" in vars(module)) == fused for module in adapted)
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)
    assert by_path[True].keys() == by_path[False].keys() and len(by_path[True]) >= 2 * 2 * len(recipe["targets"]) - 4
    for parameter, gradient in by_path[False].items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(by_path[True][parameter], gradient, rtol=1e-3, atol=1e-4)


def test_adapters_that_are_switched_off_or_of_another_kind_are_left_to_peft(examples: list[Tokenized]) -> None:
    recipe = {"kind": "lora", "rank": 4, "alpha": 16, "dropout": 0.1, "targets": TARGETS["llama"]}
    model = loading.add_adapter(tiny_model("llama"), {**recipe, "dora": True})
    assert "forward" not in vars(model.base_model.model.model.layers[0].self_attn.q_proj)
    model = loading.add_adapter(tiny_model("llama"), recipe).eval()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert "forward" in vars(layer)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    ids = torch.tensor([examples[0].input_ids])
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        with model.disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, tiny_model("llama")(input_ids=ids).logits)
        layer.merge()
        torch.testing.assert_close(model(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-5)


def test_every_architecture_with_a_fast_path_has_a_tiny_model() -> None:
    assert set(fast_paths.ARCHITECTURES) - {"gemma3"} == {
        name.split("-")[0] for name in [*ARCHITECTURES, *MORE_ARCHITECTURES]
    }


@pytest.mark.parametrize(
    "architecture",
    [name for name in [*ARCHITECTURES, *MORE_ARCHITECTURES] if fast_paths.ARCHITECTURES[name.split("-")[0]].gates],
)
def test_lean_gates_equal_the_plain_computation_and_are_there(architecture: str, examples: list[Tokenized]) -> None:
    results = []
    for lean in (False, True):
        model = tiny_model(architecture)
        if lean:
            gated.use_lean_gates(model)
            assert "forward" in vars(model.model.layers[0].mlp)
        with head_on_positions(model) as positions:
            loss = step_loss(model, examples, positions, CPU, learned=10)
        loss.backward()
        results.append({"loss": loss.detach(), **gradients_of(model)})
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dnn", [False, True])
def test_products_and_their_gradients_equal_torchs(dnn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if dnn and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch holds no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: dnn)
    torch.manual_seed(4)
    for transposed in (False, True):
        x, bias = torch.randn(2, 40, 48, requires_grad=True), torch.randn(64, requires_grad=True)
        storage = torch.randn(48, 64, requires_grad=True) if transposed else torch.randn(64, 48, requires_grad=True)
        weight = storage.t() if transposed else storage
        slope = torch.randn(2, 40, 64)
        results = []
        for linear in (torch.nn.functional.linear, products.linear):
            output = linear(x, weight, bias)
            results.append([output, *torch.autograd.grad(output, (x, storage, bias), slope, retain_graph=True)])
        for ours, plain in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    total = torch.randn(40, 64)
    expected = total + x[0] @ weight.t()
    torch.testing.assert_close(products.add_product(total, x[0], weight).detach(), expected, rtol=1e-4, atol=1e-4)


def test_a_quantized_model_counts_all_its_parameters(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    recipe = {"model": "tiny", "kind": "lora", "precision": "auto", "attention": "auto", "quantization": "nf4"}
    whole = loading.parameter_counts(loading.load_model(folder, {**recipe, "quantization": None}))[1]
    assert loading.parameter_counts(loading.load_model(folder, recipe))[1] == whole


def test_cheap_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(3)
    x = torch.ones(400, 1001, requires_grad=True)
    layer = CheapDropout(0.1)
    out = layer(x)
    assert abs((out == 0).float().mean().item() - 0.1) < 0.003
    assert abs(out.mean().item() - 1) < 0.004
    out.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, out.detach())
    layer.eval()
    assert torch.equal(layer(x), x)


def test_cheap_dropout_is_seeded_and_uncorrelated() -> None:
    torch.manual_seed(5)
    first = keep_mask(torch.empty(64, 63), 0.5)
    second = keep_mask(torch.empty(64, 63), 0.5)
    torch.manual_seed(5)
    assert torch.equal(first, keep_mask(torch.empty(64, 63), 0.5))
    assert 0.4 < (first == second).float().mean().item() < 0.6
    columns = first.float().mean(dim=0)
    # No lane of the 64-bit draws is fixed.
    assert columns.min() > 0.2 and columns.max() < 0.8


def test_micro_batches_keep_to_their_budget_and_lose_nothing(examples: list[Tokenized]) -> None:
    longest = max(len(example) for example in examples)
    for budget in (1, longest, 2 * longest, 10_000):
        groups = batches.micro_batches(examples, max_tokens=budget)
        assert sorted(e.example_id for group in groups for e in group) == ["a", "b", "c"]
        assert all(len(g) == 1 or len(g) * max(len(e) for e in g) <= budget for g in groups)


def test_steps_hold_the_same_examples_whatever_the_budget_and_every_epoch_holds_all(examples: list[Tokenized]) -> None:
    plan = batches.steps(examples, epochs=2, per_step=2, seed=1)
    assert [len(step) for step in plan] == [2, 2, 2]
    order = [example.example_id for step in plan for example in step]
    assert sorted(order[:3]) == sorted(order[3:]) == ["a", "b", "c"]
    assert plan == batches.steps(examples, epochs=2, per_step=2, seed=1)
    assert len(batches.steps(examples, epochs=0.5, per_step=1, seed=1)) == 2


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    shares = [batches.learning_rate_share(step, total=10, warmup_share=0.2) for step in range(10)]
    assert shares[0] < shares[1] < shares[2] == 1
    assert all(a > b for a, b in pairwise(shares[2:])) and shares[-1] < 0.1
