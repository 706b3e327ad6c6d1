"""Two texts whose lines belong together: read side by side, counted, and where they stop belonging together.

A line that is left out of one side (above `max_line_bytes`) becomes an empty one, so that what follows stays aligned; a
pair with an empty side is left out later, as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xlm_train.runtime.errors import TextError
from xlm_train.text.files import ReadStats, Source
from xlm_train.text.lines import NEWLINE, DroppedLines, Piece, cut

Lengths = NDArray[np.uint32]

NEAR = 200  # lines around a break in which its place is looked for
ALARM = 6.0  # misfits, each as large as that of two lines of different pairs on average, that make a break


@dataclass(frozen=True)
class PairPiece:
    """Some pairs of lines.

    Args:
        sides: As many lines of each language.
        long: Numbers of the pairs, from 0, of which a side was too long; that side is empty.
    """

    sides: tuple[Piece, Piece]
    long: tuple[int, ...] = ()


@dataclass
class PairReading:
    """What reading pairs comes by.

    Args:
        stats: Of each side's input; twice the same where both are in one.
        dropped: What cutting left out of each side.
    """

    stats: tuple[ReadStats, ReadStats]
    dropped: tuple[DroppedLines, DroppedLines] = field(default_factory=lambda: (DroppedLines(), DroppedLines()))

    @staticmethod
    def of_two() -> PairReading:
        """For a file a side."""
        return PairReading((ReadStats(), ReadStats()))

    @staticmethod
    def of_one() -> PairReading:
        """For one input that has both sides."""
        stats = ReadStats()
        return PairReading((stats, stats))

    @property
    def done(self) -> int:
        """Bytes read so far."""
        first, second = self.stats
        return first.done + (0 if second is first else second.done)


def with_blank_lines(piece: Piece) -> tuple[Piece, list[int]]:
    """Put an empty line where an over-long one was left out.

    Returns:
        The piece, and the numbers of these lines in the input.
    """
    parts: list[bytes] = []
    gaps: list[tuple[int, int, int]] = []
    long: list[int] = []
    start = blank = 0
    for before, lines, size in piece.gaps:
        line = piece.line + piece.data.count(b"\n", 0, before) + blank
        long += range(line, line + lines)
        parts += [piece.data[start:before], b"\n" * lines]
        start, blank = before, blank + lines
        gaps.append((before + blank, 0, size - lines))
    parts.append(piece.data[start:])
    return Piece(b"".join(parts), piece.line, piece.offset, tuple(gaps)), long


class _Side:
    """Lines of one side, read ahead."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self.pieces = pieces
        self.data = b""
        self.line, self.offset = 1, 0
        self.gaps: list[tuple[int, int, int]] = []
        self.long: list[int] = []
        self.ends: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def fill(self, size: int) -> int:
        """Read on until there are `size` bytes or no more. Returns the lines there are."""
        while len(self.data) < size and (piece := next(self.pieces, None)) is not None:
            piece, long = with_blank_lines(piece)
            if not self.data:
                self.offset = piece.offset or 0
            self.gaps += [(len(self.data) + before, lines, extra) for before, lines, extra in piece.gaps]
            self.long += long
            self.data += piece.data
        self.ends = np.flatnonzero(np.frombuffer(self.data, dtype=np.uint8) == NEWLINE) + 1
        return len(self.ends)

    def take(self, lines: int) -> tuple[Piece, list[int]]:
        """The next lines, and which of them, from 0, were too long."""
        end = int(self.ends[lines - 1])
        gaps = [gap for gap in self.gaps if gap[0] <= end]
        long = [line - self.line for line in self.long if line < self.line + lines]
        taken = Piece(self.data[:end], self.line, self.offset, tuple(gaps))
        self.data, self.line = self.data[end:], self.line + lines
        self.offset += end + sum(extra for _, _, extra in gaps)
        self.gaps = [(before - end, none, extra) for before, none, extra in self.gaps[len(gaps) :]]
        self.long = self.long[len(long) :]
        return taken, long


