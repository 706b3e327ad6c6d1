"""What objectives that read sentences have in common: their batches, names of streams, sentences with eos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from xlm_train.data.order import Slot, Stream
from xlm_train.data.sentences import SentenceBatches
from xlm_train.data.training_text import TrainingText
from xlm_train.model.flops import Row
from xlm_train.objectives.objective import row_of
from xlm_train.runtime.console import counted
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import EOS


class SentenceReader:
    """Batches of sentences, or of pairs, one batch a slot.

    Args:
        text: what is read.
        names: stream -> what it reads: "de", or the pair "de-en".
        side_by_side: the sides of a pair are padded apart.
    """

    evaluation = "translation"
    reads = "pairs"

    @property
    def directions(self) -> Sequence[tuple[str, str]]:
        """The languages (source, target) that validation translates."""
        return ()

    def __init__(self, text: TrainingText, names: Mapping[str, str], side_by_side: bool = False) -> None:
        self.text = text
        self.names = names
        self.side_by_side = side_by_side

    @cached_property
    def batches(self) -> dict[str, SentenceBatches]:
        """The batches of each stream.

        Raises:
            ConfigError: `data.tokens_per_slot` or `data.max_len` fits neither the text nor the model.
        """
        return {
            stream: self.text.sentence_batches(name, stream, self.side_by_side) for stream, name in self.names.items()
        }

    @property
    def streams(self) -> Sequence[Stream]:
        """The streams, all with the same share."""
        return [
            Stream(name, batches.n_batches, 1, batches.tokens_per_batch, Fraction(1), batches.padding)
            for name, batches in self.batches.items()
        ]

    @property
    def lengths(self) -> Mapping[str, float]:
        """Stream -> mean tokens of a sentence with both eos, or of both sides of a pair."""
        return {name: batches.n_tokens / batches.n_sentences for name, batches in self.batches.items()}

    @property
    def rows(self) -> Mapping[str, Row]:
        """A sentence, or a pair, of each stream."""
        sides = 2 if self.reads == "pairs" else 1
        return {name: row_of(self, length / sides) for name, length in self.lengths.items()}

    def numbers(self, slot: Slot) -> NDArray[np.int64]:
        """List the numbers of the slot's sentences or pairs."""
        return self.batches[slot.stream].sentences(int(slot.units[0]), int(slot.passes[0]))


class MonolingualReader(SentenceReader):
    """Batches of sentences of one language each; arguments as `SentenceReader`.

    Raises:
        CorpusError: the corpus has no such text, or was prepared without an order by length.
    """

    reads = "sentences"

    def __init__(self, text: TrainingText, names: Mapping[str, str]) -> None:
        super().__init__(text, names)
        self.sentences = {stream: text.corpus.sentences("train", language) for stream, language in names.items()}

    def read(self, slot: Slot) -> list[list[int]]:
        """Read the slot's sentences, with both eos."""
        return with_eos(self.sentences[slot.stream].read(self.numbers(slot)))

    def texts(self, slot: Slot) -> Sequence[tuple[str, NDArray[np.int64]]]:
        """List the slot's sentences as they stand in the corpus."""
        numbered = zip(self.numbers(slot), self.read(slot), strict=True)
        return [(f"sentence {number}", np.array(ids)) for number, ids in numbered]


def with_eos(sentences: Sequence[NDArray[np.int64]]) -> list[list[int]]:
    """Put an eos on both ends of each sentence."""
    return [[EOS, *sentence.tolist(), EOS] for sentence in sentences]


def known_languages(text: TrainingText, setting: str, name: str, count: int) -> tuple[str, ...]:
    """Take a name such as "de-en" or "de-en-de" apart into languages of the corpus.

    Args:
        text: what is read.
        setting: the objective's that has the name, for the error.
        name: to be taken apart.
        count: of its languages.

    Raises:
        ConfigError: It has not `count` of them, or the corpus lacks one; names the languages that it has.
    """
    known = text.languages
    found = [codes for codes in _cuts(name, count) if all(code in known for code in codes)]
    if len(found) != 1:
        example = "-".join((*known, *known)[:count])
        raise ConfigError(
            f"{setting}: {name} does not name {counted(count, 'language')} of the corpus, which has {', '.join(known)};"
            f" write it as {example}"
        )
    return found[0]


def _cuts(name: str, count: int) -> list[tuple[str, ...]]:
    if count == 1:
        return [(name,)]
    places = [place for place, character in enumerate(name) if character == "-"]
    return [(name[:place], *rest) for place in places for rest in _cuts(name[place + 1 :], count - 1)]
