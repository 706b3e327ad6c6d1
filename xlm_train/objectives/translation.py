"""Supervised translation: the words of a sentence from its translation and the words before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xlm_train.data.datamodule import TensorBatch
from xlm_train.data.manifest import languages_of
from xlm_train.data.order import Slot
from xlm_train.data.training_text import TrainingText
from xlm_train.model.seq2seq import Seq2Seq, pad, predictions
from xlm_train.objectives.sentences import SentenceReader, known_languages, with_eos
from xlm_train.text.vocabulary import EOS


@dataclass(frozen=True)
class TranslationBatch(TensorBatch):
    """Sentences and what they are to become. Shapes: B pairs, S and T positions, N words to predict.

    Args:
        source_BS: Ids with both eos, int64, padded.
        source_lengths_B: With both eos.
        source_lang: Language id of all.
        target_BT: As the source.
        target_lang: Language id of all.
        chosen_N: Which of the B * (T-1) predictions have a word to predict.
    """

    source_BS: Tensor
    source_lengths_B: Tensor
    source_lang: int
    target_BT: Tensor
    target_lang: int
    chosen_N: Tensor

    def loss(self, model: Seq2Seq) -> Tensor:
        """Compute the mean cross-entropy of the targets' words, in nats."""
        source = model.encode(self.source_BS, self.source_lang, self.source_lengths_B)
        return model.loss(source, self.target_BT, self.target_lang, self.chosen_N)


def translation_batch(
    sources: Sequence[Sequence[int]], source_lang: int, targets: Sequence[Sequence[int]], target_lang: int
) -> TranslationBatch:
    """Make a batch of sentences and their translations.

    Args:
        sources: Ids of each sentence, with both eos.
        source_lang: Language id of all.
        targets: Likewise what they are to become, in the same order.
        target_lang: Language id of all.
    """
    source_BS, source_lengths_B = pad(sources)
    target_BT, target_lengths_B = pad(targets)
    chosen_N = predictions(target_lengths_B)
    return TranslationBatch(source_BS, source_lengths_B, source_lang, target_BT, target_lang, chosen_N)


def smallest_batch() -> TranslationBatch:
    """Make one pair of one word each."""
    return translation_batch([[EOS, 0, EOS]], 0, [[EOS, 0, EOS]], 0)


class Translation(SentenceReader):
    """Supervised translation of pairs of sentences.

    A slot is a batch of about `data.tokens_per_slot` tokens, both sides counted: pairs of like lengths, no side above
    `data.max_len` tokens.
    Source: Lample & Conneau 2019, section 5.2; batches and loss as the original's `mt_steps`.

    Args:
        text: what is read.
        directions: as "de-en", from German into English; null: both of every pair of the corpus.

    Raises:
        ConfigError: a direction that does not name two languages of the corpus.
        CorpusError: the corpus has no such pairs; says how they are prepared.
    """

    def __init__(self, text: TrainingText, directions: Sequence[str] | None = None) -> None:
        if directions is None:
            # where there are none, the error names what the corpus's own languages would be
            pairs = text.corpus.pair_names("train") or ["-".join(sorted(text.languages)[:2])]
            directions = [
                "-".join(codes[::step])
                for name in pairs
                for codes in [languages_of(name) or (name,)]
                for step in (1, -1)
            ]
        self._codes = {f"mt-{name}": known_languages(text, "directions", name, 2) for name in directions}
        names_of_pairs = {stream: "-".join(sorted(codes)) for stream, codes in self._codes.items()}
        super().__init__(text, names_of_pairs, side_by_side=True)
        self.pairs = {stream: text.corpus.pairs("train", name) for stream, name in names_of_pairs.items()}

    @property
    def directions(self) -> Sequence[tuple[str, str]]:
        """Those that are learned."""
        return [(source, target) for source, target in self._codes.values()]

    def _read(self, slot: Slot) -> tuple[list[list[int]], list[list[int]]]:
        codes = self._codes[slot.stream]
        step = 1 if list(codes) == sorted(codes) else -1
        pairs = [pair[::step] for pair in self.pairs[slot.stream].read(self.numbers(slot))]
        return with_eos([source for source, _ in pairs]), with_eos([target for _, target in pairs])

    def batch(self, slot: Slot, generator: np.random.Generator) -> TranslationBatch:
        """Read the slot's pairs, source first."""
        source, target = (self.text.languages[code] for code in self._codes[slot.stream])
        sources, targets = self._read(slot)
        return translation_batch(sources, source, targets, target)

    def texts(self, slot: Slot) -> Sequence[tuple[str, NDArray[np.int64]]]:
        """List the slot's pairs, each side by itself."""
        return [
            (f"{side} of pair {number}", np.array(ids))
            for side, sentences in zip(("source", "target"), self._read(slot), strict=True)
            for number, ids in zip(self.numbers(slot), sentences, strict=True)
        ]

    def loss(self, model: Seq2Seq, batch: TranslationBatch) -> Tensor:
        """Compute the mean cross-entropy of the translations' words, in nats."""
        return batch.loss(model)

    def empty_batch(self) -> TranslationBatch:
        """Make one pair of one word each."""
        return smallest_batch()
