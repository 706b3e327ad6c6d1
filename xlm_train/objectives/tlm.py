"""Translation language modelling: words of a pair of sentences are hidden and predicted from all others of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from xlm_train.data.concatenation import JoinedPairs, rounded
from xlm_train.data.order import Slot, Stream
from xlm_train.data.training_text import TrainingText
from xlm_train.model.flops import Row
from xlm_train.objectives.masked import MaskedBatch, MaskedLM, masked
from xlm_train.objectives.objective import row_of
from xlm_train.objectives.sentences import SentenceReader


class TranslationLM(MaskedLM):
    """Prediction of hidden words in pairs of sentences, each pair in one row.

    A slot is a batch of about `data.tokens_per_slot` tokens: pairs of like lengths, no side above `data.max_len` tokens.
    In float16 up to 7 pairs of a batch are left out, another choice in each pass.
    Source: Lample & Conneau 2019, section 3.4; rows, masks and rounding as the original's.

    Args:
        text: what is read.
        pairs: as "de-en", which joins the German side first; null: all of the corpus. The model cannot tell which side
            is the first (positions begin again, languages are given): the order decides only whose first eos is never
            hidden.
        mask_share: as `MaskedLM`, like all that follow.
        sample_alpha: 0 chooses every position alike; above, words in proportion to count^-sample_alpha.
        replacements: shares of the chosen words that become the mask token, stay, or become any word.

    Raises:
        ConfigError: with every value that cannot work.
        CorpusError: the corpus has no such pairs; says how they are prepared.
    """

    reads = "pairs"

    def __init__(
        self,
        text: TrainingText,
        pairs: Sequence[str] | None = None,
        mask_share: float = 0.15,
        sample_alpha: float = 0.0,
        replacements: Sequence[float] = (0.8, 0.1, 0.1),
    ) -> None:
        super().__init__(text, mask_share, sample_alpha, replacements)
        # where there are none, the error names what the corpus's own languages would be
        names = pairs or text.corpus.pair_names("train") or ["-".join(sorted(text.languages)[:2])]
        self.pairs = {name: JoinedPairs(text.corpus, "train", name, text.languages) for name in names}
        self._reader = SentenceReader(text, {name: joined.pairs.name for name, joined in self.pairs.items()})

    @property
    def streams(self) -> Sequence[Stream]:
        """The pairs, all with the same share."""
        return self._reader.streams

    @property
    def rows(self) -> Mapping[str, Row]:
        """A pair of each two languages."""
        lengths = self._reader.lengths
        return {name: row_of(self, length / 2, self.masking.share) for name, length in lengths.items()}

    def batch(self, slot: Slot, generator: np.random.Generator) -> MaskedBatch:
        """Read the slot's pairs and hide words in them."""
        rows = self.pairs[slot.stream].read(self._reader.numbers(slot))
        if self.text.float16:
            rows = rounded(rows, generator.permutation(len(rows.lengths_B)))
        rows = rows.within(self.text.max_positions)
        langs, lengths, positions = map(torch.from_numpy, (rows.langs_BT, rows.lengths_B, rows.positions_BT))
        return masked(rows.tokens_BT, langs, self.masking, generator, lengths, positions)

    def texts(self, slot: Slot) -> Sequence[tuple[str, NDArray[np.int64]]]:
        """List the slot's pairs, nothing hidden."""
        numbers = self._reader.numbers(slot)
        rows = self.pairs[slot.stream].read(numbers)
        return [
            (f"pair {number}", tokens[:length])
            for number, tokens, length in zip(numbers, rows.tokens_BT, rows.lengths_B, strict=True)
        ]

    def empty_batch(self) -> MaskedBatch:
        """Make one row of two tokens, the second one hidden, with all that a pair's row has."""
        positions = torch.tensor([[0, 1]])
        return replace(
            super().empty_batch(),
            langs=torch.zeros_like(positions),
            lengths_B=torch.tensor([2]),
            positions_BT=positions,
        )
