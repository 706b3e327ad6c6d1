"""Text in a field of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from xlm_train.runtime.errors import TextError
from xlm_train.text.files import COMPRESSED, FileSource, Place, ReadStats, TextFile

SUFFIXES = (".jsonl", ".ndjson")
MAX_HELD = 1 << 24  # bytes of a row


def is_json_lines(path: Place) -> bool:
    """Whether a file is named as JSON lines, plain or compressed."""
    suffixes = path.suffixes[:-1] if path.suffix in COMPRESSED else path.suffixes
    return bool(suffixes) and suffixes[-1] in SUFFIXES


@dataclass(frozen=True)
class JsonLines(FileSource):
    """A field of each row, an object a line. It may hold many lines (an article): blank ones are left out.

    Args:
        path: Of the file; its last suffix says how it is compressed.
        field: Which field.
        row_is_line: Each row is one line, as in text whose lines belong to another's.
    """

    field: str = "text"
    row_is_line: bool = False

    def check(self) -> list[str]:
        """Problems that the file's beginning shows."""
        problems = TextFile(self.path).check()
        head = b"" if problems else next(TextFile(self.path).chunks(ReadStats(), head_only=True))
        first, end, _ = head.lstrip().partition(b"\n")
        if not end:
            return problems  # one row alone, or none that ends in the head
        try:
            row = json.loads(first)
        except ValueError:
            return [f"{self.path}: its first line is not JSON"]
        if not isinstance(row, dict):
            return [f"{self.path}: its first line is no JSON object"]
        if self.field not in row:
            return [
                f"{self.path}: has no field '{self.field}', but {', '.join(row)}: give {{path: FILE.jsonl, field: NAME}}"
            ]
        return [] if isinstance(row[self.field], str) else [f"{self.path}: field '{self.field}' holds no text"]

    def chunks(self, stats: ReadStats) -> Iterator[bytes]:
        """The text, some rows at a time; what is hashed is the file."""
        for block in whole_lines(TextFile(self.path).chunks(stats), MAX_HELD):
            yield texts_of(block, self.field, self.path, self.row_is_line)


def whole_lines(chunks: Iterable[bytes], max_held: int) -> Iterator[bytes]:
    """The same bytes in blocks that end at line ends (not inside lines above `max_held`, nor at an open end)."""
    tail = b""
    for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if end:
            yield tail + chunk[:end]
            tail = chunk[end:]
        else:
            tail += chunk
        if len(tail) > max_held:
            yield tail
            tail = b""
    if tail:
        yield tail


def texts_of(block: bytes, field: str, path: Place, row_is_line: bool = False) -> bytes:
    """The lines of the texts in a field of some rows (`lines_of`).

    Args:
        block: The rows, an object a line.
        field: Which field; a null in it is no text.
        path: Of the file, for messages.
        row_is_line: See JsonLines.

    Raises:
        TextError: A row is not JSON, or lacks the field.
    """
    texts: list[bytes | None] = []
    for row in block.split(b"\n"):
        if row.strip():
            try:
                text = json.loads(row)[field]
                texts.append(None if text is None else text.encode("utf-8", errors="surrogatepass"))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise TextError(f"{path}: a line is not JSON with a text field '{field}': {row[:80]!r}") from error
    return lines_of(texts, row_is_line)


def as_line(text: bytes) -> bytes:
    """A text as one line, without its end: line breaks in it are spaces."""
    return b" ".join(text.splitlines()) if b"\n" in text or b"\r" in text else text


def lines_of(texts: Iterable[bytes | None], row_is_line: bool) -> bytes:
    """The non-blank lines of some texts, each ending in newline; or a line for each text, be it blank or none."""
    if row_is_line:
        return b"".join([as_line(text or b"") + b"\n" for text in texts])
    lines = [line for text in texts if text for line in text.split(b"\n") if line and not line.isspace()]
    return b"\n".join(lines) + b"\n" if lines else b""
