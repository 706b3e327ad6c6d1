"""The order in which fastBPE goes through the words it has counted: that of its hash table.

It numbers symbols in that order and takes the lower numbers where two pairs are equally frequent, so its codes depend
on it. The table is libstdc++'s `std::unordered_map<std::string, ...>`: strings hashed by MurmurHash64A (Austin Appleby,
2008), as many buckets as the next prime of a list, doubled about when there are more words than buckets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BUCKETS = (
    1, 13, 29, 59, 127, 257, 541, 1109, 2357, 5087, 10273, 20753, 42043, 85229, 172933, 351061, 712697, 1447153,
    2938679, 5967347, 12117689, 24607243, 49969847, 101473717, 206062531, 418451333, 849749479,
    1725587117,
)  # fmt: skip
"""How many buckets the table has, one after the other, while words are put in."""

_FACTOR = np.uint64(0xC6A4A7935BD1E995)
_SEED = np.uint64(0xC70F6907)


def table_order(words: Sequence[str]) -> NDArray[np.intp]:
    """The order of the table into which words were put one by one.

    A word goes to the front of its bucket, and a bucket that was empty to the front of all. When the table grows, its
    words are put into the new one in the order they stand in.

    Args:
        words: Different words.

    Returns:
        (words,) their numbers.
    """
    hashes = _hashes([word.encode("utf-8", "surrogatepass") for word in words])
    order = np.empty(0, np.intp)
    growth = iter(BUCKETS)
    while len(order) < len(words):
        buckets = next(growth)
        order = np.append(order, np.arange(len(order), min(buckets, len(words))))
        _, first, bucket = np.unique(hashes[order] % np.uint64(buckets), return_index=True, return_inverse=True)
        order = order[np.lexsort((np.arange(len(order), 0, -1), -first[bucket]))]
    return order


def _hashes(words: Sequence[bytes]) -> NDArray[np.uint64]:
    """(words,) MurmurHash64A of each."""
    sizes = np.fromiter(map(len, words), np.intp, len(words))
    hashes = np.empty(len(words), np.uint64)
    with np.errstate(over="ignore"):
        for size in np.unique(sizes).tolist():
            chosen = np.flatnonzero(sizes == size)
            whole, rest = divmod(size, 8)
            padded = np.zeros((len(chosen), 8 * (whole + 1)), np.uint8)
            padded[:, :size] = np.frombuffer(b"".join(words[k] for k in chosen.tolist()), np.uint8).reshape(-1, size)
            blocks = padded.view("<u8")
            found = np.full(len(chosen), _SEED ^ (np.uint64(size) * _FACTOR))
            for k in range(whole):
                found = (found ^ (_mixed(blocks[:, k] * _FACTOR) * _FACTOR)) * _FACTOR
            if rest:
                found = (found ^ blocks[:, whole]) * _FACTOR
            hashes[chosen] = _mixed(_mixed(found) * _FACTOR)
    return hashes


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return value ^ (value >> np.uint64(47))
