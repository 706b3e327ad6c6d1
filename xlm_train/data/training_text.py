"""What an objective is given to read: a corpus's training text, and how a run reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from xlm_train.data.corpus import Corpus
from xlm_train.data.order import Slot, Stream, language_shares
from xlm_train.data.sentences import SentenceBatches
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class TrainingText:
    """The training text of a corpus, as one run reads it.

    Args:
        corpus: Opened.
        bptt: Tokens of a window.
        slot_streams: Windows of a slot.
        tokens_per_slot: Tokens of a slot of sentences, padding not counted.
        max_len: Longest sentence that is read, in tokens, eos not counted.
        lang_alpha: A language's share of the slots is p^lang_alpha over sentences.
        seed: Of the order.
        max_positions: Positions that the model has.
        float16: Whether the model runs in float16, whose products want multiples of 8.
    """

    corpus: Corpus
    bptt: int = 256
    slot_streams: int = 1
    tokens_per_slot: int = 2000
    max_len: int = 100
    lang_alpha: float = 0.0
    seed: int = 0
    max_positions: int = 512
    float16: bool = False

    @property
    def languages(self) -> dict[str, int]:
        """Code -> id, in id order."""
        return self.corpus.languages

    @property
    def n_words(self) -> int:
        """Entries of the vocabulary, specials included."""
        return self.corpus.n_words

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(n_words,) how often each word was seen when the vocabulary was made; specials 0."""
        return np.array(Vocabulary.from_file(self.corpus.vocab_path).counts, dtype=np.int64)

    def language_streams(self) -> Sequence[Stream]:
        """The windows of each language, in id order, as streams.

        Raises:
            CorpusError: A language has no training text.
        """
        text = {language: self.corpus.stream("train", language) for language in self.languages}
        shares = language_shares({language: stream.n_sentences for language, stream in text.items()}, self.lang_alpha)
        tokens = self.slot_streams * self.bptt
        return [
            Stream(language, stream.n_windows(self.bptt), self.slot_streams, tokens, shares[language])
            for language, stream in text.items()
        ]

    def windows(self, slot: Slot) -> NDArray[np.int64]:
        """Read the windows (slot_streams, bptt) of a slot of `language_streams`."""
        return self.corpus.stream("train", slot.stream).windows(slot.units, self.bptt)

    def named_windows(self, slot: Slot) -> Sequence[tuple[str, NDArray[np.int64]]]:
        """The same, each window (bptt,) with its name."""
        names = [f"window {unit} of pass {number}" for unit, number in zip(slot.units, slot.passes, strict=True)]
        return list(zip(names, self.windows(slot), strict=True))

    def sentence_batches(self, name: str, stream: str, side_by_side: bool = False) -> SentenceBatches:
        """Make the batches of a language's sentences ("de"), or of pairs ("de-en").

        Args:
            name: Of the text.
            stream: Name of the stream that reads it: streams of one text have orders of their own.
            side_by_side: As of `SentenceBatches`.

        Raises:
            CorpusError: The corpus has no such text, or does not list it by length.
            ConfigError: No sentence is short enough, or the model has too few positions for the longest allowed.
        """
        if self.max_len + 2 > self.max_positions:
            raise ConfigError(
                f"data.max_len={self.max_len} with eos on both ends is longer than model.max_positions={self.max_positions}:"
                f" data.max_len={self.max_positions - 2} is the longest"
            )
        order = self.corpus.length_order("train", name)
        return SentenceBatches(
            stream, order.classes, order.numbers, self.tokens_per_slot, self.max_len, self.seed, side_by_side
        )
