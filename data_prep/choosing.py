"""What a worker does with the hashes of some pieces: look for what is held out, find what repeats, choose what stays."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep import select, stages
from data_prep.select import EMPTY, DuplicateCounter, Hashes, Smallest
from data_prep.statistics import RawCounts
from data_prep.work import load, load_json, save

# ---- what all sentences of a text decide


class Survey:
    """What is known of the sentences of a text: the smallest of them, and how many repeat. Bounded memory.

    Args:
        wanted: Of the smallest.
        seed: Of their choice.
    """

    def __init__(self, wanted: int, seed: int) -> None:
        self.smallest = Smallest(wanted, seed)
        self.duplicates = DuplicateCounter()

    def add(self, hashes: Hashes, first: int) -> None:
        """Look at lines behind those already seen, of which `first` is the number of the first."""
        self.smallest.add(hashes, np.arange(first, first + len(hashes)))
        self.duplicates.add(hashes)

    def merge(self, files: Iterable[Path]) -> Survey:
        """Add what was saved of the lines behind those already seen."""
        for file in files:
            self.smallest.add(load(file, "hashes"), load(file, "lines"))
            self.duplicates.merge(*(load(file, name) for name in ("distinct", "counts", "shift")))
        return self

    def save(self, path: Path) -> None:
        """Write a work file."""
        save(path, hashes=self.smallest.hashes, lines=self.smallest.lines, **self.duplicates.state())


@dataclass(frozen=True)
class SurveyJob:
    """Consecutive pieces to survey.

    Args:
        out: The work file.
        files: Work files with the hashes of their lines.
        first: The number of their first line in the text.
        wanted: Of the smallest.
        seed: Of their choice.
    """

    out: Path
    files: tuple[Path, ...]
    first: int
    wanted: int
    seed: int


def survey(job: SurveyJob) -> None:
    """Work file: a survey of some pieces."""
    found, first = Survey(job.wanted, job.seed), job.first
    for file in job.files:
        hashes = load(file, "hashes")
        found.add(hashes, first)
        first += len(hashes)
    found.save(job.out)


def merge_surveys(job: SurveyJob) -> None:
    """Work file: a survey of what the surveys `files` are of."""
    Survey(job.wanted, job.seed).merge(job.files).save(job.out)


# ---- which lines repeat an earlier one


@dataclass(frozen=True)
class SortJob:
    """Lines of consecutive pieces to sort by hash.

    Args:
        out: The work file: where each part begins, and the parts.
        files: Work files with the hashes of the lines.
        first: The number of the first line in the text.
        parts: Parts by hash.
    """

    out: Path
    files: tuple[Path, ...]
    first: int
    parts: int


def sort_lines(job: SortJob) -> None:
    """Work file: the lines of each part by their hashes. 16 bytes a line."""
    seen, starts = select.sorted_parts(np.concatenate([load(f, "hashes") for f in job.files]), job.first, job.parts)
    save(job.out, **{f"part{part}": seen[start:end] for part, (start, end) in enumerate(pairwise(starts.tolist()))})


@dataclass(frozen=True)
class RepeatJob:
    """Lines of one part of a text's hashes to compare.

    Args:
        out: The work file.
        files: Work files of `sort_lines`, in the order of the text.
        part: The number of the part.
        firsts: The number of the first line of each file.
    """

    out: Path
    files: tuple[Path, ...]
    part: int
    firsts: tuple[int, ...]


def find_repeated(job: RepeatJob) -> None:
    """Work file: numbers of lines, sorted, that repeat an earlier one: `lines0` .. by the first line of the pieces."""
    found = select.repeated_lines(np.concatenate([load(file, f"part{job.part}") for file in job.files]))
    of_files = np.split(found, np.searchsorted(found, job.firsts[1:]))
    save(job.out, **{f"lines{first}": lines for first, lines in zip(job.firsts, of_files, strict=True)})


# ---- lines that are held out


@dataclass(frozen=True)
class TakeJob:
    """Lines to take from pieces.

    Args:
        out: The work file.
        pieces: Work files of `stages.tokenise_piece`.
        lines: Of each piece, rising.
    """

    out: Path
    pieces: tuple[Path, ...]
    lines: tuple[NDArray[np.int64], ...]


def take(job: TakeJob) -> None:
    """Work file: the lines, as those of `stages.tokenise_piece`."""
    lines: list[str] = []
    for piece, chosen in zip(job.pieces, job.lines, strict=True):
        is_chosen = np.zeros(len(load(piece, "hashes")), dtype=bool)
        is_chosen[chosen] = True
        lines += stages.read_text(piece).take(is_chosen).lines()
    hashes, characters = (
        np.concatenate([load(piece, name)[chosen] for piece, chosen in zip(job.pieces, job.lines, strict=True)])
        for name in ("hashes", "characters")
    )
    stages.write_lines(job.out, lines, hashes, characters)


# ---- which lines stay


@dataclass(frozen=True)
class ChooseJob:
    """Consecutive pieces of text or pairs, and what is left out of them.

    Args:
        out: The work file.
        sides: Of each side the work files of `stages.tokenise_piece`.
        paired: Work files of `stages.pair_lines`; none of text by itself.
        first: The number of the first line in the text.
        n: Lines of all pieces.
        long: Of each piece the pairs that were left out for their length; none of text by itself.
        held: File of the sorted hashes of what is held out; None: nothing is.
        known: Of each side a file of the sorted hashes that validation and test text of its language has; None: there is
            no such text to compare with.
        remove_overlap: Whether what these have is left out.
        repeated: Work files of `find_repeated`, whose lines are left out.
    """

    out: Path
    sides: tuple[tuple[Path, ...], ...]
    paired: tuple[Path, ...]
    first: int
    n: int
    long: tuple[NDArray[np.int64], ...]
    held: Path | None
    known: tuple[Path | None, ...]
    remove_overlap: bool
    repeated: tuple[Path, ...]


def choose(job: ChooseJob) -> None:
    """Work file: what does not stay, one bit a line (`dropped0` .. of pieces that lose some), and counts.

    `seen0`, `seen1`: one bit for each hash of `known`, whether a line has it. Counts: `stay` and `sha256` (of the bits;
    None where all stay) of each piece; `empty`, `held_out`, `test_overlap`, `duplicates` that were left out, each counted
    where it is the first reason to; `in_both`; `identical`; `raw` and `characters` of each side.
    """
    nothing: Hashes = np.empty(0, np.uint64)
    held = nothing if job.held is None else np.fromfile(job.held, np.uint64)
    known = [nothing if file is None else np.fromfile(file, np.uint64) for file in job.known]
    seen = [np.zeros(len(hashes), dtype=bool) for hashes in known]
    repeated = np.zeros(job.n, dtype=bool)
    for file in job.repeated:
        repeated[load(file, f"lines{job.first}") - job.first] = True
    counts: Counter[str] = Counter()
    stay: list[int] = []
    sha256: list[str | None] = []
    bits: dict[str, NDArray[np.uint8]] = {}
    raw = [RawCounts() for _ in job.sides]
    characters = [0 for _ in job.sides]
    at = 0
    for number, hashed in enumerate(job.paired or job.sides[0]):
        hashes = load(hashed, "hashes")
        kept = np.ones(len(hashes), dtype=bool)

        def drop(why: str, lines: NDArray[np.bool_], kept: NDArray[np.bool_] = kept) -> None:
            counts[why] += int(np.count_nonzero(kept & lines))
            kept &= ~lines

        if job.paired:
            kept[job.long[number]] = False
            drop("empty", hashes == EMPTY)
            counts["identical"] += load_json(hashed, "counts")["identical"]
        drop("held_out", select.is_among(hashes, held))
        found = np.zeros(len(hashes), dtype=bool)
        for pieces, theirs, marks in zip(job.sides, known, seen, strict=True):
            own = hashes if not job.paired else load(pieces[number], "hashes")
            mine = kept & select.is_among(own, theirs)
            marks[np.searchsorted(theirs, own[mine])] = True
            found |= mine
        counts["in_both"] += int(np.count_nonzero(found))
        if job.remove_overlap:
            drop("test_overlap", found)
        drop("duplicates", repeated[at : at + len(hashes)])
        at += len(hashes)
        stay.append(int(np.count_nonzero(kept)))
        sha256.append(None)
        if stay[-1] < len(kept):
            bits[f"dropped{number}"] = np.packbits(~kept)
            sha256[-1] = hashlib.sha256(bits[f"dropped{number}"].tobytes()).hexdigest()
        for side, pieces in enumerate(job.sides):
            raw[side].add(RawCounts(**load_json(pieces[number], "counts")))
            characters[side] += int(load(pieces[number], "characters")[kept].sum())
    save(
        job.out,
        counts={**counts, "stay": stay, "sha256": sha256, "raw": list(map(asdict, raw)), "characters": characters},
        **{f"seen{side}": np.packbits(marks) for side, marks in enumerate(seen)},
        **bits,
    )