def aligned_pieces(
    sources: tuple[Source, Source], piece_bytes: int, max_line_bytes: int, reading: PairReading
) -> Iterator[PairPiece]:
    """Pairs of lines of two inputs. Memory: about two pieces.

    Args:
        sources: Of each side.
        piece_bytes: About how much a piece holds, both sides together.
        max_line_bytes: Longer lines become empty ones.
        reading: Counts what is read and left out, on the way.

    Raises:
        TextError: One has more lines than the other.
    """
    half = max(piece_bytes // 2, 1)
    first, second = (
        _Side(cut(source.chunks(stats), half, max_line_bytes, dropped))
        for source, stats, dropped in zip(sources, reading.stats, reading.dropped, strict=True)
    )
    while lines := min(there := (first.fill(half), second.fill(half))):
        (one, long), (other, other_long) = first.take(lines), second.take(lines)
        yield PairPiece((one, other), tuple(sorted({*long, *other_long})))
    if max(there):
        shorter, longer = sources if there[1] else sources[::-1]
        raise TextError(f"{longer.name}: has more lines than {shorter.name}, which belongs to it")


# -- whether they belong together ----------------------------------------------------------------------------------------


def count_lines(source: Source) -> int:
    """The lines of an input, a last one without its newline too."""
    lines, last = 0, b"\n"
    for chunk in source.chunks(ReadStats()):
        if chunk:
            lines, last = lines + chunk.count(b"\n"), chunk[-1:]
    return lines + (last != b"\n")


def line_lengths(source: Source) -> Lengths:
    """Bytes of each line of an input, 4 bytes a line."""
    found: list[Lengths] = []
    open_line = 0
    for chunk in source.chunks(ReadStats()):
        ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == NEWLINE)
        if len(ends):
            lengths = np.diff(ends, prepend=-1) - 1
            lengths[0] += open_line
            found.append(lengths.astype(np.uint32))
            open_line = len(chunk) - int(ends[-1]) - 1
        else:
            open_line += len(chunk)
    if open_line:
        found.append(np.array([open_line], dtype=np.uint32))
    return np.concatenate(found) if found else np.empty(0, dtype=np.uint32)


def _misfit(first: Lengths, second: Lengths) -> NDArray[np.float64]:
    """How little the lengths of two lines fit: the logarithm of their ratio, without its sign."""
    n = min(len(first), len(second))
    found: NDArray[np.float64] = np.abs(np.log1p(first[:n], dtype=np.float64) - np.log1p(second[:n], dtype=np.float64))
    return found


def first_break(first: Lengths, second: Lengths) -> int | None:
    """Where the lengths of lines stop fitting, by number from 0; None where they fit to the end of the shorter text.

    A cumulative sum test (Page 1954): the misfit of each pair, less 0.6 of what lines of different pairs have on
    average, is summed up, never below 0; above ALARM the texts are taken to have parted. The place is then looked for
    nearby: the one before which the lines fit best as they are, and after which with some lines of one side left out.
    """
    n = min(len(first), len(second))
    ratio = float(np.median(first[:n]) + 1) / float(np.median(second[:n]) + 1) if n else 1.0
    scaled = (second * ratio).astype(np.uint32)  # one language may need more bytes
    typical = float(_misfit(first[:n], np.roll(scaled[:n], n // 2)).mean()) if n > 1 else 0.0
    if not typical:
        return None
    before = 0.0
    for start in range(0, n, 1 << 20):
        steps = _misfit(first[start : start + (1 << 20)], scaled[start : start + (1 << 20)]) / typical - 0.6
        sums = before + np.cumsum(steps)
        level = sums - np.minimum(np.minimum.accumulate(sums), 0.0)
        if (level > ALARM).any():
            return _place(first, scaled, start + int(np.argmax(level > ALARM)))
        before = float(level[-1])
    return None


def _place(first: Lengths, second: Lengths, alarm: int) -> int:
    """The most likely line, near an alarm, from which on one side is some lines ahead."""
    low, high = max(alarm - NEAR, 0), alarm + NEAR // 4
    kept = _misfit(first[low:high], second[low:high])
    so_far = np.concatenate([[0.0], np.cumsum(kept)])
    difference = len(first) - len(second)
    best = (np.inf, alarm)
    for ahead in sorted({*range(-5, 6), difference} - {0}, key=abs):
        moved = _misfit(
            first[low + max(ahead, 0) : high + max(ahead, 0)], second[low + max(-ahead, 0) : high + max(-ahead, 0)]
        )
        n = len(moved)
        from_here = moved.sum() - np.concatenate([[0.0], np.cumsum(moved)])
        cost = (so_far[: n + 1] + from_here) / max(n, 1)
        best = min(best, (float(cost.min()), low + int(cost.argmin())))
    return best[1]


def misaligned(sources: tuple[Source, Source]) -> str | None:
    """Say how two inputs fail to belong together line by line; None where they have equally many lines."""
    first, second = sources
    counts = count_lines(first), count_lines(second)
    if counts[0] == counts[1]:
        return None
    place = first_break(line_lengths(first), line_lengths(second))
    where = (
        f"their lengths fit as far as the shorter goes, so lines may be missing at its end (from line {min(counts) + 1:,})"
        if place is None
        else f"their lengths stop fitting at about line {place + 1:,}"
    )
    return f"{first.name} has {counts[0]:,} lines, {second.name} {counts[1]:,}: not aligned; {where}"
