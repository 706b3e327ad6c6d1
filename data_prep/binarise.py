"""Encoded pieces, one after the other, into the shards of a corpus; and their sentences by length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.work import load, save
from xlm_train.data import sentence_files
from xlm_train.data.sentence_files import Pairs, Sentences, SortedRun, join_runs, open_sentences
from xlm_train.runtime.files import atomic_write, read_json, sha256_of, write_json

MAX_LENGTH = 1 << 16  # tokens; longer sentences count as this long in the histogram of lengths

Shard = Mapping[str, Any]


@dataclass
class Binarised:
    """What one split and language became.

    Args:
        shards: As the manifest lists them.
        lengths: (MAX_LENGTH + 1,) sentences by how many tokens they have, eos not counted.
    """

    shards: list[Shard]
    lengths: NDArray[np.int64]

    @staticmethod
    def of(records: Sequence[Path]) -> Binarised:
        """Read what `write_shard` has made."""
        result = Binarised([], np.zeros(MAX_LENGTH + 1, dtype=np.int64))
        for record in records:
            made = read_json(record)
            result.shards.append(made["shard"])
            lengths, counts = np.array(made["lengths"], dtype=np.int64).T
            result.lengths[lengths] += counts
        return result

    @property
    def tokens(self) -> int:
        """Tokens of all shards, eos included."""
        return sum(shard["tokens"] for shard in self.shards)

    @property
    def sentences(self) -> int:
        """Sentences of all shards."""
        return sum(shard["sentences"] for shard in self.shards)


@dataclass(frozen=True)
class ShardJob:
    """A shard to write.

    Args:
        out: Its record, beside it: manifest entry and lengths.
        pieces: Work files of `stages.encode_piece` that it takes sentences from.
        first: The sentence of the first piece that it begins with.
        end: The sentence of the last piece that it ends before; None: it takes all of it.
        dtype: Of the token ids.
    """

    out: Path
    pieces: tuple[Path, ...]
    first: int
    end: int | None
    dtype: str


def shard_jobs(
    pieces: Sequence[Path], tokens: Sequence[int], name: str, folder: Path, dtype: np.dtype[Any], shard_tokens: int
) -> Iterator[ShardJob]:
    """Divide a text into shards. Reads one piece's `starts` a shard.

    Args:
        pieces: Work files of `stages.encode_piece`.
        tokens: Of each piece.
        name: Of the split and language, as `train.en`.
        folder: Where the shards go.
        dtype: Of the token ids.
        shard_tokens: A shard takes whole sentences until it holds this many tokens.
    """
    first = last = sentence = before = number = 0  # `before`: tokens of the first piece that are in the shard before
    while True:
        while first < len(pieces) and before == tokens[first]:
            first, sentence, before = first + 1, 0, 0
        if first == len(pieces):
            return
        last, missing, end = first, shard_tokens + before, None
        while last < len(pieces) and tokens[last] < missing:
            missing -= tokens[last]
            last += 1
        if last < len(pieces):
            ends = np.append(load(pieces[last], "starts")[1:], tokens[last])
            end = int(np.searchsorted(ends, missing)) + 1
        yield ShardJob(folder / f"{name}.{number:05d}.json", tuple(pieces[first : last + 1]), sentence, end, dtype.name)
        if end is None:
            return
        first, sentence, before, number = last, end, int(ends[end - 1]), number + 1


def write_shard(job: ShardJob) -> None:
    """Write a shard's tokens, where its sentences begin, and its record. Memory: one piece."""
    tokens_file, index_file = job.out.with_suffix(".npy"), job.out.with_suffix(".idx.npy")
    lengths = np.zeros(MAX_LENGTH + 1, dtype=np.int64)
    with atomic_write(tokens_file) as file, atomic_write(index_file) as second_file:
        tokens, index = _GrowingArray(file, np.dtype(job.dtype)), _GrowingArray(second_file, np.dtype(np.int64))
        for number, piece in enumerate(job.pieces):
            ids = load(piece, "ids")
            borders = np.append(load(piece, "starts"), len(ids))
            end = job.end if number + 1 == len(job.pieces) else None
            borders = borders[job.first if number == 0 else 0 : None if end is None else end + 1]
            index.append(borders[:-1] - borders[0] + tokens.n)
            tokens.append(ids[borders[0] : borders[-1]])
            lengths += np.bincount(np.minimum(np.diff(borders) - 1, MAX_LENGTH), minlength=len(lengths))
        tokens.finish()
        index.finish()
    shard = {
        "file": tokens_file.name,
        "sha256": sha256_of(tokens_file),
        "tokens": tokens.n,
        "sentences": index.n,
        "index": index_file.name,
        "index_sha256": sha256_of(index_file),
    }
    used = np.flatnonzero(lengths).tolist()
    write_json(job.out, {"shard": shard, "lengths": [[length, int(lengths[length])] for length in used]})


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


