"""Sentences, and pairs of sentences, of a corpus by their numbers; and the files that list them by length.

A split's length order is two arrays: `NAME.bylength.npy`, the numbers of all sentences, sorted by length and within one
length by number; and `NAME.classes.npy`, one row a length that occurs: [tokens, sentences], or for pairs [tokens of both
sides, tokens of the first, pairs], sorted. Tokens are counted with both bounding eos, as the original's batches count
them. Both are a function of the corpus's tokens. 4 bytes a sentence (8 above 2^32 sentences).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xlm_train.runtime.files import atomic_write, sha256_of

CHUNK = 1 << 20  # sentences handled at once: some 50 MB


@dataclass(frozen=True)
class LengthOrder:
    """All sentences of a text by length.

    Args:
        numbers: (n,) sentence numbers by length class, within a class rising; mapped.
        classes: (K, 2) rows [tokens with both eos, sentences], or (K, 3) rows [tokens of both sides, tokens of the
            first side, pairs]; sorted; mapped.
    """

    numbers: NDArray[Any]
    classes: NDArray[np.int64]


class Sentences:
    """Sentences by number, 0 .. n - 1 in the order of the text. Read from mapped files: costs only what is read.

    Args:
        shards: For each shard its (tokens,) ids, an eos after every sentence, and (sentences,) where each begins.
        first: The number of their first sentence, where they are but a part of the text.

    Attributes:
        n: How many there are.
    """

    def __init__(self, shards: Sequence[tuple[NDArray[Any], NDArray[np.int64]]], first: int = 0) -> None:
        self._shards = [shard for shard in shards if len(shard[1])]
        sizes = [len(starts) for _, starts in self._shards]
        self._first = [first, *(first + np.cumsum(sizes, dtype=np.int64)).tolist()][:-1]  # sentence of each shard
        self.n = sum(sizes)

    def read(self, numbers: NDArray[Any]) -> list[NDArray[np.int64]]:
        """Read sentences.

        Args:
            numbers: (N,) sentence numbers in any order.

        Returns:
            For each its (words,) ids, without eos.
        """
        return [self._read(number) for number in numbers.tolist()]

    def _read(self, number: int) -> NDArray[np.int64]:
        shard = bisect.bisect_right(self._first, number) - 1
        tokens, starts = self._shards[shard]
        place = number - self._first[shard]
        end = int(starts[place + 1]) if place + 1 < len(starts) else len(tokens)
        return tokens[int(starts[place]) : end - 1].astype(np.int64)

    def lengths(self, numbers: NDArray[Any]) -> NDArray[np.int64]:
        """Count the tokens of sentences, both bounding eos included.

        Args:
            numbers: (N,) sentence numbers in any order.
        """
        lengths = np.empty(len(numbers), dtype=np.int64)
        owners = np.searchsorted(self._first, numbers, side="right") - 1
        for shard in np.unique(owners):
            tokens, starts = self._shards[shard]
            mine = owners == shard
            places = numbers[mine].astype(np.int64) - self._first[shard]
            last = places + 1 == len(starts)
            ends = np.where(last, len(tokens), starts[np.where(last, 0, places + 1)])
            lengths[mine] = ends - starts[places] + 1  # one eos is stored, the other is not
        return lengths

    keys = lengths  # by which sentences are ordered

    @staticmethod
    def classes(keys: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the class table."""
        return np.stack([keys, counts], axis=1)


