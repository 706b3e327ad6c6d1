"""An object in object storage, read where a file is."""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from xlm_train.runtime.storage import BLOCK, MissingObject, Store

FIRST_BLOCK = 1 << 16  # bytes asked for first, which may be all that is wanted


@dataclass(frozen=True)
class StoredObject:
    """An object in the place of a file that is only read: what of a Path that takes.

    Args:
        url: Of the object.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def suffixes(self) -> list[str]:
        """As those of a Path."""
        return PurePosixPath(self.url.rpartition("/")[2]).suffixes

    @property
    def suffix(self) -> str:
        """The last of them."""
        return PurePosixPath(self.url.rpartition("/")[2]).suffix

    def resolve(self) -> StoredObject:
        """Return itself."""
        return self

    def stamp(self) -> tuple[int, str]:
        """Its bytes, and what is another when it has been replaced."""
        store, name = self._place()
        return store.stamp(name)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open it for reading; nothing is kept but the block at hand."""
        return io.BufferedReader(_Reading(*self._place(), size=self.stamp()[0]), FIRST_BLOCK)

    def _place(self) -> tuple[Store, str]:
        folder, _, name = self.url.rpartition("/")
        return Store(folder), name


class _Reading(io.RawIOBase):
    """An object, read in blocks that grow as long as reading goes straight on."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self._store, self._name, self._size = store, name, size
        self._position = self._start = 0
        self._block = b""
        self._ahead = FIRST_BLOCK

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = self._start + len(self._block)
        if not self._start <= self._position < end and self._position < self._size:
            self._ahead = min(2 * self._ahead, BLOCK) if self._position == end else FIRST_BLOCK
            wanted = self._position + max(self._ahead, len(buffer))
            self._block = self._store.part(self._name, self._position, min(wanted, self._size))
            self._start = self._position
        inside = self._position - self._start
        data = self._block[inside : inside + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def objects_of(url: str) -> list[StoredObject]:
    """The objects that a URL names, sorted; what follows its bucket may be a pattern with * and [ ], as of files.

    Raises:
        StorageError: None has such a name, or the URL cannot be used.
    """
    parts = url.split("/")
    marked = [number for number, part in enumerate(parts) if number > 2 and re.search(r"[*[]", part)]
    if not marked:
        return [StoredObject(url)]
    store, pattern = Store("/".join(parts[: marked[0]])), parts[marked[0] :]
    named = [(name, name.split("/")) for name in store.names("")]
    found = [name for name, own in named if len(own) == len(pattern) and all(map(fnmatchcase, own, pattern))]
    if not found:
        raise MissingObject(f"{url}: no object has such a name")
    return [StoredObject(f"{store.url}/{name}") for name in found]
