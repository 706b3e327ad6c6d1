"""A keyed pseudo-random permutation, computed point by point: no array of its length is ever made."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

FEISTEL_ROUNDS = 6


def permute(index: NDArray[np.int64], n: int, key: tuple[int, str, int]) -> NDArray[np.int64]:
    """Apply a pseudo-random permutation of 0..n-1, computed point by point.

    A balanced Feistel network on the smallest even number of bits that holds n, walked until the value falls below n.
    Time and memory depend on len(index), not on n.

    Args:
        index: (N,) numbers from 0 to n-1.
        n: how many numbers are permuted.
        key: chooses the permutation: seed, stream, pass.

    Returns:
        (N,) their images.

    Source: Black & Rogaway 2002, "Ciphers with arbitrary finite domains" (cycle walking).
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * FEISTEL_ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8")
    result = index.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        value = result[outside]
        left, right = value >> np.uint64(half), value & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right + round_key) & mask)
        result[outside] = (left << np.uint64(half)) | right
        outside = result >= np.uint64(n)
    return result.astype(np.int64)


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
