"""Matrix products of the linear layers and of the softmax, through the faster of PyTorch's two libraries.

In float32 on a CPU PyTorch takes MKL, which gives AMD's processors its AVX2 kernels although the newer ones have
AVX-512. oneDNN, which PyTorch carries too, gives them AVX-512's. Measured for these products at the real shape, two cores:
EPYC Zen 5: oneDNN 1.9 to 2.3 times as fast; Xeon (Sapphire Rapids class): MKL 1.0 to 1.4 times as fast. So oneDNN is
taken on AMD's processors with AVX-512. On Zen 4, which works through 512 bits in two halves and so has the same peak with AVX2,
oneDNN is 1.13 to 1.3 times as fast at x @ W.t() and grad @ W, 0.94 to 1.12 at grad.t() @ x (EPYC, one thread, 1,024 tokens; two
more rows of training ran beside it).

Where few tokens are read at once, as in decoding, MKL takes up to 1.8 times as long for x @ W.t() as for W @ x.t(): `linear` takes
the latter there (one thread of the Xeon; 8 to 64 rows; below 8 it is the other way round, above there is no difference).

Which one is taken depends on the processor and the sizes alone, never on a timing: the same run on the same machine does
the same arithmetic. In bfloat16 PyTorch takes oneDNN by itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from xlm_train.model.ops.casts import cast
from xlm_train.runtime.device import cpu_flags

SMALLEST = 2**22  # multiplications below which oneDNN's start-up (some 10 microseconds a call) eats its gain
FEW_ROWS = range(8, 65)
BLOCK_BYTES = 2**22  # of a product on its way into a matrix: stays in the cache, so the way costs nothing


def _is_better_served_by_onednn() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # what torch.compile makes of a Linear on a CPU
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and "AuthenticAMD" in cpu_flags()
    )


ONEDNN = _is_better_served_by_onednn()


def _is_for_onednn(a_NK: Tensor, b_KM: Tensor) -> bool:
    return (
        ONEDNN
        and a_NK.dtype == torch.float32
        and a_NK.device.type == "cpu"
        and a_NK.numel() * b_KM.shape[1] >= SMALLEST
    )


def product(a_NK: Tensor, b_KM: Tensor, bias_M: Tensor | None = None) -> Tensor:
    """New memory (N, M) with a @ b + bias; either matrix may be a transposed view; no gradients flow through it.

    Args:
        a_NK: The left matrix.
        b_KM: The right one, of the same dtype.
        bias_M: Added to every row; None: nothing is.
    """
    if _is_for_onednn(a_NK, b_KM):
        return torch.ops.mkldnn._linear_pointwise(a_NK, b_KM.t(), bias_M, "none", [], "")  # type: ignore[no-any-return]
    return a_NK @ b_KM if bias_M is None else torch.addmm(bias_M, a_NK, b_KM)


def product_into(into_NM: Tensor, a_NK: Tensor, b_KM: Tensor, alpha: float, add: bool) -> None:
    """Write alpha * a @ b into a matrix, or add it, without a second matrix of the size of `into` or `a` on a CPU.

    `into` may be of a wider type than the products.

    Args:
        into_NM: Changed in place.
        a_NK: The left matrix.
        b_KM: The right one, of the same dtype.
        alpha: Factor of the product.
        add: Add to what is there; otherwise it is overwritten unread.
    """
    if into_NM.dtype == a_NK.dtype and not _is_for_onednn(a_NK, b_KM):
        into_NM.addmm_(a_NK, b_KM, beta=float(add), alpha=alpha)  # beta=0: what is there is not read
        return
    on_cpu = into_NM.device.type == "cpu"
    rows = max(1, BLOCK_BYTES // (into_NM.shape[1] * into_NM.element_size())) if on_cpu else into_NM.shape[0]
    for start in range(0, into_NM.shape[0], rows):
        block, found = into_NM[start : start + rows], product(a_NK[start : start + rows], b_KM)
        block.add_(found, alpha=alpha) if add else block.copy_(found).mul_(alpha)  # alpha in the wider type


def linear(x: Tensor, weight_MK: Tensor, bias_M: Tensor) -> Tensor:
    """torch.nn.functional.linear of inputs (..., K), its products through the faster way; (..., M), in any layout.

    Args:
        x: Inputs.
        weight_MK: Of the layer.
        bias_M: Of the layer.
    """
    device = x.device.type
    casts = torch.is_autocast_enabled(device)
    if casts and not torch.is_grad_enabled():
        # Autocast's own cache of casts is none in inference mode (a cast a word when decoding), and up to torch 2.10 leaves
        # behind what a training pass cannot use.
        dtype = torch.get_autocast_dtype(device)
        return F.linear(x.to(dtype), cast(weight_MK, dtype), bias_M.to(dtype))
    if x.ndim < 2 or casts:
        return F.linear(x, weight_MK, bias_M)
    if _is_for_onednn(x, weight_MK.t()):
        return _Linear.apply(x, weight_MK, bias_M)  # type: ignore[no-any-return]
    if not torch.is_grad_enabled() and _has_few_rows(x, weight_MK):
        return torch.addmm(bias_M[:, None], weight_MK, x.flatten(0, -2).t()).t().unflatten(0, x.shape[:-1])
    return F.linear(x, weight_MK, bias_M)


def _has_few_rows(x: Tensor, weight_MK: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkl.is_available()
        and x.numel() // x.shape[-1] in FEW_ROWS
        and x.numel() * weight_MK.shape[0] >= SMALLEST
    )


class Linear(nn.Linear):
    """torch.nn.Linear through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., out_features)."""
        return linear(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x.flatten(0, -2), weight.t(), bias).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        flat = grad.flatten(0, -2)
        return (
            product(flat, weight).view(x.shape) if for_x else None,
            product(flat.t(), x.flatten(0, -2)) if for_weight else None,
            flat.sum(0) if for_bias else None,
        )
