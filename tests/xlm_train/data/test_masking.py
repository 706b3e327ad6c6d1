"""Masks: the original's from the recorded seeds, and what holds for any draw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xlm_train.data.masking import Masking, evaluation_mask, evaluation_masks, replace
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import EOS, MASK, PAD, Vocabulary

CASES = {"uniform": (0, {}), "alpha": (1, {"alpha": 0.5}), "fp16": (2, {"multiple": 8})}


@pytest.fixture(scope="module")
def golden(shared: Path) -> Mapping[str, Any]:
    return dict(np.load(shared / "goldens/mt/mlm.npz"))


def draw_as_the_original(masking: Masking, x: Any, seed: int) -> tuple[Any, Any]:
    """The mask and the masked text (T, B), from numpy's and torch's generators in the original's order."""
    chosen = masking.choose(x, np.random.RandomState(100 + seed))
    torch.manual_seed(200 + seed)
    count = int(chosen.sum())
    random_words = torch.empty(count, dtype=torch.int64).random_(masking.n_words)
    kinds = torch.multinomial(torch.tensor(masking.replacements), count, replacement=True)
    seen = x.copy()
    seen[chosen] = replace(x[chosen], kinds.numpy(), random_words.numpy())
    return chosen, seen


@pytest.mark.parametrize("case", CASES)
def test_masks_are_the_originals(case: str, golden: Mapping[str, Any], shared: Path) -> None:
    seed, options = CASES[case]
    counts = np.array(Vocabulary.from_file(shared / "goldens/bpe/vocab").counts)
    masking = Masking(len(counts), counts=counts, **options)
    x = golden[f"{case}.x_clean"].astype(np.int64)
    chosen, seen = draw_as_the_original(masking, x, seed)
    assert np.array_equal(chosen, golden[f"{case}.pred_mask"])
    assert np.array_equal(seen, golden[f"{case}.x"])
    assert np.array_equal(x[chosen], golden[f"{case}.y"])


@pytest.mark.parametrize("name", ["de", "en", "de_en", "en_de"])
def test_evaluation_masks_are_the_originals(name: str, shared: Path) -> None:
    golden = np.load(shared / "goldens/mt/mlm_eval.npz")
    state = np.random.RandomState(0)
    windows = evaluation_masks(3, 64)
    for batch in range(3):
        x, lengths = golden[f"{name}.{batch}.x_clean"].astype(np.int64), golden[f"{name}.{batch}.lengths"]
        chosen = evaluation_mask(lengths.tolist(), len(x), state)
        assert np.array_equal(chosen, golden[f"{name}.{batch}.pred_mask"])
        assert np.array_equal(np.where(chosen, MASK, x), golden[f"{name}.{batch}.x"])
        if x.shape == (64, 1):
            assert np.array_equal(next(windows), chosen[:, 0])


def text(rng: np.random.Generator, positions: int, rows: int, n_words: int = 60) -> Any:
    """(T, B) sentences of several lengths with eos at both ends, padded."""
    tokens = rng.integers(14, n_words, (positions, rows))
    tokens[0] = EOS
    for row, length in enumerate(rng.integers(3, positions + 1, rows)):
        tokens[length - 1, row], tokens[length:, row] = EOS, PAD
    return tokens


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("multiple", [1, 8])
def test_first_positions_and_padding_are_never_chosen(alpha: float, multiple: int) -> None:
    counts = np.concatenate([np.zeros(14), 1000 // np.arange(1, 47)]).astype(np.int64)
    masking = Masking(60, alpha=alpha, counts=counts, multiple=multiple)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        tokens = text(rng, 20, 7)
        chosen = masking.choose(tokens, rng)
        assert not chosen[0].any()
        assert not chosen[tokens == PAD].any()
        count = int(chosen.sum())
        assert count >= 1
        assert count < 8 or count % multiple == 0
        if alpha:
            assert not chosen[tokens == EOS].any()  # its count is 0


def test_a_share_of_the_positions_is_chosen_and_replaced_in_shares() -> None:
    masking, rng = Masking(1000), np.random.default_rng(0)
    tokens = rng.integers(14, 1000, (256, 400))
    chosen = masking.choose(tokens, rng)
    assert chosen[1:].mean() == pytest.approx(0.15, abs=0.005)  # 4 standard deviations
    kinds, words = masking.draw_replacements(100_000, rng)
    assert np.bincount(kinds) / 100_000 == pytest.approx([0.8, 0.1, 0.1], abs=0.005)
    assert (words.min(), words.max()) == (0, 999)  # any word, specials too
    assert replace(np.array([7, 8, 9]), np.array([0, 1, 2]), np.array([20, 21, 22])).tolist() == [MASK, 8, 22]


def test_rare_words_are_chosen_in_proportion_to_their_score() -> None:
    """Counts 1 and 100 under alpha 0.5: ten times as often; a word of count 0 never."""
    counts = np.zeros(17, dtype=np.int64)
    counts[14], counts[15] = 1, 100
    masking, rng = Masking(17, share=0.01, alpha=0.5, counts=counts), np.random.default_rng(0)
    tokens = np.tile(np.array([14, 15, 16]), (101, 40))
    found = sum(np.bincount(tokens[masking.choose(tokens, rng)], minlength=17) for _ in range(60))
    assert found[16] == 0
    assert found[14] / found[15] == pytest.approx(10, rel=0.2)


def test_a_whole_number_as_alpha_works_and_none_is_too_large_to_compute() -> None:
    counts = np.zeros(17, dtype=np.int64)
    counts[14], counts[15] = 1, 10**12
    tokens = np.tile(np.array([14, 15]), (10, 5))
    for alpha in (1, 10):
        whole, decimal = (
            Masking(17, alpha=kind(alpha), counts=counts).choose(tokens, np.random.default_rng(0))
            for kind in (int, float)
        )
        assert (whole == decimal).all()
    for alpha in (float("nan"), float("inf"), 10.1):
        with pytest.raises(ConfigError, match="must be from 0 to 10"):
            Masking(17, alpha=alpha, counts=counts)


def test_a_draw_of_nothing_still_chooses_one_position() -> None:
    for seed in range(20):
        chosen = Masking(60, share=1e-9).choose(np.full((5, 2), 20), np.random.default_rng(seed))
        assert chosen.sum() == 1
        assert not chosen[0].any()
    assert (
        Masking(60, alpha=0.5, counts=np.zeros(60, dtype=np.int64))
        .choose(np.full((5, 2), 20), np.random.default_rng(0))
        .sum()
        == 1
    )
    assert evaluation_mask([2], 2, np.random.RandomState(1)).tolist() == [[False], [True]]


def test_impossible_settings_are_told_together() -> None:
    with pytest.raises(ConfigError) as error:
        Masking(60, share=0.0, alpha=-1.0, replacements=(0.8, 0.1))
    assert error.value.problems == [
        "mask_share=0.0: must be above 0 and below 1",
        "sample_alpha=-1.0: must be from 0 to 10",
        "replacements=[0.8, 0.1]: must be three shares that add up to 1: mask, keep, random word",
    ]
