"""Which sentence goes where: held-out sets, duplicates, overlap with the test sets. Pure functions of sentence hashes.

A sentence is known here by a 64-bit hash of its raw text without the space around it. `EMPTY` marks a blank line: it is
no one's duplicate and is never held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
EMPTY = np.uint64(0)


def sentence_hashes(lines: Iterable[str]) -> Hashes:
    """64-bit hashes of sentences; EMPTY for blank ones. About 1 microsecond each."""
    blake = hashlib.blake2b
    data = b"".join(
        [
            blake(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() if (text := line.strip()) else bytes(8)
            for line in lines
        ]
    )
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


def mix(values: Hashes, seed: int) -> Hashes:
    """A seeded, one-to-one scrambling of 64-bit values (the finaliser of splitmix64)."""
    offset = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF)
    with np.errstate(over="ignore"):
        x = values ^ offset
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


class DuplicateCounter:
    """How many sentences repeat an earlier one, in fixed memory.

    Keeps the distinct hashes that fall below a threshold, with their counts, and halves the threshold when there are
    more than `capacity`: exact up to `capacity` distinct sentences, beyond that a sample of them scaled up. With the
    default the standard error of the number of distinct sentences is about 0.1 %, that of the duplicates below 0.5 %
    where one sentence in twenty is one. Does not depend on the order or grouping of what is added.

    Args:
        capacity: Distinct hashes held, 16 bytes each.
    """

    def __init__(self, capacity: int = 1 << 20) -> None:
        self.capacity = capacity
        self.shift = 0  # hashes below 2^(64 - shift) are kept
        self.sentences = 0
        self._hashes: Hashes = np.empty(0, dtype=np.uint64)
        self._counts: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._new: list[Hashes] = []
        self._n_new = 0

    def add(self, hashes: Hashes) -> None:
        """Count some more sentences."""
        full = hashes[hashes != EMPTY]
        self.sentences += len(full)
        kept = self._kept(mix(full, seed=0))
        self._new.append(kept)
        self._n_new += len(kept)
        if self._n_new > self.capacity:
            self._merge()

    @property
    def duplicates(self) -> int:
        """Sentences minus distinct sentences; an estimate once `exact` is false."""
        self._merge()
        repeated = int(self._counts.sum()) - len(self._counts)
        return repeated << self.shift

    @property
    def exact(self) -> bool:
        """Whether every distinct sentence is held."""
        self._merge()
        return self.shift == 0

    def _kept(self, mixed: Hashes) -> Hashes:
        return mixed[(mixed >> np.uint64(64 - self.shift)) == 0] if self.shift else mixed

    def _merge(self) -> None:
        if not self._new:
            return
        values = np.concatenate([self._hashes, *self._new])
        counts = np.concatenate([self._counts, np.ones(self._n_new, dtype=np.int64)])
        self._hashes, inverse = np.unique(values, return_inverse=True)
        self._counts = np.bincount(inverse, weights=counts, minlength=len(self._hashes)).astype(np.int64)
        self._new, self._n_new = [], 0
        while len(self._hashes) > self.capacity:
            self.shift += 1
            n = int(np.searchsorted(self._hashes, np.uint64(1 << (64 - self.shift))))
            self._hashes, self._counts = self._hashes[:n], self._counts[:n]


def held_out(pieces: Iterable[Hashes], wanted: Sequence[int], seed: int) -> list[Hashes]:
    """Distinct sentences to hold out for each of several sets.

    The sentences whose seeded hash is smallest go to the first set, the next to the second, and so on: a function of
    the set of sentences and the seed, whatever their order. Memory: the sentences wanted, and one piece.

    Args:
        pieces: Hashes of the text's sentences, piece by piece.
        wanted: Sentences for each set.
        seed: Of the choice.

    Returns:
        Sorted hashes of each set; fewer where the text has too few distinct sentences.
    """
    total = sum(wanted)
    mixed = np.empty(0, dtype=np.uint64)
    original = np.empty(0, dtype=np.uint64)
    for hashes in pieces:
        full = hashes[hashes != EMPTY]
        scrambled = mix(full, seed)
        if len(mixed) == total:
            near = scrambled < mixed[-1]
            scrambled, full = scrambled[near], full[near]
        mixed, where = np.unique(np.concatenate([mixed, scrambled]), return_index=True)
        original = np.concatenate([original, full])[where][:total]
        mixed = mixed[:total]
    ends = np.cumsum(wanted)
    return [np.sort(original[end - count : end]) for count, end in zip(wanted, ends, strict=True)]


def is_among(hashes: Hashes, sorted_set: Hashes) -> NDArray[np.bool_]:
    """For each hash whether it is in the sorted set."""
    if not len(sorted_set):
        return np.zeros(len(hashes), dtype=bool)
    position = np.searchsorted(sorted_set, hashes)
    position[position == len(sorted_set)] = 0
    return sorted_set[position] == hashes  # type: ignore[no-any-return]


class FirstSeen:
    """Marks the first of each sentence of a small set, over pieces given in order.

    Args:
        sorted_set: Hashes of the sentences, sorted.
    """

    def __init__(self, sorted_set: Hashes) -> None:
        self.sorted_set = sorted_set
        self.seen = np.zeros(len(sorted_set), dtype=bool)

    def lines(self, hashes: Hashes) -> NDArray[np.int64]:
        """Numbers of the lines of this piece that hold a sentence of the set for the first time."""
        found = np.flatnonzero(is_among(hashes, self.sorted_set))
        places = np.searchsorted(self.sorted_set, hashes[found])
        _, first = np.unique(places, return_index=True)
        first = first[~self.seen[places[first]]]
        self.seen[places] = True
        return np.sort(found[first])


_SEEN = np.dtype([("hash", np.uint64), ("line", np.int64)])


def repeated_lines(
    read: Callable[[int], Hashes], sizes: Sequence[int], folder: Path, held: int = 1 << 20
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Find exactly which lines repeat an earlier one.

    The hashes, each piece's read once, are parted by their size into files, and each of these is sorted by itself.
    Memory: 50 bytes for each of `held` hashes, and a bit for every line.

    Args:
        read: Gives the hashes of a piece by its number.
        sizes: Lines of each piece.
        folder: For files of 16 bytes a line.
        held: Hashes held at once, about.

    Yields:
        Pieces in order, each with the numbers of those of its lines.
    """
    n_parts = max(1, -(-sum(sizes) // held))
    starts = np.cumsum([0, *(-(-size // 8) for size in sizes)], dtype=np.int64)  # of pieces, in bytes of `marks`
    parts: list[list[NDArray[Any]]] = [[] for _ in range(n_parts)]
    n_held = 0
    for piece in range(len(sizes)):
        values = read(piece)
        lines = np.flatnonzero(values != EMPTY)
        seen = np.empty(len(lines), _SEEN)
        seen["hash"], seen["line"] = values[lines], lines + 8 * starts[piece]
        owners = ((seen["hash"] >> np.uint64(32)) * np.uint64(n_parts)) >> np.uint64(32)
        order = np.argsort(owners, kind="stable")
        for part, found in zip(
            parts, np.split(seen[order], np.searchsorted(owners[order], range(1, n_parts))), strict=True
        ):
            part.append(found)
        n_held += len(lines)
        if n_held >= held or piece + 1 == len(sizes):
            for number, part in enumerate(parts):
                with open(folder / str(number), "ab") as file:
                    np.concatenate(part).tofile(file)
                part.clear()
            n_held = 0
    marks = np.zeros(starts[-1], np.uint8)
    for number in range(n_parts if sizes else 0):
        seen = np.fromfile(folder / str(number), _SEEN)
        seen = seen[np.argsort(seen["hash"], kind="stable")]  # equal ones stay in the order of the text
        again = seen["line"][1:][seen["hash"][1:] == seen["hash"][:-1]]
        np.bitwise_or.at(marks, again >> 3, (128 >> (again & 7)).astype(np.uint8))
    for piece, size in enumerate(sizes):
        repeated = np.flatnonzero(np.unpackbits(marks[starts[piece] : starts[piece + 1]], count=size))
        if len(repeated):
            yield piece, repeated


def sampled_copies(first_sentence: int, n: int, share: float, seed: int) -> NDArray[np.int64]:
    """How often each of some sentences of a language enters a sample.

    Each gets floor(share) copies, and one more with probability share - floor(share), by a seeded hash of its number.

    Args:
        first_sentence: Number of the first of them in the language.
        n: How many they are.
        share: Sentences wanted / sentences there are.
        seed: Of the draw.
    """
    whole = int(share)
    draws = mix(np.arange(first_sentence, first_sentence + n, dtype=np.uint64), seed) >> np.uint64(11)
    return whole + (draws.astype(np.float64) * 2.0**-53 < share - whole).astype(np.int64)


def sample_shares(sentences: dict[str, int], alpha: float, n_sample: int) -> dict[str, float]:
    """For each language the share of its sentences (above 1: copies) in a sample drawn with p^alpha.

    Args:
        sentences: Sentences of each language; p is its part of all (Lample & Conneau 2019, section 3.1).
        alpha: The exponent.
        n_sample: Sentences of the sample; as many as there are, if that is less.
    """
    total = sum(sentences.values())
    weights = {language: (n / total) ** alpha if n else 0.0 for language, n in sentences.items()}
    size = min(n_sample, total)
    return {
        language: size * weights[language] / sum(weights.values()) / n if n else 0.0
        for language, n in sentences.items()
    }
