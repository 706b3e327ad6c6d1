"""Floating-point operations of the model's matrix products, by part. A multiplication and its addition count as two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xlm_train.model.transformer import ModelShape

DECODING = "back-translation"  # the part that is not learned from


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one part of the model, for one position or for a whole row.

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


@dataclass(frozen=True)
class Row:
    """What the model does with one row of a slot: a window, a pair, or a sentence and its source. Padding is not counted.

    Args:
        tokens: Of the row, as a run's tokens are counted: a window's, both sides of a pair, or a sentence by itself.
        positions: That the language model reads, or the decoder.
        mask_share: Share of the positions at which a masked model predicts, each seeing all others; None: at each, from
            those before it.
        source: Positions that the encoder reads; 0: there is none.
        decodes: The source is a translation of the row itself, made in the same step by the same model.
    """

    tokens: float
    positions: float
    mask_share: float | None = None
    source: float = 0
    decodes: bool = False


def flops_per_token(
    shape: ModelShape, positions: float, recompute: bool, mask_share: float | None = None
) -> Mapping[str, Flops]:
    """The floating-point operations of one position of a window, by part of the model.

    Every product costs twice as much backward as forward (one for the inputs, one for the weights). In a causal model
    a query meets (positions + 1) / 2 keys on average, and the kernels leave the others out. Embeddings are
    looked up, not multiplied. The output softmax covers the padding rows of the vocabulary too; its gradient is
    formed once, so it is never recomputed. Of a masked model's last block, what comes behind its attention is computed at the
    predicted positions alone. Not counted: norms, GELU, dropout, the softmax itself, the update (about
    1 % at width 1024).

    Args:
        shape: Of the model.
        positions: Of a window that the model reads: bptt - 1 of a causal model, which predicts at each of them.
        recompute: With activation checkpointing.
        mask_share: As in `Row`.
    """
    D, L = shape.dim, shape.n_layers
    keys = (positions + 1) / 2 if mask_share is None else positions
    wanted = 1 if mask_share is None else mask_share  # of the last block's outputs
    forward = {
        "embedding look-up": 0,
        "attention projections": 2 * (4 * L - 1 + wanted) * D * D,
        "attention scores": L * 2 * 2 * D * keys,  # queries with keys, weights with values
        "feed-forward": 2 * 2 * (L - 1 + wanted) * D * shape.ffn_dim,
        "output softmax": 2 * shape.n_rows * D * wanted,
    }
    in_blocks = {"attention projections", "attention scores", "feed-forward"}
    return {
        part: Flops(round(count), round(2 * count), round(count) if recompute and part in in_blocks else 0)
        for part, count in forward.items()
    }


def row_flops(shape: ModelShape, row: Row, recompute: bool) -> Mapping[str, Flops]:
    """The floating-point operations of a training step on one row, by part of the model; counted as `flops_per_token`.

    Of a translation model both sides are in each part, and attention over the source is a part by itself. What
    decodes costs a forward pass of each word, and of the encoder on the sentence; a translation is taken to be as long as
    `row.source` says.

    Args:
        shape: Of the model, or of each of its sides.
        row: What it reads.
        recompute: With activation checkpointing.
    """
    if not row.source:
        parts = flops_per_token(shape, row.positions, recompute, row.mask_share)
        return {
            name: Flops(*(round(n * row.positions) for n in (part.forward, part.backward, part.recompute)))
            for name, part in parts.items()
        }
    forward = _translation(shape, row.source, row.positions)
    again = dict.fromkeys(forward, 0.0)
    if recompute:
        keys = shape.n_layers * 4 * shape.dim**2 * row.source  # of the source: made outside the blocks, once
        again = {
            **forward,
            "output softmax": 0.0,
            "attention over the source": forward["attention over the source"] - keys,
        }
    parts = {name: Flops(round(n), round(2 * n), round(again[name])) for name, n in forward.items()}
    if row.decodes:
        parts[DECODING] = Flops(round(sum(_translation(shape, row.positions + 1, row.source - 1).values())), 0, 0)
    return parts


def _translation(shape: ModelShape, source: float, positions: float) -> dict[str, float]:
    """Operations of a forward pass by part: the encoder on `source` positions, the decoder on `positions`."""
    D, L, both = shape.dim, shape.n_layers, source + positions
    return {
        "embedding look-up": 0.0,
        "attention projections": L * 2 * 4 * D * D * both,
        "attention scores": L * 2 * 2 * D * (source * source + positions * (positions + 1) / 2),
        # queries and outputs of the target, keys and values of the source; then as the scores
        "attention over the source": L * (2 * 2 * D * D * both + 2 * 2 * D * source * positions),
        "feed-forward": L * 2 * 2 * D * shape.ffn_dim * both,
        "output softmax": 2.0 * shape.n_rows * D * positions,
    }


def training_flops_per_token(shape: ModelShape, row: Row, recompute: bool) -> float:
    """Return the FLOPs of a training step per token of a row, as `Row.tokens` counts them.

    Args:
        shape: Of the model, or of each of its sides.
        row: What it reads.
        recompute: With activation checkpointing.
    """
    return sum(part.total for part in row_flops(shape, row, recompute).values()) / row.tokens
