"""The bigram against its textbook formulas, and both baselines on the model's own targets."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from xlm_train.data.corpus import Corpus, Shard, TokenStream
from xlm_train.evaluation.ngram import count, estimate, score

EOS = 1


def stream_of(tokens: NDArray[np.int64]) -> TokenStream:
    return TokenStream([Shard(tokens.astype(np.uint16), 0)], {})


def sample(n: int, n_words: int, seed: int) -> NDArray[np.int64]:
    """Tokens with a long tail: many are seen once, a few very often."""
    return np.random.default_rng(seed).zipf(1.4, n) % (n_words - 4) + 4


def textbook_kneser_ney(tokens: list[int], n_words: int) -> Callable[[int, int], float]:
    """p(current | previous) of interpolated modified Kneser-Ney as Chen & Goodman write it, with dictionaries."""
    pairs = Counter(zip([EOS, *tokens], tokens, strict=False))

    def discounts(counts: list[int]) -> list[float]:
        n = [sum(1 for c in counts if c == k) for k in range(5)]
        y = n[1] / (n[1] + 2 * n[2])
        return [0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]

    def interpolated(counts: dict[int, int], discounts: list[float], word: int, lower: float) -> float:
        total = sum(counts.values())
        if not total:
            return lower
        left = sum(discounts[min(c, 3)] for c in counts.values())
        c = counts.get(word, 0)
        return (c - discounts[min(c, 3)] + left * lower) / total

    contexts = Counter(w for _, w in pairs)
    unigram_discounts, bigram_discounts = discounts(list(contexts.values())), discounts(list(pairs.values()))

    def probability(previous: int, current: int) -> float:
        lower = interpolated(contexts, unigram_discounts, current, 1 / n_words)
        followers = {w: c for (v, w), c in pairs.items() if v == previous}
        return interpolated(followers, bigram_discounts, current, lower)

    return probability


def test_bigram_is_the_textbooks() -> None:
    n_words = 400
    tokens = sample(1500, n_words, seed=0)
    expected = textbook_kneser_ney(tokens.tolist(), n_words)
    _, bigram = estimate(stream_of(tokens), n_words)
    unseen = int(np.setdiff1d(np.arange(14, n_words), tokens)[0])
    for previous in (EOS, 5, 6, 30, int(tokens[-1]), unseen):
        found = np.exp(bigram.log_probabilities(np.full(n_words, previous), np.arange(n_words)))
        assert found == pytest.approx([expected(previous, current) for current in range(n_words)], rel=1e-12)


def test_discounts_fall_back_where_counts_allow_no_estimate() -> None:
    # after eos: 5 twice, 6 once; no pair occurs 3 or 4 times, so 0.5, 1 and 1.5 are taken off 1, 2 and more
    _, bigram = estimate(stream_of(np.array([5, 1, 5, 1, 6, 1])), 10)
    # contexts: 5 and 6 have one (eos), eos has two (5, 6); each of the 10 words has a tenth of what is taken
    left = (0.5 + 0.5 + 1.0) / 4
    lower = {5: 0.5 / 4 + left / 10, 6: 0.5 / 4 + left / 10, 1: 1.0 / 4 + left / 10, 7: left / 10}
    backoff = (1.0 + 0.5) / 3
    expected = {5: 1.0 / 3 + backoff * lower[5], 6: 0.5 / 3 + backoff * lower[6], 7: backoff * lower[7]}
    targets = np.array(list(expected))
    found = np.exp(bigram.log_probabilities(np.full(3, EOS), targets))
    assert found == pytest.approx(list(expected.values()))
    assert np.exp(bigram.log_probabilities(np.array([8]), np.array([1]))) == pytest.approx([lower[1]])


@pytest.mark.parametrize(("n", "n_words"), [(1, 20), (9, 20), (4000, 500)])
def test_every_distribution_sums_to_one(n: int, n_words: int) -> None:
    unigram, bigram = estimate(stream_of(sample(n, n_words, seed=1)), n_words)
    words = np.arange(n_words)
    assert np.exp(unigram.log_probabilities(words)).sum() == pytest.approx(1)
    for previous in range(0, n_words, 7):
        logs = bigram.log_probabilities(np.full(n_words, previous), words)
        assert np.isfinite(logs).all()
        assert np.exp(logs).sum() == pytest.approx(1)


def test_counts_do_not_depend_on_the_block() -> None:
    stream = stream_of(sample(1000, 80, seed=2))
    whole = count(stream, 80)
    for block in (1, 64, 999):
        assert all(np.array_equal(a, b) for a, b in zip(count(stream, 80, block), whole, strict=True))


def test_scored_on_the_targets_of_the_model() -> None:
    n_words, bptt = 50, 8
    unigram, bigram = estimate(stream_of(sample(3000, n_words, seed=3)), n_words)
    stream = stream_of(sample(300, n_words, seed=4))
    logs = np.zeros(2)
    windows = stream.windows(np.arange(stream.n_windows(bptt)), bptt)
    for window in windows:
        for previous, target in itertools.pairwise(window):
            logs += unigram.log_probabilities(target), bigram.log_probabilities(previous, target)
    predicted = len(windows) * (bptt - 1)
    assert score(unigram, bigram, stream, bptt, batch_windows=5) == pytest.approx(np.exp(-logs / predicted))


def test_bigram_of_real_text_beats_other_smoothing(golden_corpus: Path) -> None:
    """Against Jelinek-Mercer interpolation with the best weight for the very text it is tested on."""
    corpus = Corpus(golden_corpus)
    for lang in corpus.languages:
        training, test = corpus.stream("train", lang), corpus.stream("valid", lang)
        unigram, bigram = estimate(training, corpus.n_words)
        unigram_ppl, bigram_ppl = score(unigram, bigram, test, 64)

        words, keys, counts = count(training, corpus.n_words)
        windows = test.windows(np.arange(test.n_windows(64)), 64)
        previous, targets = windows[:, :-1].ravel(), windows[:, 1:].ravel()
        table = dict(zip(keys.tolist(), counts.tolist(), strict=True))
        pairs = np.array([table.get(key, 0) for key in (previous * corpus.n_words + targets).tolist()])
        relative = pairs / np.maximum(words[previous], 1)
        flat = np.exp(unigram.log_probabilities(targets))
        best = min(
            math.exp(-np.log(weight * relative + (1 - weight) * flat).mean()) for weight in np.arange(0.05, 1, 0.05)
        )
        assert bigram_ppl < 0.95 * best < unigram_ppl / 3
