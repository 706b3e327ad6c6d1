"""What every source of text is: a name, bytes of lines, and what they hash to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

CHUNK_BYTES = 1 << 20


@dataclass
class Reading:
    """How far one reading of a source has come, and what it read.

    done: bytes read so far, of those `Source.size` counts. sha256: of those bytes (of the text itself where there is
    no file).
    """

    done: int = 0
    digest: Any = None

    def __post_init__(self) -> None:
        self.digest = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self.done += len(data)
        self.digest.update(data)

    @property
    def sha256(self) -> str:
        return str(self.digest.hexdigest())


class Source(Protocol):
    """One input: lines of one language.

    name: as the user wrote it, for messages and the manifest. size: bytes to read, None where unknown.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    def check(self) -> list[str]:
        """Problems that can be found without reading it all: missing, empty, not readable, not what its name says."""

    def chunks(self, reading: Reading) -> Iterator[bytes]:
        """The text as bytes of UTF-8, lines ending in newline, cut anywhere. Raises TextError naming the source."""
