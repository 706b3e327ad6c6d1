"""Dropout whose noise is cheap on a CPU.

PyTorch draws a CPU's Bernoulli noise one number after another on one thread (5 ns each; at the real shape and two
threads 4 % of a training step) and keeps it as float32 for the backward pass. Here 64 random bits serve four elements,
and the mask is kept as bytes. On a GPU PyTorch's own kernel does all this at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability p (on a CPU: p to 16 bits) and divide the others by 1 - p, in training.

    Args:
        x: Of any shape; it is not changed.
        p: Probability, below 1.
        training: Otherwise `x` itself comes back.
    """
    if not training or p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    return _Dropout.apply(x, p)  # type: ignore[no-any-return]


def keep_mask(shape: Sequence[int], p: float) -> Tensor:
    """Booleans on the CPU, each false with probability p rounded to a multiple of 2^-16, from torch's global generator."""
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # all 64 bits are random
    numbers = words.view(torch.int16)[:count].view(*shape)
    return numbers >= min(round(p * 2**16), 2**16 - 1) - 2**15


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        keep = keep_mask(x.shape, p)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - p)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (grad * keep).mul_(ctx.scale), None
