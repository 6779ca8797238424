"""Weights divided over the ranks of a cell (FSDP: Zhao et al. 2023; PyTorch's fully_shard).

Each rank keeps a share of every decoder layer, of its gradients and of its optimizer states. A
layer is complete only while it computes. We have run this on CPUs by gloo, never on a card.
"""
# ruff: noqa: TID253

from typing import Any, cast

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(model: Any, device: torch.device) -> Any:
    """Reduce `model`, complete on the CPU or on `device`, to this rank's share on `device`.

    From then on gradients are summed over the ranks.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in (*_layers(model), model):
        fully_shard(module, mesh=mesh)
        # The loss is already divided by the learned tokens of all ranks.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return model


def _layers(model: Any) -> list[Any]:
    """The decoder layers, by the class names that transformers lists in `_no_split_modules`."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(base._no_split_modules or ())
    return [module for module in base.modules() if type(module).__name__ in names]


def put_away(model: Any) -> None:
    """Shard the weights that an evaluation left complete: a forward pass without backward leaves
    embedding and head so."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole_weights(model: Any) -> dict[str, torch.Tensor]:
    """The complete trainable weights of a sharded model, on the first rank's CPU; the other ranks
    get {}.

    All ranks call this together.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return cast("dict[str, torch.Tensor]", get_model_state_dict(model, options=options))
