"""Denoising: a sentence from itself with words moved, missing and blanked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from xlm_train.data.order import Slot
from xlm_train.data.training_text import TrainingText
from xlm_train.data.word_noise import WordNoise
from xlm_train.model.seq2seq import Seq2Seq, pad
from xlm_train.objectives.sentences import MonolingualReader, known_languages
from xlm_train.objectives.translation import TranslationBatch, smallest_batch, translation_batch


class Denoising(MonolingualReader):
    """Reconstruction of sentences of one language from a noised copy of them.

    A slot is a batch of about `data.tokens_per_slot` tokens: sentences of like lengths, none above `data.max_len`.
    Source: Lample et al. 2018, section 2.3; noise, batches and loss as the original's `ae_steps`.

    Args:
        text: what is read.
        languages: codes; null: all of the corpus.
        noise: settings of `WordNoise`, the original's command line's by default.

    Raises:
        ConfigError: with every value that cannot work.
    """

    def __init__(
        self, text: TrainingText, languages: Sequence[str] | None = None, noise: Mapping[str, float] | None = None
    ) -> None:
        self.noise = WordNoise(**(noise or {}))
        codes = list(text.languages) if languages is None else languages
        super().__init__(text, {f"ae-{code}": known_languages(text, "languages", code, 1)[0] for code in codes})

    def batch(self, slot: Slot, generator: np.random.Generator) -> TranslationBatch:
        """Read the slot's sentences and put noise into a copy, which becomes the source."""
        clean = self.read(slot)
        tokens, lengths = pad(clean)
        noised, lengths_B = self.noise(tokens.numpy(), lengths.numpy(), generator)
        sources = [row[:length].tolist() for row, length in zip(noised, lengths_B, strict=True)]
        language = self.text.languages[self.names[slot.stream]]
        return translation_batch(sources, language, clean, language)

    def loss(self, model: Seq2Seq, batch: TranslationBatch) -> Tensor:
        """Compute the mean cross-entropy of the clean sentences' words, in nats."""
        return batch.loss(model)

    def empty_batch(self) -> TranslationBatch:
        """Make one pair of one word each."""
        return smallest_batch()