class Pairs:
    """Pairs of sentences, one of each language, by number.

    Args:
        languages: Of the two sides, in alphabetical order.
        sides: The sides, equally long.

    Attributes:
        name: Of the pair, as `de-en`.
        n: How many pairs there are.
    """

    def __init__(self, languages: tuple[str, str], sides: tuple[Sentences, Sentences]) -> None:
        self.name = "-".join(languages)
        self.languages = languages
        self.sides = sides
        self.n = sides[0].n

    def read(self, numbers: NDArray[Any]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Read pairs.

        Args:
            numbers: (N,) pair numbers in any order.

        Returns:
            For each the (words,) ids of its two sides, without eos.
        """
        first, second = (side.read(numbers) for side in self.sides)
        return list(zip(first, second, strict=True))

    def keys(self, numbers: NDArray[Any]) -> NDArray[np.int64]:
        """Give the numbers by which pairs are ordered: tokens of both sides, then tokens of the first.

        Args:
            numbers: (N,) pair numbers in any order.
        """
        first, second = (side.lengths(numbers) for side in self.sides)
        return ((first + second) << 32) | first

    @staticmethod
    def classes(keys: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the class table."""
        return np.stack([keys >> 32, keys & 0xFFFFFFFF, counts], axis=1)


class _Ordered(Protocol):
    n: int

    def keys(self, numbers: NDArray[Any]) -> NDArray[np.int64]: ...

    @staticmethod
    def classes(keys: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]: ...


def open_sentences(folder: Path, shards: Sequence[Mapping[str, Any]], first: int = 0) -> Sentences:
    """Map sentences by the manifest's entries of their shards.

    Args:
        folder: Of the shards.
        shards: The entries, in the order of the text.
        first: The number of their first sentence, where they are but a part of the text.
    """
    return Sentences(
        [
            (np.load(folder / shard["file"], mmap_mode="r"), np.load(folder / shard["index"], mmap_mode="r"))
            for shard in shards
        ],
        first,
    )


class Run(Protocol):
    """Consecutive sentences by length."""

    @property
    def numbers(self) -> NDArray[Any]:
        """(n,) sorted by key, within one key rising."""

    @property
    def keys(self) -> NDArray[np.int64]:
        """(K,) that occur, sorted."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """(K,) sentences of each key."""


@dataclass(frozen=True)
class SortedRun:
    """A run in memory."""

    numbers: NDArray[Any]
    keys: NDArray[np.int64]
    counts: NDArray[np.int64]

    @staticmethod
    def of(text: _Ordered, numbers: NDArray[np.int64]) -> SortedRun:
        """Sort consecutive sentences; 50 bytes each.

        Args:
            text: Sentences or Pairs.
            numbers: (n,) rising.
        """
        keys = text.keys(numbers)
        return SortedRun(numbers[np.argsort(keys, kind="stable")], *np.unique(keys, return_counts=True))


def write_length_order(folder: Path, name: str, text: _Ordered) -> dict[str, Any]:
    """Write the length order of a text, CHUNK sentences at a time.

    Args:
        folder: Where the files go.
        name: Of split and language or pair, as `train.de`.
        text: Sentences or Pairs.

    Returns:
        The manifest's entry.
    """
    return join_runs(folder, name, type(text), lambda: (SortedRun.of(text, numbers) for numbers in _chunks(text.n)))


def join_runs(folder: Path, name: str, kind: type[_Ordered], runs: Callable[[], Iterable[Run]]) -> dict[str, Any]:
    """Write the length order of a text from that of its parts.

    Memory: a run, and one number a length class; the output is mapped.

    Args:
        folder: Where the files go.
        name: Of split and language or pair, as `train.de`.
        kind: Sentences or Pairs.
        runs: Gives all runs of the text in its order; called twice.

    Returns:
        The manifest's entry.
    """
    keys: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    counts: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    for run in runs():
        keys, where = np.unique(np.concatenate([keys, run.keys]), return_inverse=True)
        weights = np.concatenate([counts, run.counts])
        counts = np.bincount(where, weights=weights, minlength=len(keys)).astype(np.int64)
    n = int(counts.sum())
    dtype = np.dtype(np.uint32 if n < 1 << 32 else np.int64)
    by_length, classes = folder / f"{name}.bylength.npy", folder / f"{name}.classes.npy"
    free = np.cumsum(counts) - counts  # the next place of each class
    with atomic_write(by_length) as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n,)}
        )
        start = file.tell()
        for numbers in _chunks(n):  # room on disk, so that a full one is an error here and no signal below
            file.write(bytes(len(numbers) * dtype.itemsize))
        file.flush()
        out = np.memmap(file, dtype, "r+", start, (n,)) if n else np.empty(0, dtype)  # type: ignore[call-overload]
        for run in runs():
            mine = np.searchsorted(keys, run.keys)
            before = np.cumsum(run.counts) - run.counts  # in this run
            out[np.repeat(free[mine] - before, run.counts) + np.arange(len(run.numbers))] = run.numbers
            free[mine] += run.counts
        if isinstance(out, np.memmap):
            out.flush()
    with atomic_write(classes) as file:
        np.save(file, kind.classes(keys, counts))
    return {
        "file": by_length.name,
        "sha256": sha256_of(by_length),
        "classes": classes.name,
        "classes_sha256": sha256_of(classes),
        "n_classes": len(keys),
    }


def _chunks(n: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, n, CHUNK):
        yield np.arange(start, min(start + CHUNK, n), dtype=np.int64)


def is_length_order_of(order: LengthOrder, text: _Ordered) -> bool:
    """Whether an order lists every sentence of a text once, by its length and then by its number. Reads all of both."""
    ends = np.cumsum(order.classes[:, -1])
    if len(order.numbers) != text.n or (ends[-1] if len(ends) else 0) != text.n:
        return False
    if len(np.unique(order.classes[:, :-1], axis=0)) != len(ends):
        return False
    before = (-1, -1)  # key and number of the last sentence looked at
    for places in _chunks(text.n):
        numbers = order.numbers[places].astype(np.int64)
        if numbers.min() < 0 or numbers.max() >= text.n:
            return False
        keys = text.keys(numbers)
        rows = order.classes[np.searchsorted(ends, places, side="right")]
        key_steps, number_steps = (np.diff(v, prepend=b) for v, b in zip((keys, numbers), before, strict=True))
        rising = (key_steps > 0) | ((key_steps == 0) & (number_steps > 0))
        if not np.array_equal(text.classes(keys, rows[:, -1]), rows) or not rising.all():
            return False
        before = int(keys[-1]), int(numbers[-1])
    return True
