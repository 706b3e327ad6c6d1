"""What a model must beat: a unigram and an interpolated Kneser-Ney bigram over the same tokens.

Both are estimated on the training split and predict exactly the targets the model is scored on, so the perplexities
compare. The bigram is the interpolated modified Kneser-Ney of Chen & Goodman 1999 (section 3), with the count-of-count
discounts that KenLM and SRILM use, down to the uniform distribution: nothing has probability zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlm_train.data.corpus import TokenStream

BLOCK = 1 << 24  # tokens counted at once: bounds the memory beside the table of distinct pairs
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # for 1, 2, 3 or more, where counts of counts allow no estimate (as KenLM)


@dataclass(frozen=True)
class Unigram:
    """Add-one smoothed word frequencies.

    Args:
        counts: (V,) how often each word was seen.
    """

    counts: NDArray[np.int64]

    def log_probabilities(self, targets: NDArray[np.int64]) -> NDArray[np.float64]:
        """Natural logarithms, of the targets' shape."""
        table: NDArray[np.float64] = np.log((self.counts + 1) / (self.counts.sum() + len(self.counts)))
        return table[targets]


@dataclass(frozen=True)
class Bigram:
    """Interpolated modified Kneser-Ney.

    Args:
        keys: previous * V + current of every pair seen, rising.
        discounted: (count - discount) / count of the previous word, per pair.
        backoff: (V,) mass that each previous word leaves to `lower` (1 where it was never seen).
        lower: (V,) continuation distribution, itself interpolated with the uniform one.
    """

    keys: NDArray[np.int64]
    discounted: NDArray[np.float64]
    backoff: NDArray[np.float64]
    lower: NDArray[np.float64]

    def log_probabilities(self, previous: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.float64]:
        """Natural logarithms of p(target | previous), of the targets' shape."""
        wanted = previous * len(self.lower) + targets
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        seen = np.where(self.keys[place] == wanted, self.discounted[place], 0.0)
        logs: NDArray[np.float64] = np.log(seen + self.backoff[previous] * self.lower[targets])
        return logs


def count(
    stream: TokenStream, n_words: int, block: int = BLOCK
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Count the words and pairs of a stream that begins after an eos.

    About 0.1 s per million tokens; memory for a block of tokens and for the table of distinct pairs.

    Args:
        stream: What is counted.
        n_words: Vocabulary entries V.
        block: Tokens counted at once.

    Returns:
        (V,) counts of words; pairs as rising keys previous * V + current; their counts.
    """
    words = np.zeros(n_words, dtype=np.int64)
    keys, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for start in range(0, stream.n_tokens, block):
        tokens = stream.read(start - 1, min(start + block, stream.n_tokens))  # position -1 is eos
        words += np.bincount(tokens[1:], minlength=n_words)
        new_keys, new_counts = np.unique(tokens[:-1] * n_words + tokens[1:], return_counts=True)
        keys, counts = _merge(keys, counts, new_keys, new_counts)
    return words, keys, counts


def estimate(stream: TokenStream, n_words: int) -> tuple[Unigram, Bigram]:
    """Both baselines from a training stream over a vocabulary of n_words."""
    words, keys, counts = count(stream, n_words)
    return Unigram(words), kneser_ney(keys, counts, n_words)


def kneser_ney(keys: NDArray[np.int64], counts: NDArray[np.int64], n_words: int) -> Bigram:
    """The bigram of given pair counts.

    Args:
        keys: previous * n_words + current, rising.
        counts: How often each pair was seen.
        n_words: Vocabulary entries.

    Source: Chen & Goodman 1999, section 3.
    """
    previous, current = np.divmod(keys, n_words)
    # unigram level: in how many contexts a word was seen, interpolated with the uniform distribution
    contexts = np.bincount(current, minlength=n_words)
    kept = contexts - _discounts(contexts)[np.minimum(contexts, 3)]
    lower = kept / contexts.sum() + (contexts.sum() - kept.sum()) / contexts.sum() / n_words
    # bigram level
    discount = _discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(previous, weights=counts, minlength=n_words)
    taken = np.bincount(previous, weights=discount, minlength=n_words)
    backoff = np.where(total > 0, taken / np.maximum(total, 1), 1.0)
    return Bigram(keys, (counts - discount) / total[previous], backoff, lower)


def score(
    unigram: Unigram, bigram: Bigram, stream: TokenStream, bptt: int, batch_windows: int = 1024
) -> tuple[float, float]:
    """Perplexities (unigram, bigram) on exactly the targets of `perplexity.score_windows`.

    Args:
        unigram: Of the training split.
        bigram: Of the same.
        stream: What is predicted.
        bptt: Window length in tokens; the first token of a window is no target.
        batch_windows: Windows read at once; bounds the memory.
    """
    sums, predicted = np.zeros(2), 0
    n_windows = stream.n_windows(bptt)
    for start in range(0, n_windows, batch_windows):
        windows = stream.windows(np.arange(start, min(start + batch_windows, n_windows)), bptt)
        previous, targets = windows[:, :-1], windows[:, 1:]
        sums -= unigram.log_probabilities(targets).sum(), bigram.log_probabilities(previous, targets).sum()
        predicted += targets.size
    return float(np.exp(sums[0] / predicted)), float(np.exp(sums[1] / predicted))


def _discounts(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """What is taken off counts of 0, 1, 2, and 3 or more (Chen & Goodman 1999, equation 26)."""
    n = np.bincount(np.minimum(counts, 5), minlength=5)[:5].astype(np.float64)
    if n[1:].min() == 0:
        return np.array((0.0, *FALLBACK_DISCOUNTS))
    y = n[1] / (n[1] + 2 * n[2])
    found = np.array([k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)])
    valid = (found > 0) & (found < (1, 2, 3))
    return np.array((0.0, *np.where(valid, found, FALLBACK_DISCOUNTS)))


def _merge(
    keys: NDArray[np.int64], counts: NDArray[np.int64], new_keys: NDArray[np.int64], new_counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if not len(keys):
        return new_keys, new_counts
    union, place = np.unique(np.concatenate([keys, new_keys]), return_inverse=True)
    merged = np.bincount(place, weights=np.concatenate([counts, new_counts]), minlength=len(union))
    return union, merged.astype(np.int64)
