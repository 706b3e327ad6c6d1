"""The protocol that every objective follows."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from xlm_train.data.datamodule import Batch, Reader


class Objective(Reader, Protocol):
    """What is learned from a slot. It is made from a `TrainingText` and its own settings.

    `streams` are what the order divides into slots. `batch` is a pure function of the slot and its generator, so a
    resumed run and any number of processes read the same. `loss` is the mean, in nats, over the slot's own targets; a
    step averages its slots. `evaluation` names how the model is scored (xlm_train/evaluation): "causal", "masked" or
    "translation"; an objective of translation trains a `Seq2Seq`, and has `directions`, the languages (source, target)
    that validation translates.
    `mask_share` is the share of the positions that are predicted, each seeing all others; None: each sees those before
    it, and all are predicted. The arithmetic of a step is counted by it.
    """

    @property
    def evaluation(self) -> str:
        """How a model that learned this is scored."""

    @property
    def mask_share(self) -> float | None:
        """Share of the positions that are predicted; None: causal."""

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Compute the loss of one slot: a float32 scalar."""

    def empty_batch(self) -> Batch:
        """Make the smallest batch whose loss reaches every parameter: two tokens that mean nothing."""
