"""Floating-point operations of the model's matrix products, by part. A multiplication and its addition count as two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xlm_train.model.transformer import ModelShape


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one part of the model for one position.

    Args:
        forward: Of the forward pass.
        backward: Of the backward pass.
        recompute: Of its forward pass again, under activation checkpointing.
    """

    forward: int
    backward: int
    recompute: int

    @property
    def total(self) -> int:
        """All three."""
        return self.forward + self.backward + self.recompute


def flops_per_token(
    shape: ModelShape, positions: int, recompute: bool, mask_share: float | None = None
) -> Mapping[str, Flops]:
    """The floating-point operations of one position of a window, by part of the model.

    Every product costs twice as much backward as forward (one for the inputs, one for the weights). In a causal model
    a query meets (positions + 1) / 2 keys on average, and the kernels leave the others out. Embeddings are
    looked up, not multiplied. The output softmax covers the padding rows of the vocabulary too; its gradient is
    formed once, so it is never recomputed. Not counted: norms, GELU, dropout, the softmax itself, the update (about
    1 % at width 1024).

    Args:
        shape: Of the model.
        positions: Of a window that the model reads: bptt - 1 of a causal model, which predicts at each of them.
        recompute: With activation checkpointing.
        mask_share: Share of the positions at which a masked model predicts: only these reach the softmax, and every
            query meets all keys. None: the model is causal.
    """
    D, L = shape.dim, shape.n_layers
    keys = (positions + 1) / 2 if mask_share is None else positions
    forward = {
        "embedding look-up": 0,
        "attention projections": L * 2 * 4 * D * D,
        "attention scores": L * 2 * 2 * D * keys,  # queries with keys, weights with values
        "feed-forward": L * 2 * 2 * D * shape.ffn_dim,
        "output softmax": 2 * shape.n_rows * D * (1 if mask_share is None else mask_share),
    }
    in_blocks = {"attention projections", "attention scores", "feed-forward"}
    return {
        part: Flops(round(count), round(2 * count), round(count) if recompute and part in in_blocks else 0)
        for part, count in forward.items()
    }


def training_flops_per_token(shape: ModelShape, bptt: int, recompute: bool, mask_share: float | None = None) -> float:
    """Return the FLOPs of a training step per token of windows of `bptt` tokens; arguments as `flops_per_token`."""
    positions = bptt - 1 if mask_share is None else bptt  # the last token of a causal window is a target only
    parts = flops_per_token(shape, positions, recompute, mask_share)
    return sum(part.total for part in parts.values()) * positions / bptt
