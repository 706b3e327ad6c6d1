"""Learned merges against those of Hugging Face's trainer, and against the plainest program that learns."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from data_prep import merges
from data_prep.merges import learn_merges
from tests.conftest import count_words, golden_tokens

Merges = list[tuple[str, str, int]]


def trained(word_counts: Mapping[str, int], n_merges: int) -> list[tuple[str, str]]:
    """The merges of tokenizers' own trainer, which numbers last characters in the order they are named to it."""
    last = [character + "</w>" for character in sorted({word[-1] for word in word_counts})]
    trainer = trainers.BpeTrainer(
        vocab_size=len(last) + len(set().union(*word_counts)) + n_merges,
        special_tokens=last,
        end_of_word_suffix="</w>",
        min_frequency=1,
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    tokenizer.train_from_iterator((" ".join([word] * count) for word, count in word_counts.items()), trainer)
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


def learned_plainly(word_counts: Mapping[str, int], n_merges: int) -> Merges:
    """The definition, a merge at a time: all pairs counted anew, the most frequent merged, of several the oldest."""
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in word_counts if len(word) > 1}
    numbers: dict[str, int] = {}
    for symbol in [*sorted({symbols[-1] for symbols in words.values()}), *sorted(set().union(*words))]:
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
        made = 0
        for word, symbols in words.items():
            k = 0
            while k < len(symbols) - 1:
                if (symbols[k], symbols[k + 1]) == (left, right):
                    symbols[k : k + 2] = [left + right]
                    made += word_counts[word]
                k += 1
        numbers[left + right] = len(numbers)
        found.append((left, right, made))
    return found


def test_real_text_as_tokenizers(shared: Path) -> None:
    """With all words once there are as many equally frequent pairs as can be."""
    counts = count_words(itertools.chain(golden_tokens(shared, "novels.de"), golden_tokens(shared, "novels.en")))
    for words, n_merges in ((dict.fromkeys(counts, 1), 5000), (counts, 8000)):
        assert [merge[:2] for merge in learn_merges(words, n_merges)] == trained(words, n_merges)


@pytest.mark.parametrize("batch", [1, 2, merges.BATCH])
@pytest.mark.parametrize("alphabet", ["ab", "abcd", "aé\U00010400\0", "a</w>b"])
def test_words_of_few_letters(monkeypatch: pytest.MonkeyPatch, alphabet: str, batch: int) -> None:
    """Rows of one letter, pairs that overlap, ties without end, literal marks of a word's end."""
    monkeypatch.setattr(merges, "BATCH", batch)
    words = st.dictionaries(st.text(alphabet, min_size=2, max_size=12), st.integers(1, 5), min_size=1, max_size=30)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(words, st.integers(1, 80))
    def compare(word_counts: dict[str, int], n_merges: int) -> None:
        assert learn_merges({"a": 7, **word_counts}, n_merges) == learned_plainly(word_counts, n_merges)

    compare()


def test_rare_pairs_are_found_when_the_frequent_ones_are_merged() -> None:
    words = {"abcdef": 1_000_000, "ghij": 1000, "kl": 1, "mno": 1}
    found = learn_merges(words, 100)
    assert found == learned_plainly(words, 100)
    assert [count for _, _, count in found] == [1_000_000] * 5 + [1000] * 3 + [1] * 3
