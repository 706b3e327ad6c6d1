"""Which sentence goes where: pure functions, the same whatever the pieces and their order."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import select
from data_prep.select import EMPTY, Hashes

texts = st.lists(st.sampled_from(["", "  ", "a", "b", "c", "Haus", "Haus ", "Maus", "x y", "y x"]), max_size=40)


def split(values: Hashes, size: int) -> list[Hashes]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def numbers(n: int, seed: int = 0) -> Hashes:
    return np.random.default_rng(seed).integers(1, 2**63, n, dtype=np.uint64)


def test_a_sentence_is_its_text_without_the_space_around_it() -> None:
    hashes = select.sentence_hashes(["Ein Satz.", " Ein Satz.\r", "Ein  Satz.", "", " \t"])
    assert hashes[0] == hashes[1] != hashes[2]
    assert list(hashes[3:]) == [EMPTY, EMPTY]


def test_mixing_is_one_to_one_and_seeded() -> None:
    values = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(select.mix(values, 1))) == len(values)
    assert not np.any(select.mix(values, 1) == select.mix(values, 2))


@given(texts, st.integers(1, 7))
def test_duplicates_are_counted_exactly_while_they_fit(lines: list[str], size: int) -> None:
    counter = select.DuplicateCounter()
    for piece in split(select.sentence_hashes(lines), size):
        counter.add(piece)
    full = [line.strip() for line in lines if line.strip()]
    assert (counter.duplicates, counter.exact) == (len(full) - len(set(full)), True)


@pytest.mark.parametrize("repeated", [0.05, 0.5])
def test_duplicates_are_estimated_within_2_percent_in_fixed_memory(repeated: float) -> None:
    n = 2_000_000
    distinct = numbers(int(n * (1 - repeated)))
    values = np.concatenate([distinct, np.random.default_rng(1).choice(distinct, n - len(distinct))])
    true = n - len(np.unique(values))
    counter = select.DuplicateCounter(capacity=1 << 17)
    for piece in split(np.random.default_rng(2).permutation(values), 50_000):
        counter.add(piece)
        assert len(counter._hashes) + counter._n_new <= 2 * counter.capacity + 50_000
    assert not counter.exact
    assert counter.duplicates == pytest.approx(true, rel=0.02)


def test_held_out_sets_do_not_depend_on_order_or_pieces() -> None:
    values = numbers(5_000)
    values = np.concatenate([values, values[:1000], [EMPTY] * 10]).astype(np.uint64)
    first = select.held_out(split(values, 100), [50, 30], seed=3)
    second = select.held_out(split(values[::-1], 777), [50, 30], seed=3)
    assert [list(a) for a in first] == [list(b) for b in second]
    assert [len(a) for a in first] == [50, 30]
    assert len(np.intersect1d(*first)) == 0
    assert EMPTY not in first[0]
    assert list(select.held_out([values], [50], seed=4)[0]) != list(first[0])


def test_more_text_moves_few_held_out_sentences() -> None:
    values = numbers(10_000)
    before, after = (set(select.held_out([part], [1000], seed=0)[0]) for part in (values[:9_000], values))
    assert 850 < len(before & after) < 950  # those that the new tenth of the text pushes out


def test_too_few_sentences_give_a_shorter_set() -> None:
    values = numbers(10)
    assert [len(found) for found in select.held_out([values], [8, 8], seed=0)] == [8, 2]


@given(texts, st.integers(1, 6), st.integers(1, 6))
def test_repeated_lines_are_all_but_the_first(lines: list[str], size: int, max_held: int) -> None:
    pieces = split(select.sentence_hashes(lines), size)
    found: set[int] = set()
    with TemporaryDirectory() as folder:
        sizes = [len(piece) for piece in pieces]
        for piece, where in select.repeated_lines(pieces.__getitem__, sizes, Path(folder), max_held):
            found |= {piece * size + int(line) for line in where}
    seen: set[str] = set()
    expected = set()
    for number, line in enumerate(lines):
        if line.strip() in seen:
            expected.add(number)
        elif line.strip():
            seen.add(line.strip())
    assert found == expected


def test_repeated_lines_are_found_in_little_memory_and_one_reading(tmp_path: Path) -> None:
    pieces = split(numbers(1 << 20), 1 << 14)
    pieces[40][7] = pieces[3][5]
    reads: list[int] = []

    def read(piece: int) -> Hashes:
        reads.append(piece)
        return pieces[piece]

    tracemalloc.start()
    try:
        found = list(select.repeated_lines(read, [len(piece) for piece in pieces], tmp_path, held=1 << 16))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(piece, lines.tolist()) for piece, lines in found] == [(40, [7])]
    assert reads == list(range(len(pieces)))
    assert peak < 6 * len(pieces) * len(pieces[0])  # bytes a line


@given(texts, st.integers(1, 6))
def test_the_first_of_each_of_a_set_is_found_once(lines: list[str], size: int) -> None:
    wanted = np.unique(select.sentence_hashes(["Haus", "x y"]))
    first = select.FirstSeen(wanted)
    found = []
    for number, piece in enumerate(split(select.sentence_hashes(lines), size)):
        found += [number * size + int(line) for line in first.lines(piece)]
    stripped = [line.strip() for line in lines]
    assert found == sorted(stripped.index(word) for word in ("Haus", "x y") if word in stripped)


def test_a_sample_has_its_share_of_each_language() -> None:
    shares = select.sample_shares({"de": 900_000, "en": 100_000}, alpha=0.5, n_sample=100_000)
    assert shares["de"] * 900_000 == pytest.approx(75_000)  # sqrt(0.9) : sqrt(0.1) is 3 : 1
    assert shares["en"] * 100_000 == pytest.approx(25_000)
    assert select.sample_shares({"de": 60, "en": 40}, alpha=1, n_sample=10**7) == {"de": 1.0, "en": 1.0}
    rare = select.sample_shares({"de": 990, "en": 10}, alpha=0, n_sample=10**7)
    assert rare["en"] * 10 == pytest.approx(500)  # copies: every rare sentence counts 50 times


def test_copies_do_not_depend_on_where_a_piece_begins() -> None:
    whole = select.sampled_copies(0, 100_000, 2.3, seed=5)
    parts = [select.sampled_copies(start, 1000, 2.3, seed=5) for start in range(0, 100_000, 1000)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert set(whole) == {2, 3}
    assert whole.mean() == pytest.approx(2.3, abs=0.01)
    assert np.all(select.sampled_copies(0, 1000, 1.0, seed=5) == 1)
    assert not np.array_equal(whole, select.sampled_copies(0, 100_000, 2.3, seed=6))
