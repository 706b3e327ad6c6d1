"""Batches of sentences of about the same length: a pure function of (seed, pass, number), in closed form.

A pass sorts the sentences by length, those of one length in an order drawn for each pass, and cuts that line where the running sum
of tokens passes a multiple of the budget. How many sentences have each length is a table of a few hundred rows; where a
batch begins and ends follows from it by arithmetic, and a keyed permutation of the sentences of one length says who is
there. So nothing of the corpus's size is computed or held, and the order in which batches come is the Order's.

Source: the original sorts a random permutation stably by length, of pairs by that of both sides together, and cuts it by
the same sum. Two differences. Pairs that are padded side by side are sorted by their longer side, then by the
difference: half of the padding on 3,000 pairs, a tenth on 30,000. A budget must be more than the longest sentence, so no batch is empty.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from xlm_train.data.permutation import FEISTEL_ROUNDS, mix
from xlm_train.runtime.errors import ConfigError


class SentenceBatches:
    """The batches of one pass over the sentences of a language, or over pairs of sentences.

    Lengths count the eos on both ends of every sentence. A batch holds the sentences whose running sum of tokens, their own
    included, falls into [kT, (k+1)T): T tokens but for a sentence, without padding.

    Args:
        name: of the stream: a part of the permutations' key, and what errors name.
        table: (K, 2) length and number of sentences, or (K, 3) length of both sides together, length of the first,
            number of pairs; rows ascending.
        by_length: (N,) numbers of all sentences, those of the first row first. May be mapped: a batch reads its own.
        tokens: T, the budget of a batch, without padding.
        max_len: longest sentence in tokens without eos, on each side.
        seed: of the order.
        side_by_side: pairs are padded in two arrays, one a side, instead of in one row.

    Raises:
        ConfigError: No sentence is left, or one is as long as the budget.
    """

    def __init__(
        self,
        name: str,
        table: NDArray[np.int64],
        by_length: NDArray[np.integer],
        tokens: int,
        max_len: int,
        seed: int,
        side_by_side: bool = False,
    ) -> None:
        self.name = name
        self.by_length = by_length
        self.tokens = tokens
        self.seed = seed
        lengths, counts = table[:, 0].astype(np.int64), table[:, -1].astype(np.int64)
        starts = np.cumsum(counts) - counts  # of each row in by_length
        sides = np.stack([table[:, 1], lengths - table[:, 1]], axis=1) if table.shape[1] == 3 else lengths[:, None]
        kept = ((sides > 2) & (sides <= max_len + 2)).all(axis=1) & (counts > 0)
        lengths, counts, starts, sides = lengths[kept], counts[kept], starts[kept], sides[kept]
        if not len(lengths):
            raise ConfigError(f"data.max_len={max_len}: {name} has no training sentence of 1 to {max_len} tokens")
        if (longest := int(lengths.max())) >= tokens:
            raise ConfigError(
                f"data.tokens_per_slot={tokens}: must be more than the {longest} tokens of the longest sentence of {name};"
                f" or set data.max_len below {max_len}"
            )
        if side_by_side:
            longer, difference = sides.max(axis=1), sides[:, 0] - sides[:, -1]
            # there and back again, so that pairs are alike too where the longer side grows
            line = np.lexsort((np.where(longer % 2, -difference, difference), longer))
            self.widths, self.starts, self.counts = sides[line], starts[line], counts[line]
        else:
            heads = np.flatnonzero(np.diff(lengths, prepend=-1))  # rows of one length are neighbours: one class
            self.widths, self.starts = lengths[heads][:, None], starts[heads]
            self.counts = np.add.reduceat(counts, heads)
        self.lengths = self.widths.sum(axis=1)
        self.places = np.cumsum(self.counts) - self.counts  # sentences of the classes before each
        self.sums = np.cumsum(self.lengths * self.counts)  # tokens up to the end of each class
        self.n_sentences = int(self.counts.sum())
        self.n_tokens = int(self.sums[-1])
        self.n_batches = self.n_tokens // tokens + 1

    @property
    def tokens_per_batch(self) -> float:
        """Mean tokens of a batch, without padding."""
        return self.n_tokens / self.n_batches

    @property
    def padding(self) -> float:
        """Share of a pass's cells that are padding, over all batches: pads / (pads + tokens)."""
        # a batch within one class has none, so only those in which a class ends need a look
        batches = np.unique(self.sums // self.tokens)
        begins, ends = self.bounds(batches), self.bounds(batches + 1)
        cells = [
            (end - begin) * self.widths[self._class_of(begin) : self._class_of(end - 1) + 1].max(axis=0).sum()
            for begin, end in zip(begins, ends, strict=True)
        ]
        whole = self.n_tokens - sum(self._tokens_before(ends) - self._tokens_before(begins))
        return 1 - self.n_tokens / float(whole + sum(cells))

    def bounds(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the sentences before each batch, in the line sorted by length.

        Args:
            numbers: (N,) batches, 0 .. n_batches.

        Returns:
            (N,) sentences whose running sum is below `numbers * tokens`.
        """
        sums = numbers * self.tokens
        row = np.minimum(np.searchsorted(self.sums, sums), len(self.sums) - 1)
        within = (sums - 1 - (self.sums[row] - self.lengths[row] * self.counts[row])) // self.lengths[row]
        return self.places[row] + np.clip(within, 0, self.counts[row])

    def sentences(self, number: int, pass_: int) -> NDArray[np.int64]:
        """Draw a batch of a pass.

        Args:
            number: of the batch, 0 .. n_batches - 1, shortest sentences first.
            pass_: number of the pass.

        Returns:
            (N,) sentence numbers, by length.
        """
        begin, end = self.bounds(np.array([number, number + 1], dtype=np.int64)).tolist()
        parts = []
        for row in range(self._class_of(begin), self._class_of(end - 1) + 1):
            first, count = int(self.places[row]), int(self.counts[row])
            within = np.arange(max(begin - first, 0), min(end - first, count))
            if len(within) < count:  # a class that is there whole is there in any order
                shape = "+".join(map(str, self.widths[row].tolist()))
                within = shuffled(within, count, key=(self.seed, self.name, shape, pass_))
            parts.append(self.by_length[self.starts[row] + within])
        return np.concatenate(parts).astype(np.int64)

    def _class_of(self, place: int) -> int:
        """The class of a place in the line."""
        return int(np.searchsorted(self.places, place, side="right")) - 1

    def _tokens_before(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the sentences before each place in the line."""
        row = np.minimum(np.searchsorted(self.places, places, side="right") - 1, len(self.places) - 1)
        return self.sums[row] - self.lengths[row] * (self.places[row] + self.counts[row] - places)


def shuffled(index: NDArray[np.int64], n: int, key: tuple[int | str, ...]) -> NDArray[np.int64]:
    """Apply a pseudo-random permutation of 0..n-1, computed point by point.

    As `permutation.permute`, whose power of four may be nearly 4 n, so that some of 50 numbers walk 15 times. Here the Feistel
    network is on a rectangle with less than a row too many: 50 numbers rarely walk twice, a fifth of the time.

    Args:
        index: (N,) numbers from 0 to n-1.
        n: how many numbers are permuted.
        key: chooses the permutation.

    Returns:
        (N,) their images.

    Source: Black & Rogaway 2002, "Ciphers with arbitrary finite domains" (generalised Feistel, cycle walking).
    """
    height = math.isqrt(n)
    width = -(-n // height)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * FEISTEL_ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8")
    result = index.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = np.divmod(result[outside], np.uint64(width))
        for even, odd in keys.reshape(-1, 2):
            left = (left + (mix(right + even) >> np.uint64(1))) % np.uint64(height)
            right = (right + (mix(left + odd) >> np.uint64(1))) % np.uint64(width)
        result[outside] = left * np.uint64(width) + right
        outside = result >= np.uint64(n)
    return result.astype(np.int64)
