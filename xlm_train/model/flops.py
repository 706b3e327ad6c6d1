"""Floating-point operations of the model's matrix products, by part. A multiplication and its addition count as two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xlm_train.model.transformer import ModelShape


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one part of the model for one predicted token.

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


def flops_per_token(shape: ModelShape, positions: int, recompute: bool) -> Mapping[str, Flops]:
    """The floating-point operations of one predicted token, by part of the model.

    Every product costs twice as much backward as forward (one for the inputs, one for the weights). Attention is
    causal: a query meets (positions + 1) / 2 keys on average, and the kernels leave the others out. Embeddings are
    looked up, not multiplied. The output softmax covers the padding rows of the vocabulary too; its gradient is
    formed once, so it is never recomputed. Not counted: norms, GELU, dropout, the softmax itself, the update (about
    1 % at width 1024).

    Args:
        shape: Of the model.
        positions: Predicted tokens of a window: bptt - 1.
        recompute: With activation checkpointing.
    """
    D, L = shape.dim, shape.n_layers
    forward = {
        "embedding look-up": 0,
        "attention projections": L * 2 * 4 * D * D,
        "attention scores": L * 2 * D * (positions + 1),  # queries with keys, weights with values
        "feed-forward": L * 2 * 2 * D * shape.ffn_dim,
        "output softmax": 2 * shape.n_rows * D,
    }
    in_blocks = {"attention projections", "attention scores", "feed-forward"}
    return {
        part: Flops(count, 2 * count, count if recompute and part in in_blocks else 0)
        for part, count in forward.items()
    }


def training_flops_per_token(shape: ModelShape, bptt: int, recompute: bool) -> float:
    """Return the FLOPs of a training step per token read, in windows of `bptt` tokens, each predicting one less."""
    parts = flops_per_token(shape, bptt - 1, recompute)
    return sum(part.total for part in parts.values()) * (bptt - 1) / bptt
