"""Learned merges against the plainest program that learns; tests/xlm_train/text/test_bpe.py has those of fastBPE."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import merges
from data_prep.merges import learn_merges

Merges = list[tuple[str, str, int]]


def learned_plainly(word_counts: Mapping[str, int], n_merges: int) -> Merges:
    """The definition, a merge at a time: all pairs counted anew, the most frequent merged, of several the oldest."""
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in word_counts}
    numbers: dict[str, int] = {}
    for symbol in itertools.chain(*words.values()):
        numbers.setdefault(symbol, len(numbers))
    found: Merges = []
    while len(found) < n_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in words.items():
            for pair in itertools.pairwise(symbols):
                if "".join(pair) not in numbers:
                    pairs[pair] += word_counts[word]
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], numbers[pair[0]], numbers[pair[1]]))
        for symbols in words.values():
            k = 0
            while k < len(symbols) - 1:
                if (symbols[k], symbols[k + 1]) == (left, right):
                    symbols[k : k + 2] = [left + right]
                k += 1
        numbers[left + right] = len(numbers)
        found.append((left, right, pairs[left, right]))
    return found


@pytest.mark.parametrize("batch", [1, 2, merges.BATCH])
@pytest.mark.parametrize("alphabet", ["ab", "abcd", "aé\U00010400\0", "a</w>b"])
def test_words_of_few_letters(monkeypatch: pytest.MonkeyPatch, alphabet: str, batch: int) -> None:
    """Rows of one letter, pairs that overlap, ties without end, literal marks of a word's end."""
    monkeypatch.setattr(merges, "BATCH", batch)
    words = st.dictionaries(st.text(alphabet, min_size=1, max_size=12), st.integers(1, 5), min_size=1, max_size=30)

    @settings(max_examples=60)
    @given(words, st.integers(1, 80))
    def compare(word_counts: dict[str, int], n_merges: int) -> None:
        assert learn_merges({**word_counts, "ab": 1}, n_merges) == learned_plainly({**word_counts, "ab": 1}, n_merges)

    compare()


def test_rare_pairs_are_found_when_the_frequent_ones_are_merged() -> None:
    words = {"abcdef": 1_000_000, "ghij": 1000, "kl": 1, "mno": 1}
    found = learn_merges(words, 100)
    assert found == learned_plainly(words, 100)
    assert [count for _, _, count in found] == [1_000_000] * 5 + [1000] * 3 + [1] * 3
