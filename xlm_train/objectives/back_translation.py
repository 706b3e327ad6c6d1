"""Online back-translation: a sentence from the translation that the model itself makes of it at that moment."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from xlm_train.data.order import Slot
from xlm_train.data.training_text import TrainingText
from xlm_train.model.seq2seq import Seq2Seq
from xlm_train.model.translation import translate
from xlm_train.objectives.sentences import MonolingualReader, known_languages
from xlm_train.objectives.translation import TranslationBatch, translation_batch
from xlm_train.runtime.device import Stopwatch
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import EOS


@dataclass(frozen=True)
class Sentences:
    """Sentences (ids with both eos) of one language, to be translated into another and back.

    Args:
        sentences: They stay on the host: decoding reads them there.
        language: The model's id.
        through: The model's id of the other language.
    """

    sentences: list[list[int]]
    language: int
    through: int

    def to(self, device: torch.device, non_blocking: bool = False) -> Sentences:
        """Return it as it is."""
        return self

    def pin_memory(self) -> Sentences:
        """Return it as it is."""
        return self


def longest_translation(sentence: int, max_positions: int) -> int:
    """The most tokens of a translation of a sentence of so many, both eos counted: int(1.3 n + 5), as the original's."""
    return min(int(1.3 * sentence + 5), max_positions)


def back_translated(model: Seq2Seq, batch: Sentences) -> TranslationBatch:
    """Make the pairs of a batch: its greedy translations by the present weights, and the sentences themselves.

    No translation is longer than `longest_translation` of the longest sentence.
    """
    limit = longest_translation(max(map(len, batch.sentences)), model.shape.max_positions)
    made = translate(model, batch.sentences, batch.language, batch.through, limit)
    return translation_batch(made, batch.through, batch.sentences, batch.language)


class BackTranslation(MonolingualReader):
    """Translation from the model's own translations, which no gradient flows through.

    A slot is a batch of about `data.tokens_per_slot` tokens: sentences of like lengths, none above `data.max_len`. The
    translations are made greedily in evaluation mode, so the loss is a function of weights and slot alone.
    Source: Sennrich et al. 2016; Lample et al. 2018, section 2.3; as the original's `bt_steps`.

    Args:
        text: what is read.
        directions: as "de-en-de", German through English; null: all ways between languages of the corpus.

    Raises:
        ConfigError: with every value that cannot work.
    """

    decodes = True

    def __init__(self, text: TrainingText, directions: Sequence[str] | None = None) -> None:
        if directions is None:
            directions = [f"{code}-{other}-{code}" for code, other in permutations(text.languages, 2)]
        self._codes: dict[str, tuple[str, str]] = {}
        for name in directions:
            first, through, last = known_languages(text, "directions", name, 3)
            if first != last or first == through:
                raise ConfigError(
                    f"directions: {name} does not come back to where it began: write {first}-OTHER-{first}"
                )
            self._codes[f"bt-{name}"] = (first, through)
        self.decoding = Stopwatch()
        super().__init__(text, {stream: first for stream, (first, _) in self._codes.items()})

    @property
    def directions(self) -> Sequence[tuple[str, str]]:
        """The ways back, which are what is learned: "en-de" of de-en-de."""
        return [(through, language) for language, through in self._codes.values()]

    def batch(self, slot: Slot, generator: np.random.Generator) -> Sentences:
        """Read the slot's sentences."""
        language, through = (self.text.languages[code] for code in self._codes[slot.stream])
        return Sentences(self.read(slot), language, through)

    def loss(self, model: Seq2Seq, batch: Sentences) -> Tensor:
        """Translate the sentences, then compute the mean cross-entropy of their own words, in nats."""
        device = model.decoder.output_bias.device
        self.decoding.start(device)
        made = back_translated(model, batch)
        self.decoding.stop(device)
        return made.to(device, non_blocking=True).loss(model)

    def empty_batch(self) -> Sentences:
        """Make one sentence of one word."""
        return Sentences([[EOS, 0, EOS]], 0, 0)


def cannot_begin(streams: Collection[str], parents: Sequence[str]) -> list[str]:
    """Warn where nothing but back-translation teaches a model that starts from random weights.

    Args:
        streams: Names of what the run reads.
        parents: What its weights come from.
    """
    if parents or not all(stream.startswith("bt-") for stream in streams):
        return []
    return [
        "back-translation alone cannot begin from random weights: the translations that it learns from mean nothing, and stay"
        " so; add denoising (objective=umt), or start from pretrained weights (init_encoder=FILE init_decoder=FILE)"
    ]
