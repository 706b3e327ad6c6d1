"""Which sentence goes where: pure functions, the same whatever the pieces and their order."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import select
from data_prep.choosing import RepeatJob, SortJob, find_repeated, sort_lines
from data_prep.select import EMPTY, Hashes
from data_prep.work import load, save
from xlm_train.runtime.errors import UserError

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


@pytest.mark.parametrize("capacity", [100, 1 << 20])
def test_counters_of_parts_come_to_that_of_the_whole(capacity: int) -> None:
    values = numbers(5_000)
    values = np.concatenate([values, values[:1000], [EMPTY] * 10]).astype(np.uint64)
    whole, merged = select.DuplicateCounter(capacity), select.DuplicateCounter(capacity)
    whole.add(values)
    for part in split(values, 700):
        counter = select.DuplicateCounter(capacity)
        counter.add(part)
        merged.merge(**counter.state())
    assert (merged.duplicates, merged.exact) == (whole.duplicates, whole.exact)
    assert whole.exact == (capacity > 100)


def smallest(pieces: list[Hashes], wanted: int, seed: int) -> select.Smallest:
    found, first = select.Smallest(wanted, seed), 0
    for piece in pieces:
        found.add(piece, np.arange(first, first + len(piece)))
        first += len(piece)
    return found


def test_held_out_sets_do_not_depend_on_order_or_pieces() -> None:
    values = numbers(5_000)
    values = np.concatenate([values, values[:1000], [EMPTY] * 10]).astype(np.uint64)
    first = smallest(split(values, 100), 80, seed=3).hashes
    assert list(smallest(split(values[::-1], 777), 80, seed=3).hashes) == list(first)
    assert len(np.unique(first)) == 80
    assert EMPTY not in first
    assert list(smallest([values], 50, seed=3).hashes) == list(first[:50])
    assert list(smallest([values], 50, seed=4).hashes) != list(first[:50])


def test_held_out_sets_of_parts_come_to_that_of_the_whole() -> None:
    values = np.random.default_rng(1).choice(numbers(400), 2_000)
    whole, merged = smallest([values], 150, seed=3), select.Smallest(150, seed=3)
    for start in range(0, len(values), 300):
        part = select.Smallest(150, seed=3)
        part.add(values[start : start + 300], np.arange(start, min(start + 300, len(values))))
        merged.add(part.hashes, part.lines)
    assert list(merged.hashes) == list(whole.hashes)
    assert list(merged.lines) == list(whole.lines) == [values.tolist().index(value) for value in whole.hashes]


def test_more_text_moves_few_held_out_sentences() -> None:
    values = numbers(10_000)
    before, after = (set(smallest([part], 1000, seed=0).hashes) for part in (values[:9_000], values))
    assert 850 < len(before & after) < 950  # those that the new tenth of the text pushes out


def test_too_few_sentences_give_a_shorter_set() -> None:
    assert len(smallest([numbers(10)], 16, seed=0).hashes) == 10
    assert len(smallest([numbers(10)], 0, seed=0).hashes) == 0


@given(texts, st.integers(1, 6), st.integers(1, 6))
def test_repeated_lines_are_all_but_the_first(lines: list[str], size: int, n_parts: int) -> None:
    pieces = split(select.sentence_hashes(lines), size)
    parted = [select.sorted_parts(piece, number * size, n_parts) for number, piece in enumerate(pieces)]
    found: list[int] = []
    for part in range(n_parts):
        seen = [values[starts[part] : starts[part + 1]] for values, starts in parted]
        found += select.repeated_lines(np.concatenate(seen)).tolist() if seen else []
    known: set[str] = set()
    expected = []
    for number, line in enumerate(lines):
        if line.strip() in known:
            expected.append(number)
        elif line.strip():
            known.add(line.strip())
    assert sorted(found) == expected


def test_what_repeats_comes_by_file_and_never_from_changed_bytes(tmp_path: Path) -> None:
    values = select.mix(np.array([3, 1, 3, 2, 1, 9, 3], np.uint64), seed=0)
    firsts, sorted_files = (0, 4), [tmp_path / "sorted0.npz", tmp_path / "sorted1.npz"]
    for first, some, out in zip(firsts, np.split(values, firsts[1:]), sorted_files, strict=True):
        save(file := tmp_path / f"hashes{first}.npz", hashes=some)
        sort_lines(SortJob(out, (file,), first, parts=2))
    jobs = [RepeatJob(tmp_path / f"repeated{part}.npz", tuple(sorted_files), part, firsts) for part in (0, 1)]
    for job in jobs:
        find_repeated(job)
    found = [sorted(n for job in jobs for n in load(job.out, f"lines{first}").tolist()) for first in firsts]
    assert found == [[2], [4, 6]]
    data = bytearray(sorted_files[1].read_bytes())
    for header in re.finditer(b"\x93NUMPY", bytes(data)):
        data[header.start() + 128] ^= 1  # the first of an array's own bytes
    sorted_files[1].write_bytes(data)
    with pytest.raises(UserError, match="was damaged and has been removed"):
        list(map(find_repeated, jobs))


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
