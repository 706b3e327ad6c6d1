"""Noise against the original's recorded draws, and what it promises of any sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from xlm_train.data.noise import generator_of
from xlm_train.data.word_noise import WordNoise, blank, drop, shuffle
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import MASK


def test_twelve_cases_and_their_stream_positions(shared: Path) -> None:
    with np.load(shared / "goldens/mt/noise.npz") as golden:
        cases = sorted({name.rpartition(".")[0] for name in golden.files})
        assert len(cases) == 12
        for case in cases:
            k, dropped, blanked = golden[f"{case}.params"]
            expected = {
                name: golden[f"{case}.{name}"].astype(np.int64).T for name in ("x", "shuffled", "dropped", "noised")
            }
            lengths = golden[f"{case}.lengths"]
            random = np.random.RandomState(int(case.rpartition(".")[2]))
            tokens = shuffle(expected["x"], lengths, k, random) if k else expected["x"]
            assert np.array_equal(tokens, expected["shuffled"]), case
            if dropped:
                tokens, lengths = drop(tokens, lengths, dropped, random)
            assert np.array_equal(tokens, expected["dropped"]), case
            assert np.array_equal(lengths, golden[f"{case}.dropped_lengths"]), case
            tokens = blank(tokens, lengths, blanked, random) if blanked else tokens
            assert np.array_equal(tokens, expected["noised"]), case
            assert random.random() == golden[f"{case}.next_uniform"], case

            again = np.random.RandomState(int(case.rpartition(".")[2]))
            noised, new_lengths = WordNoise(k, dropped, blanked)(expected["x"], golden[f"{case}.lengths"], again)
            assert np.array_equal(noised, expected["noised"]), case
            assert np.array_equal(new_lengths, golden[f"{case}.noised_lengths"]), case


def sentences(lengths: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    tokens = np.full((len(lengths), max(lengths)), 2)
    for row, length in enumerate(lengths):
        tokens[row, :length] = [1, *range(100, 98 + length), 1]
    return tokens, np.array(lengths)


def test_training_draws_are_a_function_of_seed_step_and_slot() -> None:
    tokens, lengths = sentences([30, 12, 3])
    first, second, other = (WordNoise()(tokens, lengths, generator_of(1, 7, slot)) for slot in (2, 2, 3))
    assert np.array_equal(first[0], second[0])
    assert not np.array_equal(first[0], other[0])


def test_shares_and_distances() -> None:
    tokens, lengths = sentences([100] * 200)
    random = generator_of(0, 0, 0)
    moved = shuffle(tokens, lengths, 3.0, random)
    distance = np.abs(moved[:, 1:-1] - tokens[:, 1:-1])
    assert 1 <= distance.max() <= 2
    assert (np.sort(moved, axis=1) == np.sort(tokens, axis=1)).all()
    dropped, left = drop(tokens, lengths, 0.1, random)
    assert left.sum() / lengths.sum() == pytest.approx(0.902, abs=0.01)
    assert all((np.diff(row[1 : n - 1]) > 0).all() and row[n - 1] == 1 for row, n in zip(dropped, left, strict=True))
    blanked = blank(tokens, lengths, 0.1, random)
    assert (blanked == MASK).sum() / (200 * 98) == pytest.approx(0.1, abs=0.01)
    assert ((blanked == tokens) | (blanked == MASK)).all()
    assert (blanked[:, [0, -1]] == 1).all()


def test_a_word_is_left_and_padding_stays() -> None:
    tokens, lengths = sentences([3, 5, 20])
    noised, left = WordNoise(shuffle=0, drop=0.99, blank=0)(tokens, lengths, generator_of(0, 0, 0))
    assert (left >= 3).all()
    assert all(row[0] == row[n - 1] == 1 and (row[n:] == 2).all() for row, n in zip(noised, left, strict=True))
    unchanged, _ = WordNoise(0, 0, 0)(tokens, lengths, generator_of(0, 0, 0))
    assert np.array_equal(unchanged, tokens)


def test_values_that_cannot_work_are_refused_together() -> None:
    with pytest.raises(ConfigError) as refused:
        WordNoise(shuffle=1, drop=1.0, blank=-0.1)
    for part in ("noise.shuffle=1: ", "noise.drop=1.0: ", "noise.blank=-0.1: "):
        assert part in str(refused.value)
