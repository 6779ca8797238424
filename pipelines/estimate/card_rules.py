"""What CUDA does otherwise than a CPU, for a rehearsal that has no card: dropout keeps one byte a value, attention never
spells out its scores, and autocast computes norms and softmax in float32 (PyTorch's list of CUDA operators for autocast)."""
# ruff: noqa: TID253

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pipelines.train.dropout import CheapDropout

IN_FLOAT32 = {functional.layer_norm, functional.softmax, functional.log_softmax, torch.softmax, torch.log_softmax}


class AsOnCuda(TorchFunctionMode):
    """Carries out the few functions that differ in memory as CUDA's kernels would."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is functional.dropout:
            return _dropout(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            kwargs["dropout_p"] = 0.0
        if func in IN_FLOAT32 and args[0].is_floating_point():
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return CheapDropout(p).train(training and p > 0)(input)
