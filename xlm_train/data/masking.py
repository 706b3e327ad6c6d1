"""Which positions of a batch a masked language model has to predict, and what it sees in their place.

The rules are apart from the draws, so that training (a numpy Generator by seed, step and slot), evaluation (fixed masks)
and recorded outputs of the original go through the same code. Draws run over (T, B), positions by sentences, as the
original's do. Shapes: B sentences, T positions, N chosen positions.

Source: Lample & Conneau 2019, section 3.3; Devlin et al. 2018; the original's trainer.py and evaluation/evaluator.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import MASK, PAD

SHARE = 0.15  # of the positions, in evaluation always
MAX_ALPHA = 10  # count^-alpha of any count stays a normal float64
Random = np.random.Generator | np.random.RandomState


@dataclass(frozen=True)
class Masking:
    """How positions are chosen and replaced in training.

    Args:
        n_words: Entries of the vocabulary, specials included.
        share: Of the positions that are chosen.
        replacements: Shares of the chosen words that become the mask token, stay, or become any word of the vocabulary.
        alpha: 0 chooses every position alike; above, words are chosen in proportion to count^-alpha.
        counts: (n_words,) of the vocabulary; needed for an alpha above 0.
        multiple: Chosen positions of a batch come in such multiples, where there are that many (8 in float16).

    Raises:
        ConfigError: With every value that cannot work.
    """

    n_words: int
    share: float = SHARE
    replacements: Sequence[float] = (0.8, 0.1, 0.1)
    alpha: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    multiple: int = 1

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.share < 1:
            problems.append(f"mask_share={self.share}: must be above 0 and below 1")
        if not 0 <= self.alpha <= MAX_ALPHA:
            problems.append(f"sample_alpha={self.alpha}: must be from 0 to {MAX_ALPHA}")
        shares = list(self.replacements)
        if len(shares) != 3 or min(shares, default=0) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            problems.append(f"replacements={shares}: must be three shares that add up to 1: mask, keep, random word")
        if problems:
            raise ConfigError(problems)

    def choose(self, tokens_TB: NDArray[np.int64], random: Random) -> NDArray[np.bool_]:
        """Choose the positions (T, B) to predict: never padding, never a sentence's first; at least one.

        The original fails where its draws choose none, or in float16 fewer than 8; here one position is drawn, or all
        of them stay.
        """
        if self.alpha == 0:
            chosen = random.random(tokens_TB.shape) <= self.share
        else:
            chosen = np.zeros(tokens_TB.shape, dtype=bool)
            scores = self._scores[tokens_TB].ravel()
            scores[tokens_TB.ravel() == PAD] = 0.0
            count = min(math.ceil(self.share * scores.size), int(np.count_nonzero(scores)))
            if count:
                chosen.flat[random.choice(scores.size, count, replace=False, p=scores / scores.sum())] = True
        allowed = tokens_TB != PAD
        allowed[0] = False
        chosen &= allowed
        places = np.flatnonzero(chosen)
        if not len(places):
            chosen.flat[random.choice(np.flatnonzero(allowed))] = True
        elif len(places) >= self.multiple:
            chosen.flat[places[: len(places) % self.multiple]] = False
        return chosen

    @cached_property
    def _scores(self) -> NDArray[np.float64]:
        """How readily each word (n_words,) is chosen."""
        return np.where(self.counts > 0, np.maximum(self.counts, 1) ** -float(self.alpha), 0.0)

    def draw_replacements(self, count: int, random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw for each of `count` chosen words what becomes of it (0 mask, 1 keep, 2 random), and a random word."""
        shares = np.array(self.replacements)
        return random.choice(3, count, p=shares / shares.sum()), random.integers(self.n_words, size=count)


def replace(words_N: NDArray[np.int64], kinds_N: NDArray[np.int64], random_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """What stands in the chosen words' places (N,).

    Args:
        words_N: Ids of the chosen words.
        kinds_N: What becomes of each, as `Masking.draw_replacements` draws it: 0 mask, 1 keep, 2 random.
        random_N: A random word for each, taken where its kind is 2.
    """
    return np.select([kinds_N == 0, kinds_N == 1], [np.full_like(words_N, MASK), words_N], random_N)


def evaluation_mask(lengths_B: Sequence[int], positions: int, state: np.random.RandomState) -> NDArray[np.bool_]:
    """Choose the positions (T, B) that evaluation predicts: never a sentence's first or last; at least one of each.

    All of them become the mask token. A sentence of two tokens has its second one chosen (the original fails).

    Args:
        lengths_B: Tokens of each sentence.
        positions: T.
        state: RandomState(0) before the first batch of a text, and then left to itself.
    """
    chosen: NDArray[np.bool_] = state.random((positions, len(lengths_B))) <= SHARE
    chosen[0] = False
    for number, length in enumerate(lengths_B):
        chosen[length - 1 :, number] = False
        if not chosen[:, number].any():
            chosen[state.randint(1, max(length - 1, 2)), number] = True
    return chosen


def evaluation_masks(n_windows: int, bptt: int) -> Iterator[NDArray[np.bool_]]:
    """Yield the fixed mask (bptt,) of each window of a stream, from the first on."""
    state = np.random.RandomState(0)
    for _ in range(n_windows):
        yield evaluation_mask([bptt], bptt, state)[:, 0]
