"""Encoded pieces, one after the other, into the shards of a corpus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.work import load
from xlm_train.runtime.files import atomic_write, read_json, sha256_of, write_json

MAX_LENGTH = 1 << 16  # tokens; longer sentences count as this long in the histogram of lengths

Place = tuple[int, int]  # piece, sentence within it


@dataclass
class Binarised:
    """What one split and language became.

    Args:
        shards: As the manifest lists them.
        lengths: (MAX_LENGTH + 1,) sentences by how many tokens they have, eos not counted.
    """

    shards: list[dict[str, Any]]
    lengths: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Tokens of all shards, eos included."""
        return sum(shard["tokens"] for shard in self.shards)

    @property
    def sentences(self) -> int:
        """Sentences of all shards."""
        return sum(shard["sentences"] for shard in self.shards)


def binarise(
    pieces: Sequence[Path],
    name: str,
    folder: Path,
    dtype: np.dtype[Any],
    shard_tokens: int,
    count: Callable[[int], None] = lambda sentences: None,
) -> Binarised:
    """Write `name`.NNNNN.npy (token ids) and `name`.NNNNN.idx.npy (starts of its sentences) for encoded work files.

    Each finished shard leaves a record beside it, so that a restart goes on after the last whole one. Memory: one piece.

    Args:
        pieces: Work files of `stages.encode_piece`.
        name: Of the split and language, as `train.en`.
        folder: Where the shards go.
        dtype: Of the token ids.
        shard_tokens: A shard takes whole sentences until it holds this many tokens.
        count: Called with how many sentences were just done.
    """
    result = Binarised([], np.zeros(MAX_LENGTH + 1, dtype=np.int64))
    at = _next_sentence(pieces, (0, 0))
    while at[0] < len(pieces):
        stem = f"{name}.{len(result.shards):05d}"
        record = folder / f"{stem}.json"
        if record.exists():
            made = read_json(record)
            count(made["shard"]["sentences"])
        else:
            made = _write_shard(pieces, at, folder, stem, dtype, shard_tokens, count)
            write_json(record, made)
        result.shards.append(made["shard"])
        lengths, counts = np.array(made["lengths"], dtype=np.int64).T
        result.lengths[lengths] += counts
        at = (made["next"][0], made["next"][1])
    return result


def _next_sentence(pieces: Sequence[Path], at: Place) -> Place:
    """`at`, or where the next piece that has a sentence begins where there is none."""
    piece, sentence = at
    while piece < len(pieces) and sentence >= len(load(pieces[piece], "starts")):
        piece, sentence = piece + 1, 0
    return piece, sentence


def _write_shard(
    pieces: Sequence[Path],
    at: Place,
    folder: Path,
    stem: str,
    dtype: np.dtype[Any],
    shard_tokens: int,
    count: Callable[[int], None],
) -> dict[str, Any]:
    """Write one shard from sentence `at` on. Its record: manifest entry, lengths, where the next begins."""
    tokens_file, index_file = folder / f"{stem}.npy", folder / f"{stem}.idx.npy"
    lengths = np.zeros(MAX_LENGTH + 1, dtype=np.int64)
    piece, sentence = at
    with atomic_write(tokens_file) as file, atomic_write(index_file) as second_file:
        tokens, index = _GrowingArray(file, dtype), _GrowingArray(second_file, np.dtype(np.int64))
        while piece < len(pieces) and tokens.n < shard_tokens:
            ids, starts = load(pieces[piece], "ids"), load(pieces[piece], "starts")
            borders = np.append(starts, len(ids))[sentence:]
            ends = borders[1:] - borders[0]
            taken = min(int(np.searchsorted(ends, shard_tokens - tokens.n)) + 1, len(ends))
            index.append(borders[:taken] - borders[0] + tokens.n)
            tokens.append(ids[borders[0] : borders[taken]])
            lengths += np.bincount(np.minimum(np.diff(borders[: taken + 1]) - 1, MAX_LENGTH), minlength=len(lengths))
            count(taken)
            piece, sentence = _next_sentence(pieces, (piece, sentence + taken))
        tokens.finish()
        index.finish()
    return {
        "shard": {
            "file": tokens_file.name,
            "sha256": sha256_of(tokens_file),
            "tokens": tokens.n,
            "sentences": index.n,
            "index": index_file.name,
            "index_sha256": sha256_of(index_file),
        },
        "lengths": [[int(length), int(lengths[length])] for length in np.flatnonzero(lengths)],
        "next": [piece, sentence],
    }


class _GrowingArray:
    """A one-dimensional .npy file written bit by bit. Its header has room for any length and is filled in last."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any]) -> None:
        self.file = file
        self.dtype = dtype
        self.n = 0
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        self.file.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.n += len(values)

    def finish(self) -> None:
        self.file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.n,)}
        np.lib.format.write_array_header_1_0(self.file, header)
