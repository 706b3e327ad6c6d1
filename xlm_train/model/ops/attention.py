"""Self-attention of one fused query/key/value product.

On a GPU PyTorch's scaled_dot_product_attention chooses the kernel. On a CPU it has none that knows dropout and falls
back to whole squares of scores, whose noise it draws one number after another on one thread. Here noise is cheap (see
dropout.py), and under a causal mask a block of queries meets only the keys it may see. Measured at the real shape,
4 streams, forward and backward of a causal layer, one thread: 64 -> 43 ms with dropout, 49 -> 37 ms without.

Between a CPU's bfloat16 products it computes in float32: its own products are few, and scores lose nothing.

Shapes: B streams, T positions, H heads, E width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xlm_train.model.ops.dropout import keep_mask

BLOCK = 128  # queries at once; measured best of 64, 128, 256


def attention(qkv_BT3HE: Tensor, dropout: float, causal: bool, visible: Tensor | None = None) -> Tensor:
    """Contexts (B, T, H, E).

    Args:
        qkv_BT3HE: Queries, keys and values.
        dropout: Of the attention weights.
        causal: Position p sees 0..p; then `visible` is not used.
        visible: Otherwise, which keys a query sees, at least one: booleans (B, H, T, T), where all but the last size
            may be 1; None: all.
    """
    visible = None if causal else visible
    if qkv_BT3HE.device.type == "cpu":
        return _BlockedAttention.apply(qkv_BT3HE, dropout, causal, visible)  # type: ignore[no-any-return]
    q, k, v = qkv_BT3HE.permute(2, 0, 3, 1, 4)  # views: no copy before the kernel
    return F.scaled_dot_product_attention(q, k, v, visible, dropout, causal).transpose(1, 2)


class _BlockedAttention(torch.autograd.Function):
    """Keeps q, k, v, the weights (under a causal mask those below the diagonal's blocks) and the dropout masks."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, qkv: Tensor, dropout: float, causal: bool, visible: Tensor | None) -> Tensor:
        B, T, _, H, E = qkv.shape
        wide = torch.promote_types(qkv.dtype, torch.float32)
        q, k, v = torch.empty(3, B, H, T, E, dtype=wide).copy_(qkv.permute(2, 0, 3, 1, 4)).flatten(1, 2)
        bias = _bias(B, T, H, causal, visible).to(wide)
        contexts, saved = [], []
        for start, end, seen in _blocks(T, causal):
            weights = torch.baddbmm(
                bias[:, start:end, :seen], q[:, start:end], k[:, :seen].transpose(1, 2), alpha=E**-0.5
            )
            torch.softmax(weights, dim=-1, out=weights)
            saved.append(weights)
            if dropout:
                keep = keep_mask(weights.shape, dropout)
                saved.append(keep)
                weights = weights * keep
                weights *= 1 / (1 - dropout)
            contexts.append(torch.bmm(weights, v[:, :seen]))
        ctx.save_for_backward(q, k, v, *saved)
        ctx.dropout, ctx.causal = dropout, causal
        context_BTHE = torch.cat(contexts, dim=1).view(B, H, T, E).transpose(1, 2)
        return torch.empty(B, T, H, E, dtype=qkv.dtype).copy_(context_BTHE)

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        q, k, v, *saved = ctx.saved_tensors
        B, T, H, E = grad.shape
        scale, dropout = E**-0.5, ctx.dropout
        d_qkv = torch.empty(B, T, 3, H, E, dtype=grad.dtype)
        grad = torch.empty(B, H, T, E, dtype=q.dtype).copy_(grad.transpose(1, 2)).flatten(0, 1)
        dq, dk, dv = torch.empty(3, B * H, T, E, dtype=q.dtype)
        for start, end, seen in reversed(_blocks(T, ctx.causal)):  # the last meets all keys: it writes, the others add
            here = grad[:, start:end]
            d_weights = torch.bmm(here, v[:, :seen].transpose(1, 2))
            keep = saved.pop() if dropout else None
            weights = dropped = saved.pop()
            if keep is not None:
                dropped = (weights * keep).mul_(1 / (1 - dropout))
                d_weights.mul_(keep).mul_(1 / (1 - dropout))
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_scores *= scale
            dq[:, start:end] = torch.bmm(d_scores, k[:, :seen])
            if end == T:
                torch.bmm(d_scores.transpose(1, 2), q[:, start:end], out=dk)
                torch.bmm(dropped.transpose(1, 2), here, out=dv)
            else:
                dk[:, :seen] += torch.bmm(d_scores.transpose(1, 2), q[:, start:end])
                dv[:, :seen] += torch.bmm(dropped.transpose(1, 2), here)
        for place, part in enumerate((dq, dk, dv)):
            d_qkv[:, :, place] = part.view(B, H, T, E).transpose(1, 2)
        return d_qkv, None, None, None


def _blocks(T: int, causal: bool) -> Sequence[tuple[int, int, int]]:
    """Start and end of each block of queries, and how many keys it meets."""
    starts = range(0, T, BLOCK)
    return [(start, min(start + BLOCK, T), min(start + BLOCK, T) if causal else T) for start in starts]


def _bias(B: int, T: int, H: int, causal: bool, visible: Tensor | None) -> Tensor:
    """What scores begin with, 0 for a key that is seen and -inf for others, as a view of shape (B * H or 1, T, T)."""
    if causal:
        return torch.full((1, T, T), -math.inf).triu_(1)
    if visible is None:
        return torch.zeros(1, 1, 1).expand(1, T, T)
    bias = torch.zeros(visible.shape).masked_fill_(~visible, -math.inf)
    return bias.expand(B, H, -1, -1).flatten(0, 1).expand(-1, T, T)
