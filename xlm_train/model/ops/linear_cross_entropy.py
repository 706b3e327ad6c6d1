"""Softmax cross-entropy over a large vocabulary, a few tokens at a time.

Full logits of one GPU's 16,320 predictions over 64,699 words are 4.2 GB in float32, and again for their gradient.
Here a chunk of tokens goes through the softmax at once, and its gradient is formed while its logits are there, in the
forward pass: three matrix products in all, as many as the plain loss needs, nothing computed twice. What lies between
the products is kept to four passes over a chunk, and factors ride on the products: a pass over the logits or over the
(V, D) gradient costs what 2 % of a product does. Between a CPU's bfloat16 products all is float32, a few tokens at a time
in the cache. Between a GPU's bfloat16 products nothing as large as the logits is float32 outside the kernels: memory is
what these passes wait for.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xlm_train.model.ops.casts import cast
from xlm_train.model.ops.matmul import product, product_into
from xlm_train.runtime import device as host

CHUNK_ELEMENTS = 2**25  # logits held at once on a CPU: 128 MiB in float32
GPU_CHUNK_ELEMENTS = (
    2**28
)  # on a GPU: 512 MiB in half precision; fewer, larger products and passes over the (V, D) gradient
WIDENED_ELEMENTS = 2**20  # of them in float32 at once, where a CPU's products are in bfloat16: they stay in the cache


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_N: Tensor, n_words: int | None = None
) -> Tensor:
    """Mean cross-entropy in nats of softmax(hidden @ weight.T + bias) against the targets.

    Under autocast the matrix products run in the autocast dtype; softmax, sums and the gradients of weight and bias are
    float32.

    Args:
        hidden_ND: Hidden states.
        weight_VD: Of the softmax layer.
        bias_V: Of the softmax layer.
        targets_N: Ids in [0, n_words).
        n_words: Rows of weight and bias that are real words (default: all); the rest take no part in the softmax and
            get no gradient.

    Returns:
        A float32 scalar (float64 for float64 inputs).
    """
    n_words = weight_VD.shape[0] if n_words is None else n_words
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, bias_V, targets_N, n_words, dtype)


def tokens_at_once(count: int, rows: int, gpu: bool) -> int:
    """How many of `count` tokens go through a softmax over `rows` words together.

    Args:
        count: Tokens that are predicted.
        rows: Of the softmax layer, padding rows of the vocabulary too.
        gpu: A GPU holds more logits at once than a CPU.
    """
    chunk = max(1, (GPU_CHUNK_ELEMENTS if gpu else CHUNK_ELEMENTS) // rows)
    chunk -= chunk % 64 if chunk > 64 else 0  # products like round sizes
    return min(count, chunk)


def tied_lookup(weight_VD: Tensor, tokens_BT: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """Embeddings (B, T, D) of the tokens, and the weight (V, D) for the softmax layer that shares it.

    What the softmax layer sends back becomes the weight's gradient itself; the lookup's rows are added into it. Tokens
    equal to `padding` send nothing back.

    Args:
        weight_VD: Embeddings, which are the softmax layer's weights too.
        tokens_BT: Ids.
        padding: The id whose embeddings get no gradient from the lookup.
    """
    return _TiedLookup.apply(weight_VD, tokens_BT, padding)  # type: ignore[no-any-return]


class _TiedLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, padding: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens)
        ctx.padding = padding
        return F.embedding(tokens, weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rows_grad: Tensor, weight_grad: Tensor) -> tuple[Tensor, None, None]:
        (tokens,) = ctx.saved_tensors
        rows = rows_grad.masked_fill((tokens == ctx.padding)[..., None], 0.0).flatten(0, 1)
        if weight_grad.device.type == "cpu":
            weight_grad.index_add_(0, tokens.flatten(), rows)
        else:  # index_add_ adds in no fixed order on a GPU; this sorts first
            weight_grad.index_put_((tokens.flatten(),), rows, accumulate=True)
        return weight_grad, None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, n_words: int, dtype: torch.dtype
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return _forward(ctx, hidden, weight, bias, targets, n_words, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients were formed for a loss that counts once. What it really counts (a share of a step's slots, the
        # loss scale) is applied here in the accumulators' own precision: in float16 it would underflow or overflow.
        hidden_grad, weight_grad, bias_grad = gradients = ctx.gradients
        ctx.gradients = None
        if not host.is_free_to_read(grad) or grad != 1.0:  # a pass over (V, D) is not free
            for gradient in gradients:
                if gradient is not None:
                    gradient *= grad
        hidden_result = None if hidden_grad is None else hidden_grad.to(ctx.hidden_dtype)
        return hidden_result, weight_grad, bias_grad, None, None, None


def _forward(
    ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, n_words: int, dtype: torch.dtype
) -> Tensor:
    count, rows = hidden.shape[0], weight.shape[0]
    device = hidden.device
    wide = torch.promote_types(dtype, torch.float32)  # softmax and sums: float32, or float64 for float64 inputs
    need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
    chunk = tokens_at_once(count, rows, device.type != "cpu")
    group = max(1, WIDENED_ELEMENTS // rows) if dtype != wide and device.type == "cpu" else chunk

    low_weight, low_hidden, low_bias = cast(weight, dtype), hidden.to(dtype), bias.to(dtype)
    hidden_grad = torch.empty(hidden.shape, dtype=wide, device=device) if need_hidden else None
    weight_grad = torch.empty(weight.shape, dtype=wide, device=device) if need_weight else None
    bias_grad = torch.zeros(rows, dtype=wide, device=device) if need_bias else None
    losses = torch.empty(count, dtype=wide, device=device)
    share = torch.full((chunk,), 1 / count, dtype=wide, device=device)  # of one token in the mean

    for start in range(0, count, chunk):
        end = min(start + chunk, count)
        here = low_hidden[start:end]
        logits = product(here, low_weight.t(), low_bias)
        if n_words < rows:
            logits[:, n_words:] = float("-inf")
        if dtype == torch.bfloat16 and device.type != "cpu":
            losses[start:end], logits = bfloat16_softmax(logits, targets[start:end, None])
            if bias_grad is not None:
                bias_grad.add_(logits.sum(0, dtype=wide), alpha=1 / count)
        else:
            for first in range(start, end, group):
                last = min(first + group, end)
                part, target = logits[first - start : last - start], targets[first:last, None]
                highest = part.amax(dim=1, keepdim=True).to(wide)
                wanted = part.gather(1, target).to(wide)
                probabilities = torch.softmax(part, dim=1, dtype=wide, out=part if dtype == wide else None)
                # the highest probability is exp(0) / sum of exp(logit - highest)
                losses[first:last] = (highest - wanted - probabilities.amax(dim=1, keepdim=True).log()).squeeze(1)
                if any(ctx.needs_input_grad):  # the logits' place is taken by their gradient, but for 1 / count
                    probabilities.scatter_add_(1, target, torch.full_like(wanted, -1.0))
                    if bias_grad is not None:
                        bias_grad.addmv_(probabilities.t(), share[: last - first])
                    if dtype != wide:
                        part.copy_(probabilities)
                del part, probabilities
        if hidden_grad is not None:
            hidden_grad[start:end].copy_(product(logits, low_weight)).mul_(1 / count)  # wide first: 1 / count is small
        if weight_grad is not None:
            product_into(weight_grad, logits.t(), here, alpha=1 / count, add=start > 0)
        del logits  # its memory is free for the next
    ctx.gradients = (hidden_grad, weight_grad, bias_grad)
    ctx.hidden_dtype = hidden.dtype
    return losses.mean()


def bfloat16_softmax(logits_NV: Tensor, targets_N1: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies (N,) in float32 and their gradients (N, V) by the logits, both matrices in bfloat16.

    PyTorch's softmax computes in float32 and rounds what it writes. So each probability has its own relative error, and
    what must not be taken as one minus another is not: a target's gradient is minus the sum of all others', which keeps
    its digits where the target is nearly certain, and there the loss comes from the same sum. Elsewhere the loss comes
    from the most likely word, whose probability gives the log of the sum of exponentials to 2^-9 of a nat: no more than
    what rounding did to the logits. (Not for float16: a nearly certain target leaves the others less than its least number.)
    """
    wide = torch.float32
    gradients = torch.softmax(logits_NV, dim=1)
    top, word = gradients.max(dim=1, keepdim=True)
    log_of_sum = logits_NV.gather(1, word).to(wide) - top.to(wide).log()
    gradients.scatter_(1, targets_N1, 0.0)
    others = gradients.sum(1, keepdim=True, dtype=wide)
    gradients.scatter_(1, targets_N1, -others.to(gradients.dtype))
    losses = torch.where(others < 0.5, -torch.log1p(-others), log_of_sum - logits_NV.gather(1, targets_N1).to(wide))
    return losses.squeeze(1), gradients
