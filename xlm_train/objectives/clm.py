"""Causal language modelling: every token of a window predicts the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlm_train.data.datamodule import TensorBatch
from xlm_train.data.order import Slot, Stream
from xlm_train.data.training_text import TrainingText
from xlm_train.model.flops import Row
from xlm_train.model.transformer import XLM
from xlm_train.objectives.objective import row_of


@dataclass(frozen=True)
class Windows(TensorBatch):
    """Windows of one language.

    Args:
        tokens_BT: token ids, int64, one window a row.
        language: id.
    """

    tokens_BT: Tensor
    language: int


class CausalLM:
    """Next-token prediction on windows of a language's stream.

    Position p of a window predicts p+1, so a window of T tokens has T-1 targets and its first token is never one.
    Source: Lample & Conneau 2019, section 3.2; windows as the original's StreamDataset.

    Args:
        text: what is read.
    """

    evaluation = "causal"
    reads = "windows"

    def __init__(self, text: TrainingText) -> None:
        self.text = text

    @property
    def streams(self) -> Sequence[Stream]:
        """The languages, in id order."""
        return self.text.language_streams()

    @property
    def rows(self) -> Mapping[str, Row]:
        """A window of each language."""
        return dict.fromkeys(self.text.languages, row_of(self, self.text.bptt))

    def batch(self, slot: Slot, generator: np.random.Generator) -> Windows:
        """Read the slot's windows. Nothing is drawn."""
        return Windows(torch.from_numpy(self.text.windows(slot)), self.text.languages[slot.stream])

    def texts(self, slot: Slot) -> Sequence[tuple[str, NDArray[np.int64]]]:
        """List the slot's windows."""
        return self.text.named_windows(slot)

    def loss(self, model: XLM, batch: Windows) -> Tensor:
        """Compute the mean cross-entropy of the predicted tokens, in nats."""
        return model.next_token_loss(batch.tokens_BT, batch.language)

    def empty_batch(self) -> Windows:
        """Make one window of two tokens."""
        return Windows(torch.zeros(1, 2, dtype=torch.int64), 0)
