"""The training loop: plain PyTorch, since the speed and the memory of a step are what this project measures.

A plain loop rather than transformers.Trainer: the examples of an optimizer step stay fixed while micro-batches follow a token
budget, the output head runs on completion positions only, and importing Trainer alone takes as long as loading the model.
The loss of a step is the mean over all its learned tokens, so how it is cut into micro-batches does not change it.
"""
# ruff: noqa: TID253

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pipelines.train import batches
from pipelines.train.loading import half_precision
from pipelines.train.losses import head_on_positions, token_losses
from pipelines.train.memory import MemoryMeter
from pipelines.train.prompts import Tokenized
from pipelines.worker import DivergedError, Stopwatch, Worker

Recipe = dict[str, Any]


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    """Half-precision compute over fp32 master weights on CUDA; nothing on a CPU, which would only emulate it."""
    half = half_precision()
    if device.type != "cuda" or half is None or recipe["precision"] == "fp32":
        return nullcontext()
    return torch.autocast("cuda", dtype=half)


def make_optimizer(model: Any, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options: Any = {"lr": recipe["learning_rate"], "weight_decay": recipe["weight_decay"]}
    if recipe["optimizer"] == "adamw":
        return torch.optim.AdamW(parameters, **options)
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    kind = {"adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit}
    return kind[recipe["optimizer"]](parameters, **options)


class Trainer:
    """One cell's run over its planned steps; every number it measures goes to the worker."""

    def __init__(self, worker: Worker, model: Any, recipe: Recipe, device: torch.device) -> None:
        self.worker = worker
        self.model = model
        self.recipe = recipe
        self.device = device
        self.optimizer = make_optimizer(model, recipe)
        self.meter = MemoryMeter()
        self.examples_seen = 0

    def train(self, train: Sequence[Tokenized], held_out: Sequence[Tokenized]) -> None:
        """Train over `train`; the loss on `held_out` is a point on the curve at the start, at intervals and at the end.

        Raises:
            DivergedError: a loss or a gradient is no longer finite.
        """
        recipe = self.recipe
        plan = batches.steps(
            train, epochs=recipe["epochs"], per_step=recipe["examples_per_step"], seed=self.worker.spec["seed"]
        )
        self.worker.measure(steps=len(plan))
        self.meter.start()
        try:
            with head_on_positions(self.model) as wanted:
                self._run(plan, held_out, wanted)
        finally:
            self.meter.stop()
            self.worker.measure(**self.meter.summary())

    def _run(self, plan: list[list[Tokenized]], held_out: Sequence[Tokenized], wanted: list[torch.Tensor]) -> None:
        every = self.worker.spec["eval_every_steps"]
        seconds = tokens = steady_seconds = steady_tokens = 0.0
        first_eval = self._eval_loss(held_out, wanted)
        self._point(0, loss=None, eval_loss=first_eval, rate=None, seconds=0.0)
        for number, examples in enumerate(plan, start=1):
            share = batches.learning_rate_share(number - 1, total=len(plan), warmup_share=self.recipe["warmup_share"])
            rate = self.recipe["learning_rate"] * share
            clock = Stopwatch()
            loss = self._step(examples, rate, wanted)
            spent, size = clock.total(), sum(len(example) for example in examples)
            seconds, tokens = seconds + spent, tokens + size
            if number > 1:  # the first step pays for warm-up and for the optimizer's state
                steady_seconds, steady_tokens = steady_seconds + spent, steady_tokens + size
            self.examples_seen += len(examples)
            due = number == len(plan) or number % every == 0
            eval_loss = self._eval_loss(held_out, wanted) if due else None
            self._point(number, loss=loss, eval_loss=eval_loss, rate=rate, seconds=seconds)
            self.worker.measure(
                last_step=number,
                train_loss=loss,
                train_seconds=seconds,
                tokens_per_second=steady_tokens / steady_seconds if steady_seconds else None,
                trained_tokens=int(tokens),
                **self.meter.summary(),
            )
            self.worker.save()

    def _step(self, examples: list[Tokenized], rate: float, wanted: list[torch.Tensor]) -> float:
        """One optimizer step; returns its loss per learned token in nats."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        learned = sum(example.learned for example in examples)
        total = 0.0
        for batch in batches.micro_batches(examples, max_tokens=self.recipe["micro_batch_tokens"]):
            with autocast(self.recipe, self.device):
                loss = token_losses(self.model, batch, wanted, self.device).sum() / learned
            loss.backward()
            total += loss.item()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe["gradient_clip"]).item()
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise DivergedError(
                f"loss {total}, gradient norm {norm} after {self.examples_seen} examples: lower learning_rate"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _eval_loss(self, held_out: Sequence[Tokenized], wanted: list[torch.Tensor]) -> float:
        """Mean loss per learned token on `held_out`, in nats; its time and memory are not the training's."""
        self.model.eval()
        total = learned = 0.0
        with self.meter.apart(), torch.no_grad(), autocast(self.recipe, self.device):
            for batch in batches.micro_batches(held_out, max_tokens=self.recipe["micro_batch_tokens"]):
                losses = token_losses(self.model, batch, wanted, self.device)
                total, learned = total + losses.double().sum().item(), learned + len(losses)
        if not math.isfinite(total):
            raise DivergedError(f"the loss on held-out records is {total}: lower learning_rate")
        return total / learned

    def _point(
        self, step: int, *, loss: float | None, eval_loss: float | None, rate: float | None, seconds: float
    ) -> None:
        self.worker.point(
            {
                "step": step,
                "steps": self.worker.report["measured"]["steps"],
                "examples": self.examples_seen,
                "train_loss": loss,
                "eval_loss": eval_loss,
                "learning_rate": rate,
                "elapsed_seconds": seconds,
                **self.meter.now(),
            }
        )
