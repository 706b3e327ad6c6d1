"""Noise for denoising: words that move a little, go missing, or are blanked, in sentences that begin and end with eos.

All draws come from one generator in a fixed order, for a whole batch at once: the same code serves numpy's RandomState,
whose stream the recorded outputs of the original have, and the Generator that training seeds by (seed, step, slot).
Pieces of words count as words. Shapes: B sentences, T positions of the longest.

Source: Lample et al. 2018, section 2.3; order of the draws checked against recorded outputs of the original.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import EOS, MASK, PAD

Random = np.random.Generator | np.random.RandomState
Batch = tuple[NDArray[np.int64], NDArray[np.int64]]  # tokens (B, T), lengths (B,) with both eos


@dataclass(frozen=True)
class WordNoise:
    """How much noise; 0 leaves a kind out, and then nothing is drawn for it.

    Args:
        shuffle: A word moves to a place at most this far away, less one.
        drop: Share of words that go missing; one is left in every sentence.
        blank: Share of words that become the mask token.

    Raises:
        ConfigError: With every value that cannot work.
    """

    shuffle: float = 3.0
    drop: float = 0.1
    blank: float = 0.1

    def __post_init__(self) -> None:
        problems = []
        if self.shuffle != 0 and self.shuffle <= 1:
            problems.append(f"noise.shuffle={self.shuffle}: must be 0 (off) or above 1: below, no word moves")
        for name in ("drop", "blank"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"noise.{name}={getattr(self, name)}: must be in [0, 1)")
        if problems:
            raise ConfigError(problems)

    def __call__(self, tokens_BT: NDArray[np.int64], lengths_B: NDArray[np.int64], random: Random) -> Batch:
        """Put noise into sentences.

        Args:
            tokens_BT: Ids: eos, words, eos, padding.
            lengths_B: With both eos.
            random: Where all draws come from.

        Returns:
            New tokens and lengths, padded to the longest that is left.
        """
        tokens_BT = shuffle(tokens_BT, lengths_B, self.shuffle, random) if self.shuffle else tokens_BT
        if self.drop:
            tokens_BT, lengths_B = drop(tokens_BT, lengths_B, self.drop, random)
        return (blank(tokens_BT, lengths_B, self.blank, random) if self.blank else tokens_BT), lengths_B


def shuffle(tokens_BT: NDArray[np.int64], lengths_B: NDArray[np.int64], k: float, random: Random) -> NDArray[np.int64]:
    """Sort the words of each sentence by their places plus uniform noise in [0, k); both eos stay.

    Args:
        tokens_BT: Ids: eos, words, eos, padding; they are not changed.
        lengths_B: With both eos.
        k: Width of the noise in places; no word moves at 1 or below.
        random: Where the draws come from.
    """
    B, T = tokens_BT.shape
    keys_BT = np.arange(T - 1) + _uniform(random, T - 1, B, k)
    keys_BT[:, 0] = -1.0
    shuffled = tokens_BT.copy()
    for row, length in enumerate(lengths_B):
        shuffled[row, : length - 1] = tokens_BT[row, keys_BT[row, : length - 1].argsort()]
    return shuffled


def drop(tokens_BT: NDArray[np.int64], lengths_B: NDArray[np.int64], share: float, random: Random) -> Batch:
    """Leave out words with probability `share`; where all would go, one drawn word of the sentence stays.

    Args:
        tokens_BT: As in `shuffle`.
        lengths_B: With both eos; every sentence has a word.
        share: Of the words that go missing, in [0, 1).
        random: Where the draws come from.

    Returns:
        New tokens and lengths, padded to the longest sentence that is left.
    """
    B, T = tokens_BT.shape
    keep_BT = _uniform(random, T - 1, B) >= share
    keep_BT[:, 0] = True
    draw = random.randint if isinstance(random, np.random.RandomState) else random.integers
    sentences = []
    for row, length in enumerate(lengths_B):
        words = tokens_BT[row, : length - 1]
        kept = words[keep_BT[row, : length - 1]]
        if len(kept) == 1:
            kept = np.append(kept, words[draw(1, length - 1)])
        sentences.append(np.append(kept, EOS))
    lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
    tokens = np.full((B, lengths.max()), PAD, dtype=np.int64)
    for row, sentence in enumerate(sentences):
        tokens[row, : len(sentence)] = sentence
    return tokens, lengths


def blank(
    tokens_BT: NDArray[np.int64], lengths_B: NDArray[np.int64], share: float, random: Random
) -> NDArray[np.int64]:
    """Put the mask token in place of words with probability `share`.

    Args:
        tokens_BT: As in `shuffle`.
        lengths_B: With both eos, which stay.
        share: Of the words that become the mask token, in [0, 1).
        random: Where the draws come from.
    """
    B, T = tokens_BT.shape
    chosen_BT = np.zeros((B, T), dtype=bool)
    chosen_BT[:, :-1] = _uniform(random, T - 1, B) < share
    chosen_BT[:, 0] = False
    chosen_BT &= np.arange(T) < lengths_B[:, None] - 1
    return np.where(chosen_BT, MASK, tokens_BT)


def _uniform(random: Random, positions: int, sentences: int, high: float = 1.0) -> NDArray[np.float64]:
    """Draws in [0, high), drawn position by position as the original does; (sentences, positions)."""
    return random.uniform(0.0, high, (positions, sentences)).T
