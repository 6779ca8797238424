"""Weights divided over the ranks of a cell: each keeps a share of every decoder layer, of its gradients and of the optimizer's
states, and a layer is put together for as long as it computes (FSDP: Zhao et al. 2023; PyTorch's fully_shard).

It has been run on CPUs, by gloo, never on a card by us.
"""
# ruff: noqa: TID253

from typing import Any, cast

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(model: Any, device: torch.device) -> Any:
    """`model`, whole on the CPU or on `device`, becomes this rank's share on `device`; gradients are summed over the ranks."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in (*_layers(model), model):
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)  # the loss is divided by the learned tokens of all ranks already
        module.set_force_sum_reduction_for_comms(True)
    return model


def _layers(model: Any) -> list[Any]:
    """The decoder layers, by the class names that transformers keeps for such uses."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(base._no_split_modules or ())
    return [module for module in base.modules() if type(module).__name__ in names]


def put_away(model: Any) -> None:
    """Drop what an evaluation has left together of a sharded model (a forward pass alone leaves embedding and head so)."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole_weights(model: Any) -> dict[str, torch.Tensor]:
    """What trains of a sharded model, put together on the first rank's CPU; the others get {}. All ranks call this together."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return cast("dict[str, torch.Tensor]", get_model_state_dict(model, options=options))
