"""A data set of the Hugging Face hub, by name or as a local folder in the hub's layout, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.sources.parquet import BATCH_ROWS, lines_of
from xlm_train.runtime.errors import TextError
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
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None

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
        try:
            rows = self._open()
            first = next(iter(rows), None)
        except ModuleNotFoundError as error:
            return [str(error)]
        except (
            Exception
        ) as error:  # the library has its own kinds for network, names, layout: all are the user's to fix
            return [
                f"{self.name}: cannot be opened as a data set: {type(error).__name__}: {str(error).splitlines()[0]}"
            ]
        if first is None:
            return [f"{self.name}: is empty"]
        if self.column not in first:
            return [f"{self.name}: has no column '{self.column}', but {', '.join(first)}"]
        if not isinstance(first[self.column], str):
            return [f"{self.name}: column '{self.column}' holds {type(first[self.column]).__name__}, not text"]
        return []

    def chunks(self, stats: ReadStats) -> Iterator[bytes]:
        """The text, some rows at a time."""
        try:
            for batch in self._open().select_columns([self.column]).iter(batch_size=BATCH_ROWS):
                data = lines_of(row.encode("utf-8", "surrogatepass") for row in batch[self.column] if row)
                stats.add(data)
                yield data
        except Exception as error:
            raise TextError(
                f"{self.name}: reading stopped: {type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error

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
