"""DeepSpeed's ZeRO (Rajbhandari et al. 2020) over the ranks of a cell.

Stage 2 divides gradients and optimizer states, stage 3 the weights as well. The trainer calls
DeepSpeed directly, since accelerate would only pass the configuration on. We have run this on CPUs
by gloo, never on a card. DeepSpeed's own checkpoints are pickled; ours hold everything, gathered,
in the first rank's file.
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

# Adam's states by torch's names.
STATES = ("exp_avg", "exp_avg_sq")
Named = Mapping[str, torch.nn.Parameter]


class Zero:
    """DeepSpeed's `engine` around a model, and its steps.

    All ranks call `weights` and `states` together, and each gets all of them.
    """

    def __init__(self, model: Any, spec: dict[str, Any], device: torch.device, ranks: Ranks) -> None:
        """Divide `model` over `ranks`; the cell's own `deepspeed` configuration overrides the
        defaults.

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
        # By name, so that type checks need no installed DeepSpeed, which is an extra.
        deepspeed: Any = import_module("deepspeed")
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        defaults: dict[str, Any] = {
            # The value has no effect: the trainer says where a step ends, and the loss is already
            # divided.
            "train_micro_batch_size_per_gpu": 1,
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
        """Add the gradient of `loss` to the step's gradient; after the `last` loss it is summed
        over the ranks.

        DeepSpeed takes the mean over the ranks, hence the factor.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self._count)

    def step(self) -> float:
        """Clip, step and drop the gradients; returns their norm before clipping."""
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def forget(self) -> None:
        """Set the optimizer's states to zero. The tensors must stay, since DeepSpeed holds
        references into them."""
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
        """Replace the model's weights by `weights`. At least one step must have been taken."""
        gathered = import_module("deepspeed.runtime.zero").GatheredParameters
        for name, parameter in named.items():
            # The weights that the next step computes with.
            with gathered([parameter], modifier_rank=0), torch.no_grad():
                parameter.copy_(weights[name])
            # The master weights that the optimizer updates.
            self._fragments.safe_set_full_fp32_param(parameter, weights[name])

    def take_over(self, named: Named, weights: Any, states: Any, steps: int) -> None:
        """Resume from `weights` and `states` after `steps` steps. At least one step, of any kind,
        must have been taken."""
        self.set_weights(named, weights)
        for name, parameter in named.items():
            for of in STATES:
                self._fragments.safe_set_full_optimizer_state(parameter, states[f"{name}/{of}"], of)
        for state in self.optimizer.optimizer.state.values():
            state["step"].fill_(steps)
