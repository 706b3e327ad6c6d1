"""Pairs joined into rows as the original joins them, and its rounding for float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from xlm_train.data.concatenation import PairRows, concatenate, rounded

Golden = dict[str, NDArray[np.int64]]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    with np.load(shared / "goldens/mt/tlm.npz") as file:
        return dict(file)


def sides(golden: Golden) -> list[list[NDArray[np.int64]]]:
    """The German and the English sentences, without eos."""
    return [
        [
            row[1 : length - 1].astype(np.int64)
            for row, length in zip(golden[f"sent{n}"].T, golden[f"len{n}"], strict=True)
        ]
        for n in (1, 2)
    ]


def assert_equal(rows: PairRows, golden: Golden, prefix: str) -> None:
    assert np.array_equal(rows.tokens_BT, golden[f"{prefix}x"].T)
    assert np.array_equal(rows.positions_BT, golden[f"{prefix}positions"].T)
    assert np.array_equal(rows.langs_BT, golden[f"{prefix}langs"].T)
    assert np.array_equal(rows.lengths_B, golden[f"{prefix}lengths"])


def test_both_directions_as_the_original(golden: Golden) -> None:
    german, english = sides(golden)
    assert_equal(concatenate(list(zip(german, english, strict=True)), (0, 1)), golden, "de_en.")
    assert_equal(concatenate(list(zip(english, german, strict=True)), (1, 0)), golden, "en_de.")


def test_rounding_as_the_original(golden: Golden) -> None:
    names = ("x", "positions", "langs")
    arrays = [golden[f"round.in_{name}"].T.astype(np.int64) for name in names]
    rows = PairRows(*arrays, golden["round.in_lengths"])
    others = np.setdiff1d(np.arange(len(arrays[0])), golden["round.idx"])
    assert_equal(rounded(rows, np.concatenate([golden["round.idx"], others])), golden, "round.")


@pytest.mark.parametrize(("n", "left"), [(1, 1), (7, 7), (8, 8), (9, 8), (15, 8), (16, 16)])
def test_rounded_to_eights(n: int, left: int) -> None:
    pairs = [(np.full(1 + i, 20 + i), np.full(2, 40 + i)) for i in range(n)]
    rows = concatenate(pairs, (0, 1))
    drawn = np.random.default_rng(3).permutation(n)
    fit = rounded(rows, drawn)
    assert fit.tokens_BT.shape[0] == fit.langs_BT.shape[0] == fit.positions_BT.shape[0] == len(fit.lengths_B) == left
    assert n < 8 or fit.tokens_BT.shape[1] % 8 == 0
    kept = np.arange(n) if n == left else drawn[:left]
    for row, length, source in zip(fit.tokens_BT, fit.lengths_B, kept, strict=True):
        assert np.array_equal(row[:length], rows.tokens_BT[source, :length])
        assert (row[length:] == 2).all()
        assert row[length - 1] == 1
