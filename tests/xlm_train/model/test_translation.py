"""Translations against the original's own, and against the plain rules: no cache, one sentence at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from xlm_train.interop.original.names import to_ours
from xlm_train.model.cache import AlignedCache
from xlm_train.model.decoding import Sampling
from xlm_train.model.seq2seq import Seq2Seq, pad, predictions
from xlm_train.model.transformer import ModelShape
from xlm_train.model.translation import Beam, translate
from xlm_train.runtime.errors import ConfigError
from xlm_train.training.precision import Autocast

EOS = 1


class Casts(TorchDispatchMode):
    """Counts the casts of matrices by their shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].ndim == 2:
            self.shapes[tuple(args[0].shape)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("ops", ["fast", "plain"])
def test_in_half_precision_a_step_decodes_and_learns(ops: str) -> None:
    """Each weight is cast once for all words that are decoded, and what is cast is no obstacle to the gradients."""
    torch.manual_seed(0)
    model = Seq2Seq(ModelShape(n_words=61, dim=48, n_layers=2, n_heads=4, ffn_dim=192), ops=ops)
    sources = [[EOS, *range(4, 4 + n), EOS] for n in (9, 12, 5)]
    with Autocast("bf16-mixed", "cpu").forward_context():
        with Casts() as casts:
            made = translate(model, sources, 0, 1, 30)
        if ops == "fast":
            of_encoder, of_decoder = 2 * 4, 2 * 8  # products with (48, 48) of attention
            assert sum(map(len, made)) > 20
            assert casts.shapes[48, 48] <= of_encoder + of_decoder
            assert casts.shapes[192, 48] == 4
        tokens, lengths = pad(made)
        source = model.encode(tokens, 1, lengths)
        targets, lengths = pad(sources)
        model.loss(source, targets, 0, predictions(lengths)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
def test_all_360_translations_are_the_originals(complete: Path) -> None:
    folder = complete / "goldens/mt"
    model = Seq2Seq(ModelShape(n_words=6142, dim=64, n_layers=2, n_heads=4, ffn_dim=256))
    for name, side in (("encoder", model.encoder), ("decoder", model.decoder)):
        with np.load(folder / f"trained_{name}.npz") as arrays:
            tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        side.load_state_dict(to_ours(tensors, model.shape, name, reads_source=name == "decoder"))
    compared = 0
    with np.load(folder / "generate.npz") as golden:
        for direction, (source, target) in {"de-en": (0, 1), "en-de": (1, 0)}.items():
            ends = zip(golden[f"{direction}.src"].T, golden[f"{direction}.src_len"], strict=True)
            sources = [row[:n].tolist() for row, n in ends]
            for key in [key for key in golden.files if key.startswith(direction) and key.endswith(".ids")]:
                name = key.removeprefix(f"{direction}.").removesuffix(".ids")
                limit = 8 if name.endswith("max8") else int(golden[f"{direction}.max_len"])
                search = None
                if name.startswith("beam"):  # beam4_lp1.0_late
                    size, penalty, stop = name.split("_")[:3]
                    search = Beam(int(size[4:]), float(penalty[2:]), stop == "early")
                ends = zip(golden[f"{direction}.{name}.ids"].T, golden[f"{direction}.{name}.len"], strict=True)
                found = translate(model, sources, source, target, limit, search)
                assert found == [row[:n].tolist() for row, n in ends], (direction, name)
                compared += len(found)
    assert compared == 360


def sentences(random: np.random.Generator, lengths: Iterable[int]) -> list[list[int]]:
    return [[EOS, *random.integers(14, 40, n).tolist(), EOS] for n in lengths]


@pytest.fixture(scope="module")
def model() -> Seq2Seq:
    """One that has half learnt to copy: it is unsure of words and of where to end."""
    torch.manual_seed(5)
    model = Seq2Seq(ModelShape(n_words=40, dim=24, n_layers=2, n_heads=3, ffn_dim=48, max_positions=32, dropout=0.1))
    random, optimizer = np.random.default_rng(1), torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(100):
        tokens, lengths = pad(sentences(random, random.integers(1, 15, 32)))
        model.loss(model.encode(tokens, 0, lengths), tokens, 1, predictions(lengths)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def sources() -> list[list[int]]:
    return sentences(np.random.default_rng(2), (3, 9, 1, 14, 6, 2, 11, 5))


@torch.no_grad()
def log_probabilities(model: Seq2Seq, source: list[int], text: list[int]) -> torch.Tensor:
    hidden = model.eval()(torch.tensor([source]), 0, None, torch.tensor([text]), 1)
    return model.decoder.logits(hidden[0, -1]).log_softmax(0)


def plain_greedy(model: Seq2Seq, source: list[int], limit: int) -> list[int]:
    text = [EOS]
    while len(text) < limit:
        text.append(int(log_probabilities(model, source, text).argmax()))
        if text[-1] == EOS:
            return text
    return [*text[:-1], EOS]


def plain_beam(model: Seq2Seq, source: list[int], limit: int, beam: Beam) -> list[int]:
    open_, closed = [(0.0, [EOS])], []
    for length in range(1, limit):
        every = [
            (score + float(value), text, word)
            for score, text in open_
            for word, value in enumerate(log_probabilities(model, source, text))
        ]
        best = sorted(every, key=lambda candidate: -candidate[0])[: 2 * beam.size]
        if len(closed) == beam.size:
            worst = min(score for score, _ in closed)
            if beam.early_stopping or worst >= best[0][0] / (limit - 1) ** beam.length_penalty:
                break
        open_ = []
        for score, text, word in best:
            if word == EOS or length + 1 == limit:
                closed.append((score / len(text) ** beam.length_penalty, text))
                closed = sorted(closed, key=lambda entry: -entry[0])[: beam.size]
            else:
                open_.append((score, [*text, word]))
            if len(open_) == beam.size:
                break
    return [*max(closed, key=lambda entry: entry[0])[1], EOS]


@pytest.mark.parametrize("limit", [2, 3, 8, 25])
def test_greedy_translations_equal_the_plain_ones(model: Seq2Seq, sources: list[list[int]], limit: int) -> None:
    found = translate(model, sources, 0, 1, limit)
    assert found == [plain_greedy(model, source, limit) for source in sources]
    assert limit < 25 or len({len(text) for text in found}) > 3


@pytest.mark.parametrize("beam", [Beam(1), Beam(2, 1.6), Beam(4), Beam(3, 0.6, early_stopping=True)])
@pytest.mark.parametrize("limit", [2, 12])
def test_beams_equal_the_plain_ones(model: Seq2Seq, sources: list[list[int]], beam: Beam, limit: int) -> None:
    assert translate(model, sources, 0, 1, limit, beam) == [plain_beam(model, s, limit, beam) for s in sources]


def test_a_sentence_does_not_depend_on_its_company(model: Seq2Seq, sources: list[list[int]]) -> None:
    for search in (Sampling(temperature=1.0, seed=3), Sampling(), Beam(3)):
        together = translate(model, sources, 0, 1, 20, search)
        assert translate(model, sources[::-1], 0, 1, 20, search) == together[::-1]
        assert [translate(model, [source], 0, 1, 20, search)[0] for source in sources] == together


@pytest.mark.parametrize("search", [Sampling(), Beam(3)])
def test_each_sentence_has_its_own_limit(model: Seq2Seq, sources: list[list[int]], search: Sampling | Beam) -> None:
    limits = [2, 5, 20, 7, 3, 20, 4, 9]
    alone = [translate(model, [source], 0, 1, limit, search)[0] for source, limit in zip(sources, limits, strict=True)]
    assert translate(model, sources, 0, 1, limits, search) == alone


def test_samples_follow_the_seed(model: Seq2Seq, sources: list[list[int]]) -> None:
    first, again, other = (translate(model, sources, 0, 1, 20, Sampling(1.0, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert all(text[0] == text[-1] == EOS and 2 <= len(text) <= 20 for text in first)


def test_the_mode_is_left_as_it_was(model: Seq2Seq, sources: list[list[int]]) -> None:
    expected = translate(model.eval(), sources, 0, 1, 20)
    assert not model.training
    assert translate(model.train(), sources, 0, 1, 20) == expected  # without dropout
    assert model.training
    assert model.decoder.training


def test_rows_of_the_cache_move() -> None:
    shape = ModelShape(n_words=20, dim=4, n_layers=1, n_heads=2, ffn_dim=4)
    cache = AlignedCache(shape, 5, 3, torch.zeros(1))
    rows = torch.arange(5.0)[:, None, None, None].expand(5, 2, 1, 2)
    cache.store(0, torch.zeros(1, 1))(rows, -rows)
    cache.length = 1
    cache.select([3, 3, 0, 2])
    new = torch.full((4, 2, 1, 2), 9.0)
    keys, values = cache.store(0, torch.zeros(1, 1))(new, new)
    assert keys.shape == (4, 2, 2, 2)
    assert keys[:, 0, :, 0].tolist() == [[3, 9], [3, 9], [0, 9], [2, 9]]
    assert values[:, 1, 0, 1].tolist() == [-3, -3, 0, -2]


@pytest.mark.parametrize("limit", [1, 33])
def test_lengths_that_cannot_be_are_refused(model: Seq2Seq, sources: list[list[int]], limit: int) -> None:
    with pytest.raises(ConfigError, match=f"max_length={limit}: must be from 2 to 32"):
        translate(model, sources, 0, 1, limit)
    with pytest.raises(ConfigError, match="beam=0"):
        Beam(0)
