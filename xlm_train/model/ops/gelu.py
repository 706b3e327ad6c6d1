"""GELU followed by a linear layer, without keeping the GELU's output."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xlm_train.model.ops.casts import cast
from xlm_train.model.ops.matmul import linear, product


def gelu_linear(x_NF: Tensor, weight_DF: Tensor, bias_D: Tensor) -> Tensor:
    """A linear layer of the GELU (erf form) of its input, which is computed again in the backward pass.

    GELU's output is the widest activation, a fifth of all that a block keeps, and costs 0.5 % of a step on a CPU.
    (torch.utils.checkpoint does the same for 0.4 ms of Python a call.) Under autocast the product runs in its dtype.

    Args:
        x_NF: Before the GELU; there may be more sizes before the last. It is kept for the backward pass.
        weight_DF: Of the layer.
        bias_D: Of the layer.
    """
    if not torch.is_grad_enabled():
        return linear(F.gelu(x_NF), weight_DF, bias_D)
    device = x_NF.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_NF.dtype
    return _GeluLinear.apply(x_NF, weight_DF, bias_D, dtype)  # type: ignore[no-any-return]


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        with torch.autocast(x.device.type, enabled=False):
            activated = F.gelu(x).to(dtype).flatten(0, -2)
            return product(activated, cast(weight, dtype).t(), bias.to(dtype)).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            flat = grad.flatten(0, -2)
            activated = F.gelu(x).to(grad.dtype).flatten(0, -2)
            weight_grad = product(flat.t(), activated).to(weight.dtype)
            del activated  # its memory is free for the next product
            back = product(flat, cast(weight, grad.dtype)).view(x.shape).to(x.dtype)
            return torch.ops.aten.gelu_backward(back, x), weight_grad, flat.sum(0, dtype=weight.dtype), None
