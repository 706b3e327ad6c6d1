"""The protocol that every objective follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from xlm_train.data.datamodule import Batch, Reader
from xlm_train.model.flops import Row


class Objective(Reader, Protocol):
    """What is learned from a slot. It is made from a `TrainingText` and its own settings.

    `streams` are what the order divides into slots. `batch` is a pure function of the slot and its generator, so a
    resumed run and any number of processes read the same. `loss` is the mean, in nats, over the slot's own targets; a
    step averages its slots. `evaluation` names how the model is scored (xlm_train/evaluation): "causal", "masked" or
    "translation"; an objective of translation trains a `Seq2Seq`, and has `directions`, the languages (source, target)
    that validation translates.
    `rows` say what the model does with a row of each stream, on average: by them the arithmetic of a step is counted.

    Two attributes of the class tell a plan as much before there is a corpus (see `row_of`): `reads`, "windows" (of
    data.bptt tokens), "sentences" or "pairs" (of like lengths, data.tokens_per_slot together), and `decodes`, where
    the model first translates what it reads.
    """

    @property
    def evaluation(self) -> str:
        """How a model that learned this is scored."""

    @property
    def rows(self) -> Mapping[str, Row]:
        """Stream -> its mean row."""

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Compute the loss of one slot: a float32 scalar."""

    def empty_batch(self) -> Batch:
        """Make the smallest batch whose loss reaches every parameter: two tokens that mean nothing."""


def row_of(kind: Any, length: float, mask_share: float | None = None) -> Row:
    """What the model does with a row of an objective.

    Args:
        kind: The objective, or its class. Without `reads` and `evaluation` it is taken for a causal one on windows.
        length: Tokens of a window, or of a sentence with both eos; of a pair both sides are as long, and so is a translation
            that is made first.
        mask_share: As in `Row`.
    """
    of_pair = getattr(kind, "reads", "windows") == "pairs"
    tokens = 2 * length if of_pair else length
    if getattr(kind, "evaluation", "causal") == "translation":
        return Row(tokens, length - 1, source=length, decodes=getattr(kind, "decodes", False))
    return Row(tokens, tokens - (mask_share is None), mask_share)  # the last token of a causal row is a target only
