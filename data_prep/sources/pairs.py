"""Sources of parallel text: two aligned files, or rows that have both languages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from data_prep.aligned import PairPiece, PairReading, aligned_pieces, with_blank_lines
from data_prep.sources import HUB_KEYS, by_lines, open_input, place_of
from data_prep.sources.hub import HubDataset
from data_prep.sources.jsonl import JsonLines, as_line
from data_prep.sources.parquet import ParquetFile
from xlm_train.runtime.errors import StorageError, TextError
from xlm_train.text.files import COMPRESSED, ReadStats, Source, TextFile
from xlm_train.text.lines import Piece, cut

COLUMN = "translation"
Row = tuple[bytes, bytes]


class PairSource(Protocol):
    """One input of parallel text."""

    @property
    def names(self) -> tuple[str, str]:
        """Of each side's input, as the user wrote them."""

    @property
    def size(self) -> int | None:
        """Bytes to read; None where unknown."""

    def check(self) -> list[str]:
        """Problems that can be found without reading it all."""

    def reading(self) -> PairReading:
        """What one reading counts in."""

    def pieces(self, piece_bytes: int, max_line_bytes: int, reading: PairReading) -> Iterator[PairPiece]:
        """The text, about `piece_bytes` of it at a time.

        Args:
            piece_bytes: Of both sides together.
            max_line_bytes: A side that is longer becomes empty, and the piece tells of it.
            reading: What `reading` returned; counts what is read and left out, on the way.
        """


@dataclass(frozen=True)
class AlignedInputs:
    """Two inputs: line i of one belongs to line i of the other."""

    sides: tuple[Source, Source]

    @property
    def names(self) -> tuple[str, str]:
        """Of both."""
        return self.sides[0].name, self.sides[1].name

    @property
    def size(self) -> int | None:
        """Of both together."""
        sizes = [side.size for side in self.sides]
        return None if None in sizes else sum(size for size in sizes if size)

    def check(self) -> list[str]:
        """Problems of both."""
        same = (
            [f"{self.names[0]}: is both sides of the pair"] if as_file(self.sides[0]) == as_file(self.sides[1]) else []
        )
        return same or [problem for side in self.sides for problem in side.check()]

    def reading(self) -> PairReading:
        """Each is counted by itself."""
        return PairReading.of_two()

    def pieces(self, piece_bytes: int, max_line_bytes: int, reading: PairReading) -> Iterator[PairPiece]:
        """Lines of both, equally many at a time."""
        return aligned_pieces(self.sides, piece_bytes, max_line_bytes, reading)


class _OneInput:
    """What all inputs that have both sides share."""

    source: Any
    swapped: bool

    @property
    def names(self) -> tuple[str, str]:
        """Twice the same."""
        return self.source.name, self.source.name

    @property
    def size(self) -> int | None:
        """Of the input."""
        size: int | None = self.source.size
        return size

    def reading(self) -> PairReading:
        """Both sides are counted as one."""
        return PairReading.of_one()


@dataclass(frozen=True)
class TsvFile(_OneInput):
    """Lines of two columns, a tab between them; nothing is quoted. `max_line_bytes` is that of the whole line.

    Args:
        source: The file.
        swapped: Whether the second column is the pair's first language.
    """

    source: TextFile
    swapped: bool

    def check(self) -> list[str]:
        """Problems that the file's beginning shows."""
        if problems := self.source.check():
            return problems
        head = next(iter(self.source.chunks(ReadStats(), head_only=True))).rpartition(b"\n")[0]
        try:
            self._split(head, 1)
        except TextError as error:
            return error.problems
        return []

    def pieces(self, piece_bytes: int, max_line_bytes: int, reading: PairReading) -> Iterator[PairPiece]:
        """Its columns."""
        for piece in cut(self.source.chunks(reading.stats[0]), piece_bytes, max_line_bytes, reading.dropped[0]):
            whole, long = with_blank_lines(piece)
            first, second = (
                Piece(b"".join([line + b"\n" for line in side]), whole.line, None)
                for side in self._split(whole.data.removesuffix(b"\n"), whole.line)
            )
            yield PairPiece((first, second), tuple(line - whole.line for line in long))

    def _split(self, data: bytes, line: int) -> tuple[list[bytes], list[bytes]]:
        rows = [row.split(b"\t") if row.strip(b"\r") else [b"", b""] for row in data.split(b"\n")]
        for number, row in enumerate(rows):
            if len(row) != 2:
                raise TextError(
                    f"{self.source.name}: line {line + number:,} has {len(row)} columns, not two with a tab between them"
                )
        sides = [row[0] for row in rows], [row[1] for row in rows]
        return sides[::-1] if self.swapped else sides


