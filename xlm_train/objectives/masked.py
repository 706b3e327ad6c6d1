"""Masked language modelling: some words of a text are hidden and predicted from all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlm_train.data.datamodule import TensorBatch
from xlm_train.data.masking import Masking
from xlm_train.data.masking import replace as replace_words
from xlm_train.data.order import Slot, Stream
from xlm_train.data.training_text import TrainingText
from xlm_train.model.flops import Row
from xlm_train.model.transformer import XLM
from xlm_train.objectives.objective import row_of


@dataclass(frozen=True)
class MaskedBatch(TensorBatch):
    """Text with words hidden in it. Shapes: B rows, T positions, N hidden words.

    Args:
        tokens_BT: What the model sees, int64.
        langs: Language id of all, or of each position (B, T).
        chosen_N: Flat positions b * T + t of the hidden words.
        targets_N: The words that stood there.
        lengths_B: Tokens of each row, the rest being padding; None: all count.
        positions_BT: None: 0..T-1.
    """

    tokens_BT: Tensor
    langs: Tensor | int
    chosen_N: Tensor
    targets_N: Tensor
    lengths_B: Tensor | None = None
    positions_BT: Tensor | None = None


class MaskedLM:
    """Prediction of hidden words in windows of a language's stream.

    Source: Lample & Conneau 2019, section 3.3; windows and masks as the original's, see `Masking`.

    Args:
        text: what is read.
        mask_share: of the positions that are chosen.
        sample_alpha: 0 chooses every position alike; above, words in proportion to count^-sample_alpha.
        replacements: shares of the chosen words that become the mask token, stay, or become any word.

    Raises:
        ConfigError: with every value that cannot work.
    """

    evaluation = "masked"
    reads = "windows"

    def __init__(
        self,
        text: TrainingText,
        mask_share: float = 0.15,
        sample_alpha: float = 0.0,
        replacements: Sequence[float] = (0.8, 0.1, 0.1),
    ) -> None:
        self.text = text
        self.masking = masking_of(text, mask_share, sample_alpha, replacements)

    @property
    def streams(self) -> Sequence[Stream]:
        """The languages, in id order."""
        return self.text.language_streams()

    @property
    def rows(self) -> Mapping[str, Row]:
        """A window of each language."""
        return dict.fromkeys(self.text.languages, row_of(self, self.text.bptt, self.masking.share))

    def batch(self, slot: Slot, generator: np.random.Generator) -> MaskedBatch:
        """Read the slot's windows and hide words in them."""
        return masked(self.text.windows(slot), self.text.languages[slot.stream], self.masking, generator)

    def texts(self, slot: Slot) -> Sequence[tuple[str, NDArray[np.int64]]]:
        """List the slot's windows, nothing hidden."""
        return self.text.named_windows(slot)

    def loss(self, model: XLM, batch: MaskedBatch) -> Tensor:
        """Compute the mean cross-entropy of the hidden words, in nats."""
        return model.masked_loss(
            batch.tokens_BT, batch.langs, batch.chosen_N, batch.targets_N, batch.lengths_B, batch.positions_BT
        )

    def empty_batch(self) -> MaskedBatch:
        """Make one window of two tokens, the second one hidden."""
        return MaskedBatch(torch.zeros(1, 2, dtype=torch.int64), 0, torch.tensor([1]), torch.tensor([0]))


def masking_of(text: TrainingText, share: float, alpha: float, replacements: Sequence[float]) -> Masking:
    """Make the masking of a run: with the vocabulary's counts where they are needed, in multiples of 8 in float16.

    Args:
        text: What is masked.
        share: Of the positions that are chosen.
        alpha: 0 chooses every position alike; above, words in proportion to count^-alpha.
        replacements: As in `Masking`.
    """
    counts = text.counts if alpha > 0 else np.zeros(0, dtype=np.int64)
    return Masking(text.n_words, share, replacements, alpha, counts, multiple=8 if text.float16 else 1)


def masked(
    tokens_BT: NDArray[np.int64],
    langs: Tensor | int,
    masking: Masking,
    generator: np.random.Generator,
    lengths_B: Tensor | None = None,
    positions_BT: Tensor | None = None,
) -> MaskedBatch:
    """Hide words of a text.

    Args:
        tokens_BT: The text, padded; it is not changed.
        langs: As in `MaskedBatch`, like the last two.
        masking: Which words, and what stands in their places.
        generator: What is drawn from.
        lengths_B: Of the rows.
        positions_BT: Of the tokens.
    """
    positions, rows = np.nonzero(masking.choose(tokens_BT.T, generator))
    words = tokens_BT[rows, positions]
    seen = tokens_BT.copy()
    seen[rows, positions] = replace_words(words, *masking.draw_replacements(len(words), generator))
    chosen = torch.from_numpy(rows * tokens_BT.shape[1] + positions)
    return MaskedBatch(torch.from_numpy(seen), langs, chosen, torch.from_numpy(words), lengths_B, positions_BT)
