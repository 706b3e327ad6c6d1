"""Text in a column of a parquet file, or texts of several languages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.sources.jsonl import lines_of
from xlm_train.runtime.errors import StorageError, TextError
from xlm_train.text.files import CHUNK_BYTES, FileSource, ReadStats, stamp

BATCH_ROWS = 256


@dataclass(frozen=True)
class ParquetFile(FileSource):
    """Rows of one column. A row may hold many lines (an article): blank ones, which part paragraphs, are left out.

    Args:
        path: Of the file.
        column: Which of its columns.
        row_is_line: Each row is one line, as in text whose lines belong to another's.
    """

    column: str = "text"
    row_is_line: bool = False

    def check(self) -> list[str]:
        """Problems that the file's description of itself shows."""
        return self._check(lambda kind: None if _is_text(kind) else f"column '{self.column}' holds {kind}, not text")

    def check_translations(self, languages: tuple[str, str]) -> list[str]:
        """The same where the column is to hold a text of each language."""

        def wrong(kind: Any) -> str | None:
            names = [field.name for field in kind] if str(kind).startswith("struct") else []
            lacking = [code for code in languages if code not in names]
            if lacking:
                return f"column '{self.column}' holds {kind}: no text of {' and '.join(lacking)} by that name"
            return next(
                (f"column '{self.column}.{code}' holds {kind.field(code).type}, not text"
                 for code in languages if not _is_text(kind.field(code).type)), None)  # fmt: skip

        return self._check(wrong)

    def _check(self, wrong: Callable[[Any], str | None]) -> list[str]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            return [f"{self.path}: reading parquet needs the package pyarrow (pip install 'xlm_train[hub]')"]
        try:
            with pyarrow.parquet.ParquetFile(self._opened()) as file:
                if self.column not in file.schema_arrow.names:
                    return [f"{self.path}: has no column '{self.column}', but {', '.join(file.schema_arrow.names)}"]
                if problem := wrong(file.schema_arrow.field(self.column).type):
                    return [f"{self.path}: {problem}"]
                if file.metadata.num_rows == 0:
                    return [f"{self.path}: is empty: it has no rows"]
        except pyarrow.ArrowInvalid as error:
            return [f"{self.path}: is truncated or not a parquet file ({error})"]
        except StorageError as error:
            return error.problems
        except OSError as error:
            return [f"{self.path}: cannot be read: {error.strerror or error}"]
        return []

    def _opened(self) -> Path | BinaryIO:
        """What pyarrow takes; it reads a file faster by itself."""
        return self.path if isinstance(self.path, Path) else self.path.open("rb")

    def chunks(self, stats: ReadStats) -> Iterator[bytes]:
        """The text, some rows at a time; what is hashed is the file."""
        for column in self._columns(stats):
            yield lines_of(_as_bytes(column), self.row_is_line)

    def translations(self, languages: tuple[str, str], stats: ReadStats) -> Iterator[list[tuple[bytes, bytes]]]:
        """The texts of two languages, some rows at a time; what is hashed is the file."""
        for column in self._columns(stats):
            fields = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
            first, second = (_as_bytes(fields[code]) for code in languages)
            yield [(one or b"", other or b"") for one, other in zip(first, second, strict=True)]

    def _columns(self, stats: ReadStats) -> Iterator[Any]:
        """The column, some rows at a time."""
        import pyarrow
        import pyarrow.parquet

        try:
            before = stamp(self.path)
            with pyarrow.parquet.ParquetFile(self._opened(), pre_buffer=False) as file:
                rows = 0
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[self.column], use_threads=False):
                    rows += len(batch)
                    stats.done = before[0] * rows // file.metadata.num_rows
                    yield batch.column(0)
            with self.path.open("rb") as whole:
                while data := whole.read(CHUNK_BYTES):
                    stats.digest.update(data)
            after = stamp(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise TextError(f"{self.path}: is damaged or cannot be read: {error}") from error
        stats.done = before[0]
        if after != before:
            raise TextError(f"{self.path}: changed while it was read; run again when it is complete")


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string")


def _as_bytes(column: Any) -> list[bytes | None]:
    """Texts as bytes: bad UTF-8 is counted later."""
    import pyarrow

    found: list[bytes | None] = column.cast(pyarrow.large_binary()).to_pylist()
    return found
