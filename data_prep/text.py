"""Tokenised text between the stages: which work files hold it, and which of their lines stay."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.select import Hashes
from data_prep.settings import Key
from data_prep.stages import Selection
from data_prep.work import load
from xlm_train.runtime.files import digest
from xlm_train.text.lines import DroppedLines

UNITS = {"MB": 1, "lines": 0}
"""What progress of the preparation is shown in: raw text."""


@dataclass
class Text:
    """The tokenised text of one split and language: its work files, and which of their lines stay.

    Args:
        split: As `train`.
        language: Its code.
        pieces: The work files.
        lines: Of each piece.
        bytes: Of raw text of each piece.
        dropped: Per piece the lines that do not stay, one bit a line; None: all stay.
        inputs: Path, size and hash of each source, for the manifest.
        dropped_lines: What cutting the sources left out.
        counts: More for the manifest.
    """

    split: str
    language: str
    pieces: list[Path] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    dropped: list[NDArray[np.uint8] | None] = field(default_factory=list)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    dropped_lines: DroppedLines = field(default_factory=DroppedLines)
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Split and language, as `train.en`."""
        return f"{self.split}.{self.language}"

    def add(self, piece: Path, lines: int, size: int) -> None:
        """Add a piece: its work file, its lines and the bytes of its raw text."""
        self.pieces.append(piece)
        self.lines.append(lines)
        self.bytes.append(size)
        self.dropped.append(None)

    def hashes(self, number: int) -> Hashes:
        """Hashes of the lines of a piece."""
        return load(self.pieces[number], "hashes")

    def drop(self, number: int, lines: NDArray[np.int64]) -> int:
        """Leave out some lines of a piece.

        Returns:
            How many of them had stayed till now.
        """
        kept = self.kept(number)
        if kept is None:
            kept = np.ones(self.lines[number], dtype=bool)
        gone = int(kept[lines].sum())
        if gone:
            kept[lines] = False
            self.dropped[number] = np.packbits(~kept)
        return gone

    def kept(self, number: int) -> NDArray[np.bool_] | None:
        """Which lines of a piece stay; None: all."""
        bits = self.dropped[number]
        return None if bits is None else np.unpackbits(bits, count=self.lines[number]) == 0

    def n_kept(self, number: int) -> int:
        """How many lines of a piece stay."""
        kept = self.kept(number)
        return self.lines[number] if kept is None else int(kept.sum())

    def selection(self, number: int) -> Selection:
        """The lines of a piece that stay."""
        return Selection(self.pieces[number], self.dropped[number])

    def identity(self, number: int) -> str:
        """What the selected lines of a piece depend on."""
        bits = self.dropped[number]
        return digest(self.pieces[number].name, None if bits is None else bits.tobytes().hex())


Texts = dict[Key, Text]


@dataclass(frozen=True)
class BpeFiles:
    """Codes, joint vocabulary and each language's own: work files whose names change with their content."""

    codes: Path
    vocab: Path
    limits: dict[str, Path]

    def files(self) -> dict[str, Path]:
        """The same by their names in the corpus."""
        return {"codes": self.codes, "vocab": self.vocab} | {
            f"vocab.{name}": path for name, path in self.limits.items()
        }
