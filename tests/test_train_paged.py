"""Optimizer states in paged memory, with bitsandbytes' own class, on memory that only claims to be
paged.

Nothing is allocated twice, a checkpoint is read into existing pages, and the row names their size.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.optim.optimizer import Optimizer8bit

from pipelines.train.trainer import checkpoint
from pipelines.train.trainer.devices import paged
from pipelines.train.trainer.devices.ranks import Ranks
from pipelines.train.trainer.loop import Trainer
from pipelines.train.trainer.optimizers import make_optimizer

RECIPE: dict[str, Any] = {
    "learning_rate": 1e-2, "weight_decay": 0.1, "optimizer": "paged_adamw_8bit", "precision": "fp32", "kind": "full",
}  # fmt: skip
# Number of elements: bitsandbytes pages no smaller tensor.
LARGE = 100_000


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """The paged memory that was allocated; as in bitsandbytes, it is never given back."""
    allocated: list[torch.Tensor] = []

    def buffer(optimizer: Any, parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        made = torch.zeros_like(parameter, dtype=dtype)
        if optimizer.is_paged and parameter.numel() >= LARGE:
            page: Any = made
            page.is_paged, page.page_deviceid = True, 0
            allocated.append(page)
        return made

    monkeypatch.setattr(Optimizer8bit, "get_state_buffer", buffer)
    monkeypatch.setattr(functional, "prefetch_tensor", lambda page, to_cpu=False: None)
    yield allocated


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(400, 300), torch.nn.Linear(300, 8))


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        model(torch.randn(4, 400)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def trainer_of(model: torch.nn.Module) -> Trainer:
    """The part of a trainer that its optimizer needs."""
    made = Trainer.__new__(Trainer)
    made.model, made.recipe, made.device, made.zero = model, RECIPE, torch.device("cpu"), None
    made.optimizer = make_optimizer(model, RECIPE)
    return made


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_the_optimizer_that_forgot_steps_as_a_new_one_and_asks_for_no_more_pages(pages: list[torch.Tensor]) -> None:
    trained = model()
    trainer = trainer_of(trained)
    before = weights(trained)
    # The probe, and two learning rates that were tried.
    for _ in range(3):
        train(trained, trainer.optimizer, range(2))
        trainer.reset_optimizer()
        with torch.no_grad():
            for parameter, value in zip(trained.parameters(), before, strict=True):
                parameter.copy_(value)
    train(trained, trainer.optimizer, range(3))
    assert len(pages) == 2, "Adam's two states of the one large parameter, once"
    fresh = model()
    train(fresh, make_optimizer(fresh, RECIPE), range(3))
    assert all(a.equal(b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True))


def test_what_went_on_from_a_checkpoint_lies_in_pages_and_takes_the_same_steps(
    tmp_path: Path, pages: list[torch.Tensor]
) -> None:
    trained = model()
    optimizer = make_optimizer(trained, RECIPE)
    train(trained, optimizer, range(3))
    tensors, numbers = checkpoint.optimizer_state(optimizer, list(trained.parameters()))
    held = {f"weights/{n}": p for n, p in trained.named_parameters()} | {
        f"optimizer/{n}": t for n, t in tensors.items()
    }
    folder = checkpoint.write(tmp_path, 3, held, {"optimizer": numbers}, Ranks())
    train(trained, optimizer, range(3, 6))

    other = model()
    checkpoint.copy_weights(folder, dict(other.named_parameters()))
    resumed = make_optimizer(other, RECIPE)
    read = checkpoint.read_tensors(folder, "optimizer")
    checkpoint.set_optimizer_state(resumed, list(other.parameters()), read, numbers)
    train(other, resumed, range(3, 6))
    assert all(a.equal(b) for a, b in zip(trained.parameters(), other.parameters(), strict=True))
    assert len(pages) == 4 and paged.pageable_bytes(resumed) == paged.pageable_bytes(optimizer) == 2 * 400 * 300


def test_only_pages_count_and_where_there_are_none_nothing_is_said(pages: list[torch.Tensor]) -> None:
    trained = model()
    optimizer = make_optimizer(trained, RECIPE)
    assert paged.pageable_bytes(optimizer) is None, "before its first step"
    train(trained, optimizer, range(1))
    assert paged.pageable_bytes(optimizer) == 2 * 400 * 300
    for name in ("adamw", "adamw_8bit"):
        plain = make_optimizer(trained, {**RECIPE, "optimizer": name})
        train(trained, plain, range(1))
        assert paged.pageable_bytes(plain) is None


def test_without_a_card_nothing_is_paged_and_forgetting_comes_to_the_same() -> None:
    trained, fresh = model(), model()
    trainer = trainer_of(trained)
    train(trained, trainer.optimizer, range(2))
    trainer.reset_optimizer()
    with torch.no_grad():
        for parameter, value in zip(trained.parameters(), fresh.parameters(), strict=True):
            parameter.copy_(value)
    train(trained, trainer.optimizer, range(2))
    train(fresh, make_optimizer(fresh, RECIPE), range(2))
    assert all(a.equal(b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True))
    assert paged.pageable_bytes(trainer.optimizer) is None
