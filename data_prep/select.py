"""Which sentence goes where: held-out sets, duplicates, overlap with the test sets. Pure functions of sentence hashes.

A sentence is known here by a 64-bit hash of its raw text without the space around it. `EMPTY` marks a blank line: it is
no one's duplicate and is never held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlm_train.data import permutation

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
    """A seeded, one-to-one scrambling of 64-bit values."""
    offset = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF)
    with np.errstate(over="ignore"):
        return permutation.mix(values ^ offset)


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
        self._hashes: Hashes = np.empty(0, dtype=np.uint64)
        self._counts: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._new: list[tuple[Hashes, NDArray[np.int64]]] = []
        self._n_new = 0

    def add(self, hashes: Hashes) -> None:
        """Count some more sentences."""
        kept = mix(hashes[hashes != EMPTY], seed=0)
        kept = kept[self._is_kept(kept)]
        self._add(kept, np.ones(len(kept), dtype=np.int64))

    def state(self) -> dict[str, NDArray[Any]]:
        """All that it has counted, for `merge`."""
        self._merge()
        return {"distinct": self._hashes, "counts": self._counts, "shift": np.array(self.shift)}

    def merge(self, distinct: Hashes, counts: NDArray[np.int64], shift: NDArray[Any]) -> None:
        """Count what another one has counted, by its state.

        Args:
            distinct: The hashes that it holds.
            counts: How often each came.
            shift: One number: it holds the hashes below 2^(64 - shift).
        """
        self.shift = max(self.shift, int(shift))
        self._add(distinct, counts)

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

    def _is_kept(self, mixed: Hashes) -> NDArray[np.bool_]:
        return mixed >> np.uint64(64 - self.shift) == 0 if self.shift else np.ones(len(mixed), dtype=bool)

    def _add(self, mixed: Hashes, counts: NDArray[np.int64]) -> None:
        self._new.append((mixed, counts))
        self._n_new += len(mixed)
        if self._n_new > self.capacity:
            self._merge()

    def _merge(self) -> None:
        if not self._new:
            return
        values, counts = (np.concatenate(parts) for parts in zip((self._hashes, self._counts), *self._new, strict=True))
        kept = self._is_kept(values)
        self._hashes, inverse = np.unique(values[kept], return_inverse=True)
        self._counts = np.bincount(inverse, weights=counts[kept], minlength=len(self._hashes)).astype(np.int64)
        self._new, self._n_new = [], 0
        while len(self._hashes) > self.capacity:
            self.shift += 1
            n = int(np.searchsorted(self._hashes, np.uint64(1 << (64 - self.shift))))
            self._hashes, self._counts = self._hashes[:n], self._counts[:n]


class Smallest:
    """The distinct sentences whose seeded hash is smallest: of the set of sentences and the seed, whatever their order.

    Memory: the sentences wanted, and what is added at once.

    Args:
        wanted: How many.
        seed: Of the choice.

    Attributes:
        hashes: Of the sentences, in the order of the choice; fewer than wanted where the text has too few.
        lines: The line of the text that each is first seen in.
    """

    def __init__(self, wanted: int, seed: int) -> None:
        self.wanted = wanted
        self.seed = seed
        self.hashes: Hashes = np.empty(0, dtype=np.uint64)
        self.lines: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def add(self, hashes: Hashes, lines: NDArray[np.int64]) -> None:
        """Look through sentences behind those already seen.

        Args:
            hashes: (n,) of them.
            lines: (n,) numbers of their lines in the text, rising where a hash repeats.
        """
        if not self.wanted:
            return
        near = hashes != EMPTY
        if len(self.hashes) == self.wanted:
            near &= mix(hashes, self.seed) < mix(self.hashes[-1:], self.seed)
        hashes, lines = np.concatenate([self.hashes, hashes[near]]), np.concatenate([self.lines, lines[near]])
        _, first = np.unique(mix(hashes, self.seed), return_index=True)
        self.hashes, self.lines = hashes[first[: self.wanted]], lines[first[: self.wanted]]


def is_among(hashes: Hashes, sorted_set: Hashes) -> NDArray[np.bool_]:
    """For each hash whether it is in the sorted set."""
    if not len(sorted_set):
        return np.zeros(len(hashes), dtype=bool)
    position = np.searchsorted(sorted_set, hashes)
    position[position == len(sorted_set)] = 0
    return sorted_set[position] == hashes  # type: ignore[no-any-return]


SEEN = np.dtype([("hash", np.uint64), ("line", np.int64)])


def sorted_parts(hashes: Hashes, first: int, n_parts: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Sort lines by their hashes, and part them by the size of these.

    Args:
        hashes: Of consecutive lines.
        first: The number of the first of them in the text.
        n_parts: Parts of about one size.

    Returns:
        (n,) SEEN of all that are not empty; (n_parts + 1,) where each part begins, and where the last ends.
    """
    lines = np.flatnonzero(hashes != EMPTY)
    seen = np.empty(len(lines), SEEN)
    seen["hash"], seen["line"] = hashes[lines], lines + first
    seen = seen[np.argsort(seen["hash"], kind="stable")]  # equal ones stay in the order of the text
    owners = ((seen["hash"] >> np.uint64(32)) * np.uint64(n_parts)) >> np.uint64(32)
    return seen, np.searchsorted(owners, np.arange(n_parts + 1, dtype=np.uint64)).astype(np.int64)


def repeated_lines(seen: NDArray[Any]) -> NDArray[np.int64]:
    """Numbers of the lines, sorted, that repeat an earlier one.

    Args:
        seen: (n,) SEEN; of equal hashes the lines rise.
    """
    seen = seen[np.argsort(seen["hash"], kind="stable")]
    found: NDArray[np.int64] = np.sort(seen["line"][1:][seen["hash"][1:] == seen["hash"][:-1]])
    return found


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
