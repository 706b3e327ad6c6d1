"""Which windows of which language make up step t: a pure function of (seed, t).

A step is `slots` slots; a slot is `slot_streams` windows of one language. There is no state (only a cache of what was
drawn last): what came before step t is known in closed form, so resuming needs the step number alone, and any number of
processes read the same tokens in the same step.

Language quota: of the first x = t S slots the first language has had floor(x p), the last language the rest. (With more than
two, the second takes its share of what the first left, and so on: taking floor(x p_L) for each of them would let the
rest go negative in a step.) So counts never fall, and n languages are always within n - 1 slots of their
shares. Within a step slots are in language order. Each language reads through passes of its own; in
a pass every window comes exactly once, in an order drawn again for each pass by a keyed permutation that is computed
point by point (no array of corpus length).

A difference from the original, which draws a language at random for every update on every GPU, and shuffles on each
GPU for itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from xlm_train.runtime.errors import ConfigError

FEISTEL_ROUNDS = 6
PIECE = 1024  # windows of a pass drawn in one go: drawing a slot's few takes nearly as long


def language_shares(sentences: Mapping[str, int], alpha: float) -> dict[str, Fraction]:
    """Compute the share of each language: p^alpha over sentence counts, normalised.

    Args:
        sentences: number of sentences of each language.
        alpha: 0 is uniform, 1 proportional.

    Returns:
        Exact fractions, so that quotas at step 10^9 are computed without rounding; languages in the mapping's order.

    Source: Lample & Conneau 2019, section 3.1 (the formula).
    """
    raw = {lang: Fraction(count**alpha) for lang, count in sentences.items()}
    total = sum(raw.values())
    # rounded to 2^-40 so that quota arithmetic stays in small integers whatever alpha gave
    return {lang: Fraction(round(value / total * 2**40), 2**40) for lang, value in raw.items()}


def slots_of_rank(slots: int, rank: int, world_size: int) -> range:
    """Return the slots of a step that one rank takes: floor(rS/W) .. floor((r+1)S/W) - 1, even or uneven.

    Args:
        slots: slots of a global step, S.
        rank: global rank, r.
        world_size: number of processes, W.
    """
    return range(rank * slots // world_size, (rank + 1) * slots // world_size)


@dataclass(frozen=True)
class Slot:
    """One slot of a step: a micro-batch of one language.

    Args:
        step: the step.
        number: of the slot within the step, over all processes.
        language: its code.
        windows: (slot_streams,) window numbers in the language's stream.
        passes: (slot_streams,) the pass that each window belongs to.
    """

    step: int
    number: int
    language: str
    windows: NDArray[np.int64]
    passes: NDArray[np.int64]


class Order:
    """The order of a whole training run.

    Args:
        n_windows: windows of each language in one pass, languages in id order.
        shares: of each language, from `language_shares`.
        slots: slots of a global step.
        slot_streams: windows of a slot.
        seed: of the order.

    Raises:
        ConfigError: a language has no window, or a step no slot.
    """

    def __init__(
        self, n_windows: Mapping[str, int], shares: Mapping[str, Fraction], slots: int, slot_streams: int, seed: int
    ) -> None:
        problems = [f"{lang}: the training corpus has no whole window" for lang, n in n_windows.items() if n < 1]
        if slots < 1 or slot_streams < 1:
            problems.append(f"data.slots={slots} and data.slot_streams={slot_streams} must be at least 1")
        if problems:
            raise ConfigError(problems)
        self.languages: Sequence[str] = list(n_windows)
        self.n_windows = dict(n_windows)
        self.shares = dict(shares)
        self.slots = slots
        self.slot_streams = slot_streams
        self.seed = seed
        self._drawn: dict[str, tuple[tuple[int, int], NDArray[np.int64]]] = {}  # the last piece of each language

    def slots_before(self, step: int) -> dict[str, int]:
        """Count the slots that each language has had in steps 0 .. step-1, in closed form."""
        counts: dict[str, int] = {}
        left, left_share = step * self.slots, Fraction(sum(self.shares.values()))
        for lang in self.languages[:-1]:
            counts[lang] = int(left * self.shares[lang] / left_share) if left_share else 0  # floor: nothing is negative
            left -= counts[lang]
            left_share -= self.shares[lang]
        counts[self.languages[-1]] = left
        return counts

    def step(self, step: int, numbers: range | None = None) -> list[Slot]:
        """Return the slots of a step.

        Args:
            step: the step.
            numbers: only these of its slots (a rank's share); all if not given.
        """
        before, after = self.slots_before(step), self.slots_before(step + 1)
        drawn = [(lang, position) for lang in self.languages for position in range(before[lang], after[lang])]
        return [
            Slot(step, number, lang, *self._windows(lang, position * self.slot_streams))
            for number, (lang, position) in enumerate(drawn)
            if numbers is None or number in numbers
        ]

    def _windows(self, lang: str, place: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Windows and passes of the slot that begins at `place`, counted over all passes of the language."""
        end = place + self.slot_streams
        windows, passes = [], []
        while place < end:
            number, index = divmod(place, self.n_windows[lang])
            part = self._piece(lang, number, index // PIECE)[index % PIECE :][: end - place]
            windows.append(part)
            passes.append(np.full(len(part), number, dtype=np.int64))
            place += len(part)
        return np.concatenate(windows), np.concatenate(passes)

    def _piece(self, lang: str, number: int, piece: int) -> NDArray[np.int64]:
        """Windows at the places piece * PIECE .. of a pass, at most PIECE of them."""
        at, windows = self._drawn.get(lang, (None, None))
        if windows is None or at != (number, piece):
            n = self.n_windows[lang]
            places = np.arange(piece * PIECE, min((piece + 1) * PIECE, n), dtype=np.int64)
            windows = permute(places, n, key=(self.seed, lang, number))
            self._drawn[lang] = (number, piece), windows
        return windows


def permute(index: NDArray[np.int64], n: int, key: tuple[int, str, int]) -> NDArray[np.int64]:
    """Apply a pseudo-random permutation of 0..n-1, computed point by point.

    A balanced Feistel network on the smallest even number of bits that holds n, walked until the value falls below n.
    Time and memory depend on len(index), not on n.

    Args:
        index: (N,) numbers from 0 to n-1.
        n: how many numbers are permuted.
        key: chooses the permutation: seed, language, pass.

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
