"""The merges of a byte-pair encoding, learned from counted words (Sennrich et al. 2016, algorithm 1).

Of all pairs of neighbouring symbols the most frequent becomes one symbol wherever it stands, then the next. Of equally
frequent ones the first by number is taken: symbols are numbered as they first occur in the words, then as merges make
them. That is fastBPE's rule, whose order of words table_order.py knows.

All words are one array of cells, a character each. The number of a symbol stands in its first and its last cell, so its
neighbours' numbers are in the cells beside it. A pair is kept with the places where it stood when it was counted; whether
it still stands there is looked up when it may be the most frequent. Merges are made some at a time, where the order of
making them cannot matter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from xlm_train.text.bpe_codes import END_OF_WORD

Places = NDArray[np.intp]
Pair = tuple[int, int, int, Places]
"""Minus its count (or more than that, if it was counted earlier), left and right symbol, first cell of each place."""

# Pairs looked at together, and about how many places these may have: with more, more are put back; with fewer, numpy has
# too little to do.
BATCH, PLACES = 64, 50_000
PARTS = 8  # in which all pairs are counted: what is being counted takes some 50 bytes for each place of a pair
FEWER = 4  # divides the count below which pairs are not kept, when none is left above it

_INSIDE, _GAP = -2, -1  # cells of a symbol between its first and last; cells around words
_LAST = 1 << 32  # behind all symbols


def learn_merges(word_counts: Mapping[str, int], n_merges: int) -> list[tuple[str, str, int]]:
    """Learn merges.

    A pair whose result another merge has made already is left as it is: codes cannot hold both.

    Args:
        word_counts: How often each word occurs, one of them at least of two characters. Their order decides between
            pairs that are equally frequent.
        n_merges: Merges to learn; there are fewer if every word is whole before.

    Returns:
        Left symbol, right symbol and how often they stand side by side, for each, in order.
    """
    learner = _Learner(word_counts, n_merges)
    while learner.wanted and learner.find_pairs():
        learner.merge_some()
    return learner.merges


@dataclass
class _Groups:
    """Places by key: those of group n are places[starts[n] : ends[n]], and words have them counts[n] times."""

    keys: NDArray[np.int64]
    starts: NDArray[np.intp]
    ends: NDArray[np.intp]
    places: Places
    counts: NDArray[np.int64]

    def take(self, chosen: NDArray[np.bool_]) -> list[tuple[int, int, Places]]:
        """Key, count and places of some groups."""
        columns = (column[chosen].tolist() for column in (self.keys, self.counts, self.starts, self.ends))
        return [(key, count, self.places[start:end]) for key, count, start, end in zip(*columns, strict=True)]


class _Learner:
    """Words and their pairs while merges are made."""

    def __init__(self, words: Mapping[str, int], n_merges: int) -> None:
        sizes = np.fromiter(map(len, words), np.intp, len(words))
        text = np.frombuffer("\0".join(["", *words, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)
        gaps = np.cumsum(np.append(0, sizes + 1))
        symbols = 2 * text + 2  # 0 is free for the gaps
        symbols[gaps[1:] - 1] += 1  # the last of a word is another one
        symbols[gaps] = 0
        first = np.full(int(symbols.max()) + 1, len(symbols))
        first[symbols[::-1]] = np.arange(len(symbols))[::-1]
        first[0] = len(symbols)
        different = np.argsort(first)[: np.count_nonzero(first < len(symbols))]
        number = np.zeros(len(first), np.int32)
        number[different] = np.arange(len(different))
        self.cells = number[symbols]
        self.cells[gaps] = _GAP
        self.is_first = np.ones(len(text), bool)
        self.weights = np.append(0, np.repeat(np.fromiter(words.values(), np.int64, len(words)), sizes + 1))
        self.names = [chr((symbol >> 1) - 1) + END_OF_WORD * (symbol & 1) for symbol in different.tolist()]
        self.known = set(self.names)
        self.lengths = np.ones(len(self.names) + min(n_merges, len(text)), np.intp)
        # The count below which pairs are not kept. It begins at about that of the last merge in running text.
        self.least = FEWER * max(1, int(self.weights.sum()) // (100 * n_merges))
        self.heap: list[Pair] = []
        self.merges: list[tuple[str, str, int]] = []
        self.wanted = n_merges

    def find_pairs(self) -> bool:
        """Whether there is a pair, among rarer ones if need be."""
        while not self.heap and self.least > 1:
            self.least = max(1, self.least // FEWER)
            self._count_all()
        return bool(self.heap)

    def merge_some(self) -> None:
        """Make the next merge, and those after it of which it is certain that they are next."""
        batch: list[Pair] = []
        n_places = 0
        while self.heap and len(batch) < BATCH and n_places < PLACES:
            batch.append(heappop(self.heap))
            n_places += len(batch[-1][3])
        of = np.repeat(np.arange(len(batch)), [len(pair[3]) for pair in batch])
        left, right = (np.array([pair[side] for pair in batch])[of] for side in (1, 2))
        places = np.concatenate([pair[3] for pair in batch])
        there = (self.cells[places] == left) & (self.cells[places + self.lengths[left]] == right)
        places, of = places[there], of[there]
        counts = np.bincount(of, self.weights[places], len(batch)).astype(np.int64).tolist()
        ends = np.cumsum(np.bincount(of, minlength=len(batch))).tolist()
        found = [
            (-count, left, right, places[start:end])
            for count, (_, left, right, _), start, end in zip(counts, batch, [0, *ends], ends, strict=False)
            if count >= self.least
        ]
        found.sort(key=lambda pair: pair[:3])
        chosen, rest = self._choose(found)
        if chosen:
            rest += self._merge(chosen)
        for pair in rest:
            heappush(self.heap, pair)

    def _choose(self, found: list[Pair]) -> tuple[list[Pair], list[Pair]]:
        """Pairs that come next and have no place that overlaps another's; and the others."""
        chosen: list[Pair] = []
        lefts: set[int] = set()
        rights: set[int] = set()
        results: set[str] = set()
        for n, pair in enumerate(found):
            _, left, right, _ = pair
            if (
                (self.heap and self.heap[0][:3] < pair[:3])
                or left in rights
                or right in lefts
                or (chosen and left == right)
                or len(chosen) == self.wanted
            ):
                return chosen, found[n:]
            result = self.names[left] + self.names[right]
            if result in self.known or result in results:
                continue
            chosen.append(pair)
            lefts.add(left)
            rights.add(right)
            results.add(result)
        return chosen, []

    def _merge(self, pairs: list[Pair]) -> list[Pair]:
        """Make merges, all but those that a pair made by an earlier one comes before.

        Returns:
            The pairs of which no merge was made.
        """
        lefts, rights = (np.array([pair[side] for pair in pairs]) for side in (1, 2))
        if lefts[0] == rights[0]:
            pairs = [(*pairs[0][:3], _every_second(pairs[0][3], int(self.lengths[lefts[0]]))), *pairs[1:]]
        of = np.repeat(np.arange(len(pairs)), [len(pair[3]) for pair in pairs])
        places = np.concatenate([pair[3] for pair in pairs])
        middles = places + self.lengths[lefts[of]]
        ends = middles + self.lengths[rights[of]]
        made = self._neighbours(of, places, ends)
        n = _how_many(pairs, made)
        part = of < n
        of, places, middles, ends = of[part], places[part], middles[part], ends[part]
        first = len(self.names)
        for count, left, right, _ in pairs[:n]:
            self.merges.append((self.names[left], self.names[right], -count))
            self.lengths[len(self.names)] = self.lengths[left] + self.lengths[right]
            self.names.append(self.names[left] + self.names[right])
            self.known.add(self.names[-1])
        self.wanted -= n
        self.is_first[middles] = False
        self.cells[middles - 1] = self.cells[middles] = _INSIDE
        self.cells[places] = self.cells[ends - 1] = first + of
        for key, count, where in made.take((made.counts >= self.least) & (made.keys < n << 33)):
            new, neighbour = first + (key >> 33), key & (_LAST - 1)
            if key & _LAST:
                heappush(self.heap, (-count, new, neighbour, where))
            else:
                heappush(self.heap, (-count, neighbour, new, where - self.lengths[neighbour]))
        # Neighbours were as they stood before: of two that became neighbours here neither knew the other.
        behind = places[self.cells[places - 1] >= first]
        if len(behind):
            left = self.cells[behind - 1]
            self._add(left, self.cells[behind], behind - self.lengths[left])
        return pairs[n:]

    def _neighbours(self, of: NDArray[np.intp], places: Places, ends: Places) -> _Groups:
        """Pairs that merges make, by number of the merge, side (_LAST: behind) and neighbour."""
        before, behind = self.cells[places - 1], self.cells[ends]
        has_before, has_behind = before != _GAP, behind != _GAP
        keys = np.concatenate(
            [of[has_before] << 33 | before[has_before], of[has_behind] << 33 | _LAST | behind[has_behind]]
        )
        return self._group(keys, np.concatenate([places[has_before], places[has_behind]]))

    def _count_all(self) -> None:
        places = np.flatnonzero(self.is_first)
        symbols = self.cells[places]
        left, right = symbols[:-1], symbols[1:]
        is_pair = (left != _GAP) & (right != _GAP)
        for part in range(PARTS):
            chosen = np.flatnonzero(is_pair & ((left ^ right) % PARTS == part))
            self._add(left[chosen], right[chosen], places[chosen])

    def _add(self, left: NDArray[np.int32], right: NDArray[np.int32], places: Places) -> None:
        """Pairs of two symbols each, by the place; the rare ones are left out."""
        groups = self._group(left.astype(np.int64) << 32 | right, places)
        for key, count, where in groups.take(groups.counts >= self.least):
            heappush(self.heap, (-count, key >> 32, key & (_LAST - 1), where))

    def _group(self, keys: NDArray[np.int64], places: Places) -> _Groups:
        order = np.argsort(keys, kind="stable")
        keys, places = keys[order], places[order]
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))[: len(keys)]
        counts = np.add.reduceat(self.weights[places], starts) if len(starts) else np.empty(0, np.int64)
        return _Groups(keys[starts], starts, np.append(starts[1:], len(keys)), places, counts)


def _how_many(pairs: list[Pair], made: _Groups) -> int:
    """Of merges in order, how many come before every pair that they make (`made`, by `_Learner._neighbours`)."""
    n = len(pairs)
    often = made.counts >= -pairs[-1][0]
    for key, count in zip(made.keys[often].tolist(), made.counts[often].tolist(), strict=True):
        merge = key >> 33
        if merge >= n:
            break
        left = _LAST if key & _LAST else key & (_LAST - 1)  # a new symbol comes behind all others
        n = min(n, max(merge + 1, bisect_right(pairs, (-count, left, _LAST), key=lambda pair: pair[:3])))
    return n


def _every_second(places: Places, length: int) -> Places:
    """Of the places of a symbol beside itself those that are merged: in a row of them every second, from the left."""
    is_start = np.diff(places, prepend=-1 - length) != length
    number = np.arange(len(places))
    return places[(number - np.maximum.accumulate(np.where(is_start, number, 0))) % 2 == 0]
