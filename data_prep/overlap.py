"""What validation and test text share with training text, and test text with validation text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep import select
from data_prep.settings import Settings
from data_prep.text import PairText, Text
from data_prep.work import Work, load


def compare_with_valid(every: Sequence[Text | PairText]) -> None:
    """Count in each test set how many of its lines the validation text of its language has; nothing where none."""
    sides = [side for text in every for side in text.sides]
    for side in sides:
        valid = [other for other in sides if other.split == "valid" and other.language == side.language]
        if side.split == "test" and valid:
            shared = _lines_among(side, _distinct(valid))
            if shared:
                side.counts.setdefault("overlap", {})["lines_in_valid"] = shared


class Overlap:
    """Valid and test sets compared with training text, language by language.

    A set that was held out of a text is compared with all training text but that. A training pair is in both where one
    of its sides is.

    Args:
        settings: What was asked for.
        work: Where the work files are.
        every: All text.

    Attributes:
        sets: Sorted hashes of the sentences of valid and test text that is compared, by language.
        files: The same as files.
    """

    def __init__(self, settings: Settings, work: Work, every: Sequence[Text | PairText]) -> None:
        has_pairs = bool(settings.pair_sources)
        self.sides = [
            side for text in every if text.split != "train" and (text.given or has_pairs) for side in text.sides
        ]
        by_language: dict[str, list[Text]] = {}
        for side in self.sides:
            by_language.setdefault(side.language, []).append(side)
        self.sets = {language: _distinct(sides) for language, sides in by_language.items()}
        self.files = {language: work.copy("known", found.tobytes()) for language, found in self.sets.items()}
        self.compared = {side.language for text in every if text.split == "train" for side in text.sides}
        self.seen = {language: np.zeros(len(found), dtype=bool) for language, found in self.sets.items()}

    def see(self, language: str, bits: NDArray[np.uint8]) -> None:
        """Note which sentences of a language's set some training text has, one bit each."""
        if language in self.sets:
            self.seen[language] |= np.unpackbits(bits, count=len(self.sets[language])) == 1

    def tell(self) -> None:
        """Count in each valid and test set how many of its lines training text has."""
        for side in (side for side in self.sides if side.language in self.compared):
            shared = self.sets[side.language][self.seen[side.language]]
            side.counts["overlap"] = {"lines_in_train": _lines_among(side, shared)}


def _distinct(texts: Sequence[Text]) -> select.Hashes:
    """Sorted hashes of the sentences of some texts."""
    found = np.unique(np.concatenate([load(piece, "hashes") for text in texts for piece in text.pieces]))
    return found[found != select.EMPTY]


def _lines_among(text: Text, known: select.Hashes) -> int:
    """How many lines of a text are among sentences given by their sorted hashes."""
    return sum(int(select.is_among(load(piece, "hashes"), known).sum()) for piece in text.pieces)
