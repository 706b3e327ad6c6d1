"""A data set of the Hugging Face hub, by name or as a local folder in the hub's layout, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.sources.parquet import BATCH_ROWS, lines_of
from xlm_train.runtime.errors import TextError, said
from xlm_train.text.files import ReadStats


@dataclass(frozen=True)
class HubDataset:
    """Rows of one column of one split.

    Rows are read as ParquetFile reads them. What is hashed is the text, for there is no one file.

    Args:
        dataset: Name on the hub, or a folder.
        config: The data set's configuration (`20231101.en`), where it has several.
        split: Which of its splits.
        column: Which of its columns.
        revision: Branch, tag or commit on the hub.
        row_is_line: See ParquetFile.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    row_is_line: bool = False

    @property
    def name(self) -> str:
        """Data set, configuration and split."""
        return "/".join(part for part in (self.dataset, self.config, self.split) if part)

    @property
    def size(self) -> int | None:
        """Not known."""
        return None

    def check(self) -> list[str]:
        """Problems that opening it and its first row show."""
        return self._check(
            lambda value: (
                None if isinstance(value, str) else f"column '{self.column}' holds {type(value).__name__}, not text"
            )
        )

    def check_translations(self, languages: tuple[str, str]) -> list[str]:
        """The same where the column is to hold a text of each language."""

        def wrong(value: Any) -> str | None:
            found = list(value) if isinstance(value, Mapping) else []
            if set(languages) <= set(found):
                return None
            has = f"texts of {', '.join(found)}" if found else type(value).__name__
            return f"column '{self.column}' holds {has}, not texts of {' and '.join(languages)}"

        return self._check(wrong)

    def _check(self, wrong: Callable[[Any], str | None]) -> list[str]:
        try:
            rows = self._open()
            first = next(iter(rows), None)
        except ModuleNotFoundError as error:
            return [str(error)]
        except (
            Exception
        ) as error:  # the library has its own kinds for network, names, layout: all are the user's to fix
            return [f"{self.name}: cannot be opened as a data set: {said(error)}"]
        if first is None:
            return [f"{self.name}: is empty"]
        if self.column not in first:
            return [f"{self.name}: has no column '{self.column}', but {', '.join(first)}"]
        problem = wrong(first[self.column])
        return [f"{self.name}: {problem}"] if problem else []

    def chunks(self, stats: ReadStats) -> Iterator[bytes]:
        """The text, some rows at a time."""
        for rows in self._columns():
            data = lines_of([row and row.encode("utf-8", "surrogatepass") for row in rows], self.row_is_line)
            stats.add(data)
            yield data

    def translations(self, languages: tuple[str, str], stats: ReadStats) -> Iterator[list[tuple[bytes, bytes]]]:
        """The texts of two languages, some rows at a time."""
        for rows in self._columns():
            pairs = [
                tuple(((row or {}).get(code) or "").encode("utf-8", "surrogatepass") for code in languages)
                for row in rows
            ]
            for first, second in pairs:
                stats.add(first + b"\t" + second + b"\n")
            yield [(first, second) for first, second in pairs]

    def _columns(self) -> Iterator[list[Any]]:
        """The column, some rows at a time."""
        try:
            for batch in self._open().select_columns([self.column]).iter(batch_size=BATCH_ROWS):
                yield batch[self.column]
        except Exception as error:
            raise TextError(f"{self.name}: reading stopped: {said(error)}") from error

    def _open(self) -> Any:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{self.name}: reading data sets needs the package datasets (pip install 'xlm_train[hub]')"
            ) from error
        datasets.disable_progress_bars()
        return datasets.load_dataset(
            self.dataset, self.config, split=self.split, revision=self.revision, streaming=True
        )