@dataclass(frozen=True)
class RowInput(_OneInput):
    """Rows of a parquet file or a data set whose column holds a text of each language. A line break in it is a space.

    Args:
        source: The file or data set, its column named.
        languages: Of the two sides.
    """

    source: ParquetFile | HubDataset
    languages: tuple[str, str]

    def check(self) -> list[str]:
        """Problems that its schema, or its first row, shows."""
        return self.source.check_translations(self.languages)

    def pieces(self, piece_bytes: int, max_line_bytes: int, reading: PairReading) -> Iterator[PairPiece]:
        """Some rows at a time."""
        held: list[Row] = []
        size, first_row = 0, 1
        for batch in self.source.translations(self.languages, reading.stats[0]):
            for row in batch:
                held.append(row)
                size += len(row[0]) + len(row[1]) + 2
                if size >= piece_bytes:
                    yield _piece_of(held, first_row, max_line_bytes)
                    held, size, first_row = [], 0, first_row + len(held)
        if held:
            yield _piece_of(held, first_row, max_line_bytes)


def as_file(source: Any) -> Any:
    """The same input with its path in one form, to compare: two paths can name one file."""
    if isinstance(source, (TextFile, ParquetFile, JsonLines)):
        return replace(source, path=source.path.resolve())
    if isinstance(source, (TsvFile, RowInput)):
        return replace(source, source=as_file(source.source))
    return source


def _piece_of(rows: Sequence[Row], line: int, max_line_bytes: int) -> PairPiece:
    long = [number for number, row in enumerate(rows) if max(map(len, row)) > max_line_bytes]
    lines = [[as_line(side) for side in row] for row in rows]
    for number in long:
        lines[number] = [b"", b""]
    first, second = (Piece(b"".join([row[side] + b"\n" for row in lines]), line, None) for side in (0, 1))
    return PairPiece((first, second), tuple(long))


# -- what an override names --------------------------------------------------------------------------------------------


def pair_sources_of(
    key: str, value: Any, languages: tuple[str, str], swapped: bool
) -> tuple[list[PairSource], list[str]]:
    """Open the sources of parallel text that an override names.

    Args:
        key: The override, as `pairs.de-en.train`, for messages.
        value: Two aligned inputs `[a.de,a.en]`, in the order of the pair's name as written; or inputs that have both
            sides: FILE.tsv, FILE.parquet, {path: FILE.parquet, column: NAME}, {dataset: NAME, ...}; or a list of these.
        languages: Of the pair, in alphabetical order.
        swapped: Whether the name was written the other way round.

    Returns:
        The sources, and what is wrong with them.
    """
    sources: list[PairSource] = []
    problems: list[str] = []
    items = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    one = len(items) == 2 and not any(isinstance(item, list) or _has_both(item) for item in items)
    for item in [items] if one else items:
        try:
            sources += _open(item, languages, swapped)
        except (ValueError, StorageError) as error:
            problems.append(f"{key}: {error}")
    if not items:
        problems.append(f"{key}: names no input")
    return sources, problems + [f"{key}: {problem}" for source in sources for problem in source.check()]


def _has_both(item: Any) -> bool:
    """Whether an input has both sides."""
    if isinstance(item, Mapping):
        return True
    path = Path(str(item))
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix in (".tsv", ".parquet")


def _open(item: Any, languages: tuple[str, str], swapped: bool) -> list[PairSource]:
    """The sources of one input; ValueError with what is wrong."""
    if isinstance(item, list):
        if len(item) != 2 or any(isinstance(side, list) or _has_both(side) for side in item):
            raise ValueError(f"{item} is no input: two aligned files are [FILE.{languages[0]},FILE.{languages[1]}]")
        order = languages[::-1] if swapped else languages
        given = [list(map(by_lines, open_input(side, language))) for side, language in zip(item, order, strict=True)]
        if len(given[0]) != len(given[1]):
            raise ValueError(
                f"{item[0]} is {len(given[0])} files, {item[1]} is {len(given[1])}: they do not belong together"
            )
        return [AlignedInputs(sides) for sides in zip(*(given[::-1] if swapped else given), strict=True)]
    if not _has_both(item):
        raise ValueError(
            f"{item} is no parallel text: give two aligned files [FILE.{languages[0]},FILE.{languages[1]}], a FILE.tsv of "
            f"two columns, a FILE.parquet with a column '{COLUMN}', or {{dataset: NAME, ...}}"
        )
    if isinstance(item, Mapping):
        if "dataset" in item and set(item) <= HUB_KEYS:
            given_keys: dict[str, Any] = {key: str(value) for key, value in item.items() if value is not None}
            return [RowInput(HubDataset(**{"column": COLUMN, **given_keys}), languages)]
        if set(item) == {"path", "column"}:
            return [RowInput(ParquetFile(place_of(item["path"]), str(item["column"])), languages)]
        raise ValueError(
            f"{dict(item)} is no input: give {{path: FILE.parquet, column: NAME}} or "
            "{dataset: NAME, config: .., split: .., column: .., revision: ..}"
        )
    sources: list[PairSource] = []
    for source in open_input(item, languages[0]):
        if isinstance(source, ParquetFile):
            sources.append(RowInput(ParquetFile(source.path, COLUMN), languages))
        elif isinstance(source, HubDataset):  # a folder of them
            sources.append(RowInput(replace(source, column=COLUMN), languages))
        elif isinstance(source, TextFile):
            sources.append(TsvFile(source, swapped))
        else:
            raise ValueError(f"{item}: {source.name} is no parallel text")
    return sources
