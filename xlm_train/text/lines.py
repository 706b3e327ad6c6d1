r"""Bytes in, pieces of whole lines out: the one place where text is cut, the same for every source.

Only `\n` ends a line. A piece is the unit of work of the whole preparation: its borders depend on the text and on
`piece_bytes` alone, never on how the bytes arrived, so that a restarted run meets the same pieces again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

NEWLINE = 10
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Piece:
    """Whole lines, each ending in a newline.

    Args:
        data: The lines.
        line: Number of the first line in its input, from 1.
        offset: Of the first byte in the decompressed input, from 0; None where the input is no file of such lines.
        gaps: For each run of over-long lines that was left out, (bytes of `data` before it, lines, bytes left out).
    """

    data: bytes
    line: int
    offset: int | None
    gaps: tuple[tuple[int, int, int], ...] = ()

    def locate(self, position: int) -> tuple[int, int | None]:
        """Line number and byte offset in the input of byte `position` of `data`."""
        gaps = [(lines, size) for before, lines, size in self.gaps if before <= position]
        line = self.line + self.data.count(b"\n", 0, position) + sum(lines for lines, _ in gaps)
        return line, None if self.offset is None else self.offset + position + sum(size for _, size in gaps)


@dataclass
class DroppedLines:
    """What cutting left out of its inputs.

    Args:
        bom: Byte order marks.
        long_lines: Lines that were longer than allowed.
        first_long_line: Number of the first of them in its input, from 1.
    """

    bom: int = 0
    long_lines: int = 0
    first_long_line: int | None = None

    def add(self, more: DroppedLines) -> None:
        """Add what was left out of a further input."""
        self.bom += more.bom
        self.long_lines += more.long_lines
        self.first_long_line = self.first_long_line or more.first_long_line


@dataclass
class _Open:
    """The piece being filled, and where it starts in the input."""

    data: bytearray = field(default_factory=bytearray)
    gaps: list[tuple[int, int, int]] = field(default_factory=list)
    line: int = 1
    offset: int = 0


def cut(chunks: Iterable[bytes], piece_bytes: int, max_line_bytes: int, dropped: DroppedLines) -> Iterator[Piece]:
    """Cut a stream of bytes into pieces at line ends.

    A byte order mark at the start is dropped; a last line without newline gets one. Memory: one piece, one line and
    one chunk, whatever comes. A last piece may hold no line, only tell what was left out.

    Args:
        chunks: Bytes of one input, cut anywhere.
        piece_bytes: The least that a piece holds; the last may be shorter.
        max_line_bytes: Longer lines are left out, newline not counted.
        dropped: Counts what is left out.
    """
    piece = _Open()
    tail = bytearray()  # the unfinished line
    skipped = 0  # bytes already left out of an over-long unfinished line; 0: not inside one
    first = True
    for chunk in _without_bom(chunks, dropped):
        if first:
            piece.offset, first = 3 * dropped.bom, False
        if skipped:
            end = chunk.find(b"\n")
            if end < 0:
                skipped += len(chunk)
                continue
            _leave_out(piece, dropped, skipped + end + 1)
            skipped, chunk = 0, chunk[end + 1 :]
        end = chunk.rfind(b"\n") + 1
        if end:
            whole = bytes(tail) + chunk[:end] if tail else chunk[:end]
            tail = bytearray(chunk[end:])
            yield from _fill(piece, whole, piece_bytes, max_line_bytes, dropped)
        else:
            tail += chunk
        if len(tail) > max_line_bytes:
            skipped, tail = len(tail), bytearray()
    if skipped:
        _leave_out(piece, dropped, skipped)
    if tail:
        yield from _fill(piece, bytes(tail) + b"\n", piece_bytes, max_line_bytes, dropped)
    if piece.data or piece.gaps:
        yield _close(piece)


def _without_bom(chunks: Iterable[bytes], dropped: DroppedLines) -> Iterator[bytes]:
    head = b""
    started = False
    for chunk in chunks:
        if started:
            yield chunk
            continue
        head += chunk
        if len(head) >= len(BOM):
            started = True
            if head.startswith(BOM):
                dropped.bom, head = 1, head[len(BOM) :]
            yield head
    if not started and head:
        yield head


def _leave_out(piece: _Open, dropped: DroppedLines, size: int) -> None:
    """Count one over-long line of `size` bytes, newline included."""
    if dropped.first_long_line is None:
        gap_lines = sum(lines for _, lines, _ in piece.gaps)
        dropped.first_long_line = piece.line + piece.data.count(b"\n") + gap_lines
    dropped.long_lines += 1
    before = len(piece.data)
    if piece.gaps and piece.gaps[-1][0] == before:
        _, lines, earlier = piece.gaps.pop()
        piece.gaps.append((before, lines + 1, earlier + size))
    else:
        piece.gaps.append((before, 1, size))


def _fill(piece: _Open, whole: bytes, piece_bytes: int, max_line_bytes: int, dropped: DroppedLines) -> Iterator[Piece]:
    """Add whole lines to the open piece, yielding it each time it is full."""
    ends = np.flatnonzero(np.frombuffer(whole, dtype=np.uint8) == NEWLINE) + 1
    lengths = np.diff(ends, prepend=0) - 1
    start = 0
    for number in np.flatnonzero(lengths > max_line_bytes):
        line_start = int(ends[number - 1]) if number else 0
        yield from _append(piece, whole[start:line_start], piece_bytes)
        start = int(ends[number])
        _leave_out(piece, dropped, start - line_start)
    yield from _append(piece, whole[start:] if start else whole, piece_bytes)


def _append(piece: _Open, lines: bytes, piece_bytes: int) -> Iterator[Piece]:
    start = 0
    while start < len(lines):
        missing = piece_bytes - len(piece.data)
        cut_at = lines.find(b"\n", start + max(missing - 1, 0)) + 1 or len(lines)
        piece.data += lines[start:cut_at]
        start = cut_at
        if len(piece.data) >= piece_bytes:
            yield _close(piece)


def _close(piece: _Open) -> Piece:
    """The finished piece; `piece` is made ready for the next."""
    done = Piece(bytes(piece.data), piece.line, piece.offset, tuple(piece.gaps))
    piece.line += done.data.count(b"\n") + sum(lines for _, lines, _ in done.gaps)
    piece.offset += len(done.data) + sum(size for _, _, size in done.gaps)
    piece.data, piece.gaps = bytearray(), []
    return done
