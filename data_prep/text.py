"""Tokenised text between the stages: which work files hold it, and which of their lines stay."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.settings import Key
from data_prep.stages import Dropped, PairJob, Selection
from data_prep.statistics import RawCounts
from data_prep.work import Work, load_json
from xlm_train.data.manifest import languages_of
from xlm_train.runtime.files import digest
from xlm_train.text.files import ReadStats
from xlm_train.text.lines import DroppedLines


@dataclass
class Text:
    """The tokenised text of one language in one split, or one side of its pairs: work files, and which lines stay.

    Args:
        split: As `train`.
        language: Its code.
        pair: The pair it is a side of, as `de-en`; None: it is text by itself.
        given: Whether the user gave it; it was held out otherwise.
        pieces: The work files.
        lines: Of each piece.
        bytes: Of each piece: of raw text; of what was held out, of its tokens.
        stay: How many lines of each piece stay; filled by `assign`.
        dropped: Which lines of each piece do not stay, for `stages.Selection`; None: all stay. Filled likewise.
        raw: Counts of the raw text. Filled likewise.
        characters: Of the lines that stay. Filled likewise.
        inputs: Path, size and hash of each source, for the manifest.
        dropped_lines: What cutting the sources left out.
        first_long_line: Where the first over-long line was: name of the input and number of the line.
        counts: More for the manifest.
    """

    split: str
    language: str
    pair: str | None = None
    given: bool = True
    pieces: list[Path] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    stay: list[int] = field(default_factory=list)
    dropped: list[Dropped | None] = field(default_factory=list)
    raw: RawCounts = field(default_factory=RawCounts)
    characters: int = 0
    inputs: list[dict[str, Any]] = field(default_factory=list)
    dropped_lines: DroppedLines = field(default_factory=DroppedLines)
    first_long_line: str | None = None
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Split and language, as `train.en`; of a side `train.de-en.en`."""
        return ".".join(filter(None, (self.split, self.pair, self.language)))

    @property
    def key(self) -> Key:
        """Of `Texts`: split and language; of a side (`train`, `de-en.en`)."""
        return self.split, self.name.partition(".")[2]

    @property
    def sides(self) -> tuple[Text, ...]:
        """Itself: text by itself has one side."""
        return (self,)

    def add(self, piece: Path, lines: int, size: int) -> None:
        """Add a piece.

        Args:
            piece: Its work file.
            lines: Lines in it.
            size: Bytes of its raw text; of text that was held out, of the tokenised lines.
        """
        self.pieces.append(piece)
        self.lines.append(lines)
        self.bytes.append(size)

    def end_input(self, source: str, stats: ReadStats, dropped: DroppedLines) -> None:
        """Note what an input was, after its last piece.

        Args:
            source: Its name.
            stats: Bytes and hash of all that was read.
            dropped: What cutting left out of it; is added to that of the text.
        """
        self.inputs.append({"path": source, "bytes": stats.done, "sha256": stats.sha256})
        self.dropped_lines.add(dropped)
        if dropped.first_long_line and not self.first_long_line:
            self.first_long_line = f"line {dropped.first_long_line:,} of {source}"

    def like(self) -> Text:
        """Empty text of the same split and language."""
        return Text(self.split, self.language, self.pair)

    def extend(self, more: Text) -> None:
        """Add the text of a further input."""
        for name in ("pieces", "lines", "bytes", "inputs"):
            getattr(self, name).extend(getattr(more, name))
        self.dropped_lines.add(more.dropped_lines)
        self.first_long_line = self.first_long_line or more.first_long_line

    @property
    def hashed(self) -> list[Path]:
        """Work files that hold the hashes of the lines, one a piece."""
        return self.pieces

    def selection(self, number: int) -> Selection:
        """The lines of a piece that stay."""
        return Selection(self.pieces[number], self.dropped[number])

    def identity(self, number: int) -> str:
        """What the selected lines of a piece depend on."""
        dropped = self.dropped[number]
        return digest(self.pieces[number].name, dropped and dropped.sha256)


@dataclass
class PairText:
    """The tokenised pairs of two languages in one split.

    Args:
        sides: Of each language, in alphabetical order; piece by piece as many lines.
        paired: Work files of `stages.pair_lines`, one a piece.
        long: Of each piece the pairs of which a side was too long.
        counts: Of pairs, for the manifest.
    """

    sides: tuple[Text, Text]
    paired: list[Path] = field(default_factory=list)
    long: list[NDArray[np.int64]] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def named(split: str, pair: str) -> PairText:
        """No pairs yet."""
        first, second = (Text(split, language, pair) for language in languages_of(pair) or ())
        return PairText((first, second), counts={"dropped": {"too_long": 0}})

    def like(self) -> PairText:
        """No pairs of the same split and languages."""
        return PairText.named(self.split, self.pair)

    def extend(self, more: PairText) -> None:
        """Add the pairs of a further input."""
        for side, added in zip(self.sides, more.sides, strict=True):
            side.extend(added)
        self.long.extend(more.long)
        self.counts["dropped"]["too_long"] += more.counts["dropped"]["too_long"]

    def job(self, work: Work, number: int) -> PairJob:
        """What compares the sides of a piece; its work file is remembered."""
        first, second = (side.pieces[number] for side in self.sides)
        self.paired.append(work.path("paired", first.name, second.name))
        return PairJob(self.paired[-1], (first, second))

    @property
    def split(self) -> str:
        """As `train`."""
        return self.sides[0].split

    @property
    def name(self) -> str:
        """Split and pair, as `train.de-en`."""
        return f"{self.split}.{self.pair}"

    @property
    def pair(self) -> str:
        """As `de-en`."""
        return "-".join(self.languages)

    @property
    def languages(self) -> tuple[str, str]:
        """Of the two sides."""
        return self.sides[0].language, self.sides[1].language

    @property
    def given(self) -> bool:
        """Whether the user gave it."""
        return self.sides[0].given

    @property
    def pieces(self) -> list[Path]:
        """Of the first side: there are as many of the second."""
        return self.sides[0].pieces

    @property
    def lines(self) -> list[int]:
        """Pairs of each piece."""
        return self.sides[0].lines

    @property
    def bytes(self) -> list[int]:
        """Of raw text of each piece, both sides together."""
        return [sum(sizes) for sizes in zip(*(side.bytes for side in self.sides), strict=True)]

    @property
    def hashed(self) -> list[Path]:
        """Work files that hold the hashes of the pairs, one a piece; EMPTY where a side is empty."""
        return self.paired


Texts = dict[Key, Text]
PairTexts = dict[Key, PairText]  # by split and pair


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


@dataclass
class Encoded:
    """The ids of a text.

    Args:
        pieces: Work files of `stages.encode_piece`.
        tokens: Of each piece, eos included.
        words: Of all.
        unknown: BPE pieces of all that have no id.
        special_words: How often each special word was dropped.
    """

    pieces: list[Path]
    tokens: list[int] = field(default_factory=list)
    words: int = 0
    unknown: int = 0
    special_words: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(pieces: list[Path]) -> Encoded:
        """Read the counts of work files."""
        found = Encoded(pieces)
        for piece in pieces:
            made = load_json(piece, "counts")
            found.tokens.append(made["tokens"])
            found.words += made["words"]
            found.unknown += made["unknown"]
            found.special_words.update(made["special_words"])
        return found