# ---- sentences by length


@dataclass(frozen=True)
class RunJob:
    """Consecutive sentences, or pairs, to sort by length.

    Args:
        out: The work file.
        folder: Of the shards.
        languages: Of the pair; empty for text by itself.
        sides: Of the text, or of each side: the number of the first sentence of its first shard here, and the shards
            that hold the sentences.
        first: The first sentence.
        n: How many they are.
    """

    out: Path
    folder: Path
    languages: tuple[str, ...]
    sides: tuple[tuple[int, tuple[Shard, ...]], ...]
    first: int
    n: int


def run_jobs(out: Path, folder: Path, languages: Sequence[str], sides: Sequence[Binarised]) -> Iterator[RunJob]:
    """Divide a text, or pairs, into runs.

    Args:
        out: Folder of the work files.
        folder: Of the shards.
        languages: Of the pair; empty for text by itself.
        sides: The text, or the sides of the pair.
    """
    firsts = [np.cumsum([0, *(shard["sentences"] for shard in side.shards)]) for side in sides]
    for first in range(0, sides[0].sentences, sentence_files.CHUNK):
        n = min(sentence_files.CHUNK, sides[0].sentences - first)
        parts = []
        for starts, side in zip(firsts, sides, strict=True):
            low, high = np.searchsorted(starts, first, side="right") - 1, np.searchsorted(starts, first + n)
            parts.append((int(starts[low]), tuple(side.shards[low:high])))
        yield RunJob(out / f"{first}.npz", folder, tuple(languages), tuple(parts), first, n)


def sort_run(job: RunJob) -> None:
    """Work file: numbers of sentences by length, less that of the first; keys and counts of a run."""
    texts = [open_sentences(job.folder, shards, first) for first, shards in job.sides]
    text = Pairs((job.languages[0], job.languages[1]), (texts[0], texts[1])) if job.languages else texts[0]
    run = SortedRun.of(text, np.arange(job.first, job.first + job.n, dtype=np.int64))
    save(job.out, numbers=(run.numbers - job.first).astype(np.uint32), keys=run.keys, counts=run.counts)


@dataclass(frozen=True)
class StoredRun:
    """A run in a work file."""

    path: Path
    first: int

    @property
    def numbers(self) -> NDArray[np.int64]:
        """By length."""
        return self.first + load(self.path, "numbers").astype(np.int64)

    @property
    def keys(self) -> NDArray[np.int64]:
        """That occur."""
        return load(self.path, "keys")

    @property
    def counts(self) -> NDArray[np.int64]:
        """Of each key."""
        return load(self.path, "counts")


@dataclass(frozen=True)
class OrderJob:
    """A length order to write.

    Args:
        out: Its record: the manifest's entry.
        name: Of split and language or pair.
        pairs: Whether it is of pairs.
        runs: Of the text, in its order.
    """

    out: Path
    name: str
    pairs: bool
    runs: tuple[StoredRun, ...]


def write_order(job: OrderJob) -> None:
    """Write the length order of a text from its runs, and its record."""
    kind = Pairs if job.pairs else Sentences
    write_json(job.out, join_runs(job.out.parent, job.name, kind, lambda: job.runs))
