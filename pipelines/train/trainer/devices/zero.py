"""DeepSpeed's ZeRO (Rajbhandari et al. 2020): over the ranks of a cell, stage 2 divides gradients and optimizer states, stage 3 the
weights too.

DeepSpeed is started directly: accelerate would only hand the configuration through. It has been run on CPUs, by gloo, never on a
card by us. Checkpoints are ours, not DeepSpeed's, which are pickled; they hold all, gathered, in the first rank's file.
"""
# ruff: noqa: TID253

import logging
import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from pipelines.errors import UnavailableError
from pipelines.runs.deepspeed import ZERO_STAGES, require_deepspeed
from pipelines.train.trainer.devices.ranks import Ranks
from pipelines.train.trainer.optimizers import make_optimizer
from pipelines.train.trainer.precision import make_scaler

STATES = ("exp_avg", "exp_avg_sq")  # Adam's, by torch's names
Named = Mapping[str, torch.nn.Parameter]


class Zero:
    """DeepSpeed's `engine` around a model, and its steps. All ranks call `weights` and `states` together, and each gets all."""

    def __init__(self, model: Any, spec: dict[str, Any], device: torch.device, ranks: Ranks) -> None:
        """Divide `model` over `ranks`, with the cell's own `deepspeed` configuration over ours.

        Raises:
            UnavailableError: the cell computes in float16, or DeepSpeed is not installed.
        """
        recipe = spec["recipe"]
        require_deepspeed(ranks.sharding)
        if make_scaler(recipe, device).is_enabled():
            raise UnavailableError(
                f"sharding: {ranks.sharding} does not train in float16 here: use fsdp, or set precision: bf16 or fp32"
            )
        if device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        deepspeed: Any = import_module("deepspeed")  # an extra, which whoever checks types need not have
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        defaults: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # as good as any: steps end where we say, and the loss is divided already
            "gradient_clipping": recipe["gradient_clip"],
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": ZERO_STAGES[ranks.sharding]},
        }
        overrides = spec.get("deepspeed") or {}
        stage = overrides.get("zero_optimization", {}) | defaults["zero_optimization"]
        config = defaults | overrides | {"zero_optimization": {"overlap_comm": False} | stage}
        optimizer = make_optimizer(model, recipe)
        self.engine, self.optimizer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self._fragments: Any = import_module("deepspeed.utils")
        self._count = ranks.count

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradient of `loss` to the step's; with the `last` it is the sum over the ranks (DeepSpeed takes the mean)."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self._count)

    def step(self) -> float:
        """Clip, step and forget the gradients; returns their norm before."""
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def forget(self) -> None:
        """The optimizer remembers nothing of earlier steps. Zeros rather than no tensors: DeepSpeed points into them."""
        for state in self.optimizer.optimizer.state.values():
            for remembered in state.values():
                remembered.zero_()

    def weights(self, named: Named) -> dict[str, torch.Tensor]:
        get = self._fragments.safe_get_full_fp32_param
        return {name: get(parameter) for name, parameter in named.items()}

    def states(self, named: Named) -> dict[str, torch.Tensor]:
        """Adam's two states as `<name>/<state>`."""
        get = self._fragments.safe_get_full_optimizer_state
        return {f"{name}/{of}": get(parameter, of) for name, parameter in named.items() for of in STATES}

    def set_weights(self, named: Named, weights: Any) -> None:
        """Put `weights` in the place of the model's. There must have been a step before."""
        gathered = import_module("deepspeed.runtime.zero").GatheredParameters
        for name, parameter in named.items():
            with gathered([parameter], modifier_rank=0), torch.no_grad():  # what the next step computes with
                parameter.copy_(weights[name])
            self._fragments.safe_set_full_fp32_param(parameter, weights[name])  # what the optimizer goes on from

    def take_over(self, named: Named, weights: Any, states: Any, steps: int) -> None:
        """Go on from `weights` and `states` after `steps` steps. There must have been a step before, whatever it was."""
        self.set_weights(named, weights)
        for name, parameter in named.items():
            for of in STATES:
                self._fragments.safe_set_full_optimizer_state(parameter, states[f"{name}/{of}"], of)
        for state in self.optimizer.optimizer.state.values():
            state["step"].fill_(steps)
