"""The protocol that every objective follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from xlm_train.data.datamodule import Batch
from xlm_train.data.order import Slot
from xlm_train.model.transformer import XLM


class Objective(Protocol):
    """What is learned from a slot.

    `streams` names what the order divides into slots. `batch` is a pure function of the slot and its generator, so a
    resumed run and any number of processes read the same. `loss` is the mean, in nats, over the slot's own targets; a
    step averages its slots.
    """

    @property
    def streams(self) -> Sequence[str]:
        """Names of the streams, in id order."""

    def batch(self, slot: Slot, generator: np.random.Generator) -> Batch:
        """Make a slot's batch, on the CPU."""

    def loss(self, model: XLM, batch: Any) -> Tensor:
        """Compute the loss of one slot: a float32 scalar."""

    def empty_batch(self) -> Batch:
        """Make the smallest batch whose loss reaches every parameter: two tokens that mean nothing."""
