"""Pairs as translation language modelling reads them: both sides in one row, the second counted from position 0 again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xlm_train.data.corpus import Corpus
from xlm_train.data.manifest import languages_of
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import EOS, PAD

MULTIPLE = 8  # of float16's fast products


@dataclass(frozen=True)
class PairRows:
    """Rows `eos first eos eos second eos`, padded on the right.

    Args:
        tokens_BT: ids, int64.
        positions_BT: 0 .. of the first side, then from 0 again; they go on counting over the padding.
        langs_BT: language ids; the padding has the second one's.
        lengths_B: tokens of each row without its padding.
    """

    tokens_BT: NDArray[np.int64]
    positions_BT: NDArray[np.int64]
    langs_BT: NDArray[np.int64]
    lengths_B: NDArray[np.int64]

    def within(self, max_positions: int) -> PairRows:
        """Count the padding no further than to the last position that a model has."""
        return replace(self, positions_BT=np.minimum(self.positions_BT, max_positions - 1))


class JoinedPairs:
    """Pairs of a corpus, joined in the order in which their name has the languages.

    Args:
        corpus: Opened.
        split: "train", "valid" or "test".
        name: As "de-en"; "en-de" are the same pairs, the English side first.
        languages: Code -> the model's id.

    Raises:
        ConfigError: It is no name of a pair.
        CorpusError: The corpus has no such pairs; says how they are prepared.
    """

    def __init__(self, corpus: Corpus, split: str, name: str, languages: Mapping[str, int]) -> None:
        if (codes := languages_of(name)) is None:
            raise ConfigError(f"pairs: {name} does not name two languages, as de-en does")
        self.pairs = corpus.pairs(split, "-".join(sorted(codes)))
        self.n = self.pairs.n
        self._languages = languages[codes[0]], languages[codes[1]]
        self._swapped = codes != self.pairs.languages

    def read(self, numbers: NDArray[np.int64]) -> PairRows:
        """Read pairs (N,) by number."""
        pairs = self.pairs.read(numbers)
        return concatenate([(b, a) for a, b in pairs] if self._swapped else pairs, self._languages)

    def lengths(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the tokens (N, 2) of both sides of pairs (N,), in alphabetical order of languages."""
        return np.stack([side.lengths(numbers) for side in self.pairs.sides], axis=1)


def concatenate(pairs: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], languages: tuple[int, int]) -> PairRows:
    """Join the sides of each pair.

    Args:
        pairs: B times (words,) ids of both sides, without eos, in the order in which they are joined.
        languages: Ids of the languages of the sides.

    Source: Lample & Conneau 2019, section 3.4; positions and languages over eos and padding as the original has them.
    """
    firsts = np.array([len(first) + 2 for first, _ in pairs], dtype=np.int64)
    lengths = firsts + np.array([len(second) + 2 for _, second in pairs], dtype=np.int64)
    places = np.arange(lengths.max())
    tokens = np.full((len(pairs), len(places)), PAD, dtype=np.int64)
    for row, (first, second), start in zip(tokens, pairs, firsts.tolist(), strict=True):
        row[[0, start - 1, start, start + len(second) + 1]] = EOS
        row[1 : start - 1] = first
        row[start + 1 : start + 1 + len(second)] = second
    in_second = places >= firsts[:, None]
    positions = np.where(in_second, places - firsts[:, None], places)
    return PairRows(tokens, positions, np.where(in_second, languages[1], languages[0]), lengths)


def rounded(rows: PairRows, drawn: NDArray[np.int64]) -> PairRows:
    """Round the number of rows down and their length up to multiples of 8; fewer than 8 rows stay as they are.

    Args:
        rows: B of them.
        drawn: (B,) a random order of the rows: the first 8 * (B // 8) stay.

    Source: the original's float16 batches.
    """
    n = len(drawn) // MULTIPLE * MULTIPLE
    if n == 0:
        return rows
    kept = drawn[:n] if n < len(drawn) else np.arange(n)
    lengths = rows.lengths_B[kept]
    width = int(lengths.max())
    more = -width % MULTIPLE

    def fit(array: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.pad(array[kept, :width], ((0, 0), (0, more)), mode="edge")

    tokens, positions, langs = (fit(array) for array in (rows.tokens_BT, rows.positions_BT, rows.langs_BT))
    tokens[:, width:] = PAD
    positions[:, width:] += np.arange(1, more + 1)
    return PairRows(tokens, positions, langs, lengths)
