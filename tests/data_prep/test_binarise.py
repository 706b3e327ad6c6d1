"""Encoded pieces into shards: the same stream however it came, whole sentences, restartable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.binarise import Binarised, shard_jobs, write_shard
from data_prep.work import load, save

EOS = 1


def sentences(n: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [[*random.integers(4, 1000, random.integers(0, 12)).tolist(), EOS] for _ in range(n)]


def write_pieces(folder: Path, lines: list[list[int]], sizes: list[int], dtype: str = "uint16") -> list[Path]:
    folder.mkdir()
    paths, first = [], 0
    for number, size in enumerate(sizes):
        mine = lines[first : first + size]
        starts = np.cumsum([0, *map(len, mine)])[:-1].astype(np.int64)
        paths.append(folder / f"{number}.npz")
        save(paths[-1], ids=np.array([i for line in mine for i in line], dtype=dtype), starts=starts)
        first += size
    assert first == len(lines)
    return paths


def binarise(pieces: list[Path], folder: Path, shard_tokens: int, dtype: str = "uint16") -> Binarised:
    """The shards, written from the last to the first."""
    tokens = [len(load(piece, "ids")) for piece in pieces]
    jobs = list(shard_jobs(pieces, tokens, "x", folder, np.dtype(dtype), shard_tokens))
    for job in reversed(jobs):
        if not job.out.exists():
            write_shard(job)
    return Binarised.of([job.out for job in jobs])


def read_back(folder: Path, made: Binarised) -> list[list[int]]:
    lines = []
    for shard in made.shards:
        ids = np.load(folder / shard["file"], mmap_mode="r", allow_pickle=False)
        index = np.load(folder / shard["index"], mmap_mode="r", allow_pickle=False)
        assert (len(ids), len(index), index.dtype) == (shard["tokens"], shard["sentences"], np.int64)
        lines += [part.tolist() for part in np.split(ids, index[1:])]
    return lines


@pytest.mark.parametrize("sizes", [[40], [0, 13, 0, 0, 20, 7, 0], [1] * 40])
@pytest.mark.parametrize("shard_tokens", [1, 50, 10**6])
def test_shards_do_not_depend_on_pieces(tmp_path: Path, sizes: list[int], shard_tokens: int) -> None:
    lines = sentences(40)
    out, whole = tmp_path / "out", tmp_path / "whole"
    out.mkdir()
    whole.mkdir()
    made = binarise(write_pieces(tmp_path / "a", lines, sizes), out, shard_tokens)
    reference = binarise(write_pieces(tmp_path / "b", lines, [40]), whole, shard_tokens)
    assert read_back(out, made) == lines
    assert made.shards == reference.shards
    assert all(shard["tokens"] >= shard_tokens for shard in made.shards[:-1])
    assert (made.sentences, made.tokens) == (40, sum(map(len, lines)))
    assert made.lengths.sum() == 40
    assert np.array_equal(made.lengths[:12], np.bincount([len(line) - 1 for line in lines], minlength=12))


def test_a_restart_keeps_finished_shards(tmp_path: Path) -> None:
    lines = sentences(300)
    out = tmp_path / "out"
    out.mkdir()
    pieces = write_pieces(tmp_path / "a", lines, [100, 100, 100])
    made = binarise(pieces, out, 500)
    assert len(made.shards) > 3
    before = (out / made.shards[0]["file"]).stat().st_mtime_ns
    last = made.shards[-1]["file"]
    (out / last).unlink()
    (out / last).with_suffix(".json").unlink()
    again = binarise(pieces, out, 500)
    assert again.shards == made.shards
    assert np.array_equal(again.lengths, made.lengths)
    assert (out / made.shards[0]["file"]).stat().st_mtime_ns == before
    assert read_back(out, again) == lines


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    lines = [[70_000, 5, EOS]]
    made = binarise(write_pieces(tmp_path / "a", lines, [1], "int32"), out, 10, "int32")
    assert np.load(out / made.shards[0]["file"]).dtype == np.int32
    assert read_back(out, made) == lines


def test_no_sentences_make_no_shard(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    made = binarise(write_pieces(tmp_path / "a", [], [0, 0]), out, 10)
    assert (made.shards, list(out.iterdir())) == ([], [])
