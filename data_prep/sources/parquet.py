"""Text in a column of a parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xlm_train.runtime.errors import TextError
from xlm_train.text.files import CHUNK_BYTES, ReadStats

BATCH_ROWS = 256


@dataclass(frozen=True)
class ParquetFile:
    """Rows of one column. A row may hold many lines (an article): blank ones, which part paragraphs, are left out.

    Args:
        path: Of the file.
        column: Which of its columns.
    """

    path: Path
    column: str = "text"

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    def check(self) -> list[str]:
        """Problems that the file's description of itself shows."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            return [f"{self.path}: reading parquet needs the package pyarrow (pip install 'xlm_train[hub]')"]
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                if self.column not in file.schema_arrow.names:
                    return [f"{self.path}: has no column '{self.column}', but {', '.join(file.schema_arrow.names)}"]
                kind = file.schema_arrow.field(self.column).type
                if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                    return [f"{self.path}: column '{self.column}' holds {kind}, not text"]
                if file.metadata.num_rows == 0:
                    return [f"{self.path}: is empty: it has no rows"]
        except pyarrow.ArrowInvalid as error:
            return [f"{self.path}: is truncated or not a parquet file ({error})"]
        except OSError as error:
            return [f"{self.path}: cannot be read: {error.strerror or error}"]
        return []

    def chunks(self, stats: ReadStats) -> Iterator[bytes]:
        """The text, some rows at a time; what is hashed is the file."""
        import pyarrow
        import pyarrow.parquet

        try:
            before = self.path.stat()
            with pyarrow.parquet.ParquetFile(self.path, pre_buffer=False) as file:
                rows = 0
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[self.column], use_threads=False):
                    rows += len(batch)
                    stats.done = before.st_size * rows // file.metadata.num_rows
                    # As bytes: bad UTF-8 is counted later.
                    yield lines_of(batch.column(0).cast(pyarrow.large_binary()).to_pylist())
            with open(self.path, "rb") as whole:
                while data := whole.read(CHUNK_BYTES):
                    stats.digest.update(data)
            after = self.path.stat()
        except (pyarrow.ArrowException, OSError) as error:
            raise TextError(f"{self.path}: is damaged or cannot be read: {error}") from error
        stats.done = before.st_size
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise TextError(f"{self.path}: changed while it was read; run again when it is complete")


def lines_of(rows: Iterable[bytes | None]) -> bytes:
    """The non-blank lines of some rows, each ending in newline."""
    lines = [line for row in rows if row for line in row.split(b"\n") if line and not line.isspace()]
    return b"\n".join(lines) + b"\n" if lines else b""
