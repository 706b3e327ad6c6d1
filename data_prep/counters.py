"""How often words come: counters in work files, added up."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.work import compress, decompress, load
from xlm_train.text.numbered import Numbers


def counter_arrays(counts: Mapping[str, int], number: int = 0) -> dict[str, Any]:
    """A counter as members of a work file. Words cannot hold a newline, so they are kept as lines."""
    words = "\n".join(counts).encode()
    return {
        f"words{number or ''}": compress(words),
        f"counts{number or ''}": np.fromiter(counts.values(), np.int64, len(counts)),
    }


def places_key(number: int = 0) -> str:
    """The member of a work file that says where each word of its counter of this number stands first."""
    return f"places{number or ''}"


def load_counter(path: Path, number: int = 0) -> dict[str, int]:
    """A counter of a work file, in the order it was saved in."""
    words, counts = _words_and_counts(path, number)
    return dict(zip(words, counts.tolist(), strict=True))


def _words_and_counts(path: Path, number: int) -> tuple[list[str], NDArray[np.int64]]:
    counts = load(path, f"counts{number or ''}")
    words = decompress(load(path, f"words{number or ''}")).decode().split("\n") if len(counts) else []
    return words, counts


class Sums:
    """Counters of work files, added up in the order of first occurrence."""

    def __init__(self) -> None:
        self._words = Numbers()
        self._sums = np.empty(0, np.int64)

    def add(self, path: Path, number: int = 0) -> NDArray[np.bool_]:
        """Add a counter. Returns which of its words no counter before it had."""
        words, counts = _words_and_counts(path, number)
        known = len(self._words)
        numbers = self._words.of(words)
        self._sums = np.append(self._sums, np.zeros(len(self._words) - known, np.int64))
        self._sums[numbers] += counts  # a counter has each word once
        return numbers >= known

    def counter(self) -> Counter[str]:
        """What they are together."""
        return Counter(dict(zip(self._words, self._sums.tolist(), strict=True)))


def total(paths: Iterable[Path]) -> Counter[str]:
    """The sum of counters saved in work files, in the order of first occurrence."""
    sums = Sums()
    for path in paths:
        sums.add(path)
    return sums.counter()


def most_frequent(paths: Sequence[Path], most: int) -> tuple[dict[str, int], int, int]:
    """The words of counters that have no word in common, without the rarest where there are more than wanted.

    Args:
        paths: Work files of `sum_words`.
        most: Words wanted at most. Equally frequent ones stay or go together.

    Returns:
        The counts, in the order of first occurrence; how often a word comes that is left out, at most (0: none is); how
        often those come in all.
    """
    times: Counter[int] = Counter()  # how many words come so often
    for path in paths:
        different, n_words = np.unique(load(path, "counts"), return_counts=True)
        times.update(dict(zip(different.tolist(), n_words.tolist(), strict=True)))
    often = sorted(times, reverse=True)
    n_kept = bisect_right([*accumulate(times[count] for count in often)], most)
    rarest = often[n_kept] if n_kept < len(often) else 0
    found: list[tuple[str, int]] = []
    places = [np.empty(0, np.int64)]
    for path in paths:
        words, counts = _words_and_counts(path, 0)
        found += [item for item in zip(words, counts.tolist(), strict=True) if item[1] > rarest]
        places.append(load(path, places_key())[counts > rarest])
    in_order = dict(found[number] for number in np.argsort(np.concatenate(places)).tolist())
    return in_order, rarest, sum(count * words for count, words in times.items() if count <= rarest)
