"""How well a model predicts hidden words of pairs of sentences: translation language modelling as the original scores it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlm_train.data.concatenation import JoinedPairs
from xlm_train.data.masking import evaluation_mask
from xlm_train.evaluation.perplexity import masked_sums
from xlm_train.model.transformer import XLM
from xlm_train.model.translation import without_dropout

BATCH_PAIRS = 32  # the masks depend on it: the original's default


@torch.no_grad()
def score_pairs(
    model: XLM,
    pairs: JoinedPairs,
    share: tuple[int, int] = (0, 1),
    batch_pairs: int = BATCH_PAIRS,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Score pairs of one split under masks that never change. All chosen words become the mask token.

    Args:
        model: Its dropout is off meanwhile.
        pairs: The text.
        share: (r, n): batches r, r + n, r + 2 n ... are scored here. All masks are drawn, whatever the share.
        batch_pairs: Pairs of a batch, at most.
        device: Where the model is.

    Returns:
        A (3,) float64 tensor of cross-entropy in nats, correct predictions and predicted tokens. Processes that score
        disjoint shares merge their results by adding the tensors.

    Source: the original's evaluation/evaluator.py.
    """
    longest = model.shape.max_positions
    random = np.random.RandomState(0)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    with without_dropout(model):
        for number, batch in enumerate(batches_of(pairs, longest, batch_pairs)):
            lengths = pairs.lengths(batch).sum(axis=1)
            chosen_TB = evaluation_mask(lengths.tolist(), int(lengths.max()), random)
            if number % share[1] == share[0]:
                rows = pairs.read(batch).within(longest)
                sums += masked_sums(
                    model,
                    torch.from_numpy(rows.tokens_BT),
                    torch.from_numpy(chosen_TB.T),
                    torch.from_numpy(rows.langs_BT),
                    device,
                    torch.from_numpy(rows.lengths_B),
                    torch.from_numpy(rows.positions_BT),
                )
    return sums


def batches_of(pairs: JoinedPairs, longest: int, batch_pairs: int = BATCH_PAIRS) -> Sequence[NDArray[np.int64]]:
    """Cut pairs into batches of like lengths, in the original's order.

    Args:
        pairs: Of one split.
        longest: Tokens of a side, both eos included, that the model has positions for. Pairs with a longer side are left
            out; the original fails on them.
        batch_pairs: Pairs of a batch, at most; batches differ by one pair.

    Returns:
        Of each batch the numbers of its pairs.
    """
    sides = pairs.lengths(np.arange(pairs.n))
    return by_length(sides, sides.max(axis=1) <= longest, batch_pairs)


def by_length(lengths_N2: NDArray[np.int64], fitting_N: NDArray[np.bool_], size: int) -> Sequence[NDArray[np.int64]]:
    """Cut those of N pairs that fit into batches of `size` at most, by the sum of the lengths of their sides.

    Args:
        lengths_N2: Tokens of both sides of each pair.
        fitting_N: Which pairs are taken.
        size: Pairs of a batch, at most; batches differ by one pair.

    Returns:
        Of each batch the numbers of its pairs; none where no pair fits.
    """
    fitting = np.flatnonzero(fitting_N)
    fitting = fitting[np.argsort(lengths_N2[fitting].sum(axis=1), kind="stable")]
    return np.array_split(fitting, -(-len(fitting) // size)) if len(fitting) else []
