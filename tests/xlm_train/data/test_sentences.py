"""Sentence batches: each sentence once a pass, about the budget in each batch, the original's cut, nothing of corpus size."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.conftest import read_lines
from xlm_train.data.sentences import SentenceBatches, shuffled
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.bpe import BpeEncoder
from xlm_train.text.bpe_codes import BpeCodes
from xlm_train.text.tokenise import Tokeniser
from xlm_train.text.vocabulary import Vocabulary

Sides = list[NDArray[np.int64]]


def sides_of(lengths: list[tuple[int, ...]]) -> Sides:
    return [np.array(side, dtype=np.int64) for side in zip(*lengths, strict=True)]


def make(sides: Sides, tokens: int, max_len: int = 100, seed: int = 3, side_by_side: bool = False) -> SentenceBatches:
    """The batches of sentences of these lengths, or pairs; sentence i has length sides[0][i] (and sides[1][i])."""
    keys = [sides[0]] if len(sides) == 1 else [sum(sides), sides[0]]
    table, counts = np.unique(np.stack(keys, axis=1), axis=0, return_counts=True)
    by_length = np.lexsort(keys[::-1]).astype(np.uint32)
    return SentenceBatches("x", np.column_stack([table, counts]), by_length, tokens, max_len, seed, side_by_side)


def kept(sides: Sides, max_len: int) -> list[int]:
    return np.flatnonzero([all(2 < n <= max_len + 2 for n in lengths) for lengths in zip(*sides, strict=True)]).tolist()


@st.composite
def texts(draw: st.DrawFn) -> dict:
    """Sentences or pairs, some too short or too long; a budget that may be barely enough for the longest."""
    n_sides = draw(st.integers(1, 2))
    lengths = draw(st.lists(st.tuples(*[st.integers(2, 15)] * n_sides), min_size=1, max_size=120))
    max_len = draw(st.integers(1, 14))
    if not kept(sides_of(lengths), max_len):
        lengths.append((3,) * n_sides)
    tokens = draw(st.integers(n_sides * (max_len + 2) + 1, 90))
    return {
        "sides": sides_of(lengths),
        "tokens": tokens,
        "max_len": max_len,
        "seed": draw(st.integers(0, 2**63 - 1)),
        "side_by_side": draw(st.booleans()),
    }


@given(texts(), st.integers(0, 10**6))
@settings(max_examples=150)
def test_each_sentence_once_a_pass_in_batches_of_the_budget(text: dict, pass_: int) -> None:
    batches, total = make(**text), sum(text["sides"])
    read = [batches.sentences(number, pass_) for number in range(batches.n_batches)]
    assert sorted(itertools.chain(*(batch.tolist() for batch in read))) == kept(text["sides"], text["max_len"])
    assert all(len(batch) for batch in read)
    assert all(total[batch].sum() < text["tokens"] + total[batch].max() for batch in read)
    assert batches.tokens_per_batch * batches.n_batches == sum(total[batch].sum() for batch in read)


@given(texts(), st.data())
@settings(max_examples=100)
def test_a_batch_is_the_same_alone_and_in_any_order(text: dict, data: st.DataObject) -> None:
    batches = make(**text)
    wanted = {(n, p): batches.sentences(n, p).tolist() for p in range(2) for n in range(batches.n_batches)}
    for number, pass_ in data.draw(st.permutations(list(wanted)))[:20]:
        assert make(**text).sentences(number, pass_).tolist() == wanted[number, pass_]
        assert batches.sentences(number, pass_).tolist() == wanted[number, pass_]


@given(texts())
@settings(max_examples=100)
def test_padding_is_what_the_batches_have(text: dict) -> None:
    batches, sides = make(**text), text["sides"]
    columns = sides if text["side_by_side"] else [sum(sides)]
    read = [batches.sentences(number, 0) for number in range(batches.n_batches)]
    tokens = sum(int(column[batch].sum()) for batch in read for column in columns)
    cells = sum(len(batch) * int(column[batch].max()) for batch in read for column in columns)
    assert batches.padding == pytest.approx(1 - tokens / cells, abs=1e-12)


@given(texts())
@settings(max_examples=100)
def test_the_cut_is_the_rule(text: dict) -> None:
    """Batch k holds the sentences whose running sum falls into [kT, (k+1)T), and sentences come by length."""
    batches = make(**(text | {"side_by_side": False}))
    total = np.sort(sum(text["sides"])[kept(text["sides"], text["max_len"])])
    numbers = np.cumsum(total) // text["tokens"]
    assert np.array_equal(
        np.searchsorted(numbers, np.arange(batches.n_batches + 1)), batches.bounds(np.arange(batches.n_batches + 1))
    )
    read = np.concatenate([batches.sentences(number, 1) for number in range(batches.n_batches)])
    assert np.array_equal(sum(text["sides"])[read], total)


def test_by_hand() -> None:
    sides = sides_of([(3,), (7,), (4,), (7,), (3,), (12,)])  # by length 3 3 4 7 7 12, sums 3 6 10 17 24 36
    batches = make(sides, tokens=13, max_len=10)
    assert batches.bounds(np.arange(4)).tolist() == [0, 3, 5, 6]
    assert [sorted(batches.sentences(number, 0).tolist()) for number in range(3)] == [[0, 2, 4], [1, 3], [5]]
    assert batches.padding == pytest.approx(1 - 36 / (3 * 4 + 2 * 7 + 12))
    without_the_longest = make(sides, tokens=13, max_len=9)
    assert without_the_longest.n_sentences == 5
    assert without_the_longest.n_batches == 2


@pytest.mark.parametrize("kind", ["mono.de", "para"])
def test_cut_as_the_original(kind: str, shared: Path) -> None:
    """Its permutation, sorted by length and cut by our bounds, is its batches; its shuffle of their list is not ours."""
    golden = np.load(shared / "goldens/mt/batching.npz")
    names = ["mono.de.pos"] if kind == "mono.de" else ["para.pos1", "para.pos2"]
    sides = [(golden[name][:, 1] - golden[name][:, 0] + 2).astype(np.int64) for name in names]  # start and eos
    batches = make(sides, tokens=400, max_len=60)
    line = np.random.RandomState(11).permutation(len(sides[0]))
    line = line[np.argsort(sum(sides)[line], kind="stable")]
    bounds = batches.bounds(np.arange(batches.n_batches + 1))
    ours = {tuple(line[begin:end].tolist()) for begin, end in itertools.pairwise(bounds)}
    theirs = np.split(golden[f"{kind}.tokens400.ids"], np.cumsum(golden[f"{kind}.tokens400.sizes"])[:-1])
    assert ours == {tuple(batch.tolist()) for batch in theirs}
    assert len(theirs) == batches.n_batches


def test_passes_seeds_and_streams_differ() -> None:
    sides = sides_of([(3 + i % 5,) for i in range(500)])
    read = [tuple(make(sides, 60, seed=seed).sentences(7, pass_)) for seed, pass_ in [(0, 0), (0, 1), (1, 0)]]
    other = SentenceBatches(
        "y", np.array([[n, 100] for n in range(3, 8)]), np.argsort(sides[0], kind="stable"), 60, 100, 0
    )
    assert len({*read, tuple(other.sentences(7, 0))}) == 4


def test_pairs_side_by_side_need_little_padding() -> None:
    """Lengths as of real pairs: sorted by the sum alone a tenth of the cells is padding."""
    random = np.random.default_rng(5)
    first = random.lognormal(2.9, 0.6, 20_000)
    sides = [np.clip(n, 3, 90).astype(np.int64) for n in (first, first * random.lognormal(0, 0.2, 20_000))]
    by_sum = np.argsort(sum(sides), kind="stable")
    parts = np.split(by_sum, np.flatnonzero(np.diff(np.cumsum(sum(sides)[by_sum]) // 2000)) + 1)
    cells = sum(len(part) * int(side[part].max()) for part in parts for side in sides)
    assert 1 - int(sum(sides).sum()) / cells > 0.1
    assert make(sides, 2000, side_by_side=True).padding < 0.03
    assert make(sides, 2000).padding < 0.005  # in one row


@pytest.mark.slow
def test_real_text_needs_little_padding(complete: Path) -> None:
    """The sutta corpus at 2,000 tokens: 0.4 % of sentences, 1.4 % of the 2,962 pairs in one row, 6.1 % side by side."""
    encoder = BpeEncoder(BpeCodes.from_file(complete / "goldens/bpe/codes"))
    vocabulary = Vocabulary.from_file(complete / "goldens/bpe/vocab")

    def lengths(lang: str, *names: str) -> NDArray[np.int64]:
        lines = [line for name in names for line in read_lines(complete / f"corpora/sutta.{name}.{lang}.gz")]
        encoded = encoder.encode_ids(Tokeniser(lang).tokenise(lines), vocabulary)
        return np.diff(encoded.starts, append=len(encoded.ids)) + 1  # of both eos the text has one

    for lang in ("de", "en"):
        assert make([lengths(lang, "train")], 2000).padding < 0.005
    pairs = [lengths(lang, "parvalid", "partest") for lang in ("de", "en")]
    assert make(pairs, 2000).padding < 0.02
    assert make(pairs, 2000, side_by_side=True).padding < 0.07


def test_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"data.max_len=4: x has no training sentence of 1 to 4 tokens"):
        make(sides_of([(2,), (7,)]), tokens=50, max_len=4)
    with pytest.raises(ConfigError, match=r"x has no training sentence"):
        SentenceBatches("x", np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.uint32), 50, 100, 0)
    with pytest.raises(
        ConfigError, match=r"data.tokens_per_slot=12: must be more than the 12 tokens of the longest sentence of x"
    ):
        make(sides_of([(3,), (12,)]), tokens=12)
    assert make(sides_of([(3,), (12,)]), tokens=13).n_batches == 2


def test_ten_million_sentences_take_the_memory_of_one_batch(tmp_path: Path) -> None:
    """Mapped numbers, of which a batch reads its own: no array of corpus size, which would be 40 MB."""
    file = tmp_path / "train.x.bylength.npy"
    np.lib.format.open_memmap(file, "w+", np.uint32, (10_000_000,)).flush()  # sparse: zeros that take no disk
    table = np.array([[length, 100_000] for length in range(3, 103)])
    tracemalloc.start()
    batches = SentenceBatches("x", table, np.load(file, mmap_mode="r"), 2000, 100, 0)
    assert batches.padding < 1e-4
    for number in range(0, batches.n_batches, batches.n_batches // 50):
        batches.sentences(number, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@given(st.integers(1, 3000), st.integers(0, 2**31))
@settings(max_examples=60)
def test_shuffled_is_a_permutation(n: int, seed: int) -> None:
    assert sorted(shuffled(np.arange(n), n, (seed, "en")).tolist()) == list(range(n))


@given(st.integers(2**33, 2**40), st.integers(0, 2**63 - 1), st.data())
@settings(max_examples=40)
def test_a_vast_shuffle_repeats_nothing(n: int, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n - 2000))
    image = shuffled(np.arange(start, start + 2000), n, (seed, "en"))
    assert len(set(image.tolist())) == 2000
    assert 0 <= image.min() <= image.max() < n


def test_shuffled_looks_random() -> None:
    n = 10_000
    image = shuffled(np.arange(n), n, (0, "en", 0)).astype(float)
    assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 0.05  # 5 standard deviations
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.05
    assert int((image == np.arange(n)).sum()) < 10  # Poisson with mean 1
    whole = {tuple(shuffled(np.arange(5), 5, (0, key)).tolist()) for key in range(3000)}
    assert len(whole) == 120  # every order of five
