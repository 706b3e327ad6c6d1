"""What every source of text is, and the commonest kind: text files, plain or compressed."""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import zstandard

from xlm_train.runtime.errors import StorageError, TextError
from xlm_train.runtime.stored_object import StoredObject

CHUNK_BYTES = 1 << 20

Place = Path | StoredObject  # what is read

COMPRESSED = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}
NOT_UTF8 = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PAR1": "parquet", b"%PDF": "PDF"}
ARCHIVES = {
    0: (b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"Rar!"),
    257: (b"ustar",),
}  # what stands where in zip, 7z, rar, tar
AN_ARCHIVE = "is an archive: unpack it, and give the files in it"
HEAD_BYTES = 1 << 16
NUL_SHARE = 0.1  # in the head; ASCII in UTF-16 has half
BINARY_SHARE = 0.05  # of control bytes in the head; random bytes have a ninth

CONTROL = bytes(code for code in [*range(32), 127] if code not in b"\t\n\r")
"""Control bytes that do not belong in text, NUL included."""


class ReadStats:
    """How far one reading of a source has come, and the hash of what it read.

    Attributes:
        done: Bytes read so far, of those that `Source.size` counts.
        digest: SHA-256 of those bytes (of the text itself where there is no file).
    """

    def __init__(self) -> None:
        self.done = 0
        self.digest = hashlib.sha256()

    def add(self, data: bytes) -> None:
        """Count and hash some more bytes."""
        self.done += len(data)
        self.digest.update(data)

    @property
    def sha256(self) -> str:
        """The hash so far, as hex."""
        return self.digest.hexdigest()


class Source(Protocol):
    """One input: lines of one language."""

    @property
    def name(self) -> str:
        """As the user wrote it, for messages and the manifest."""

    @property
    def size(self) -> int | None:
        """Bytes to read; None where unknown."""

    def check(self) -> list[str]:
        """Problems that can be found without reading it all: missing, empty, not readable, not what its name says."""

    def chunks(self, stats: ReadStats) -> Iterator[bytes]:
        """The text as bytes of UTF-8, lines ending in newline, cut anywhere.

        Args:
            stats: Counts and hashes what is read, on the way.

        Raises:
            TextError: The source cannot be read, is damaged, or changes while it is read.
        """


class _Counted(RawIOBase):
    """A file that counts and hashes what is read from it."""

    def __init__(self, file: BinaryIO, stats: ReadStats) -> None:
        self.file = file
        self.stats = stats

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.stats.add(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _decompress(file: Any, suffix: str) -> Any:
    """Reader of the text in `file`. All take several members in a row and raise EOFError for a truncated one."""
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=file, mode="rb")
    if suffix == ".bz2":
        return _Members(file, bz2.BZ2Decompressor)
    if suffix == ".xz":
        return _Members(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ))
    if suffix == ".zst":
        return _ZstdFile(file)
    return file


class _Members:
    """Python's own readers take what follows a member and is none for the file's end; this one does not.

    Args:
        file: Compressed.
        start: Makes the decompressor of one member.
    """

    FEED_BYTES = 1 << 16

    def __init__(self, file: Any, start: Callable[[], Any]) -> None:
        self.file = file
        self.start = start
        self.member: Any = None
        self.rest = b""  # read, and of the next member

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        out = bytearray()
        while len(out) < size:
            while self.member is None:
                if not (data := self.rest or self.file.read(self.FEED_BYTES)):
                    return bytes(out)
                self.rest = data.lstrip(b"\0")  # padding
                self.member = self.start() if self.rest else None
            data, self.rest = self.rest, b""
            if not data and self.member.needs_input and not (data := self.file.read(self.FEED_BYTES)):
                raise EOFError
            out += self.member.decompress(data, size - len(out))
            if self.member.eof:
                self.member, self.rest = None, self.member.unused_data
        return bytes(out)


class _ZstdFile:
    """zstandard's own reader takes a truncated file for a whole one; this one does not.

    It is fed little at a time, because a kilobyte can unpack to 32 MB at most.
    """

    FEED_BYTES = 1 << 10

    def __init__(self, file: Any) -> None:
        self.file = file
        self.frame: Any = None

    def read(self, size: int) -> bytes:
        """About `size` bytes, more where they are dense; none at the end."""
        out: list[bytes] = []
        held = 0
        while held < size:
            data = self.file.read(self.FEED_BYTES)
            if not data:
                if self.frame is not None:
                    raise EOFError
                break
            while data:
                if self.frame is None:
                    self.frame = zstandard.ZstdDecompressor().decompressobj()
                out.append(self.frame.decompress(data))
                held += len(out[-1])
                data = self.frame.unused_data
                if self.frame.eof:
                    self.frame = None
        return b"".join(out)


def stamp(place: Place) -> tuple[int, Any]:
    """Bytes of a file or an object, and what is another when it has been written again."""
    if isinstance(place, StoredObject):
        return place.stamp()
    status = place.stat()
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class FileSource:
    """A source of text that is one file.

    Args:
        path: Of the file, or an object in its place.
    """

    path: Place

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Bytes of the file, as it is: compressed where it is."""
        return stamp(self.path)[0]


@dataclass(frozen=True)
class TextFile(FileSource):
    """Lines of a file; its last suffix says how it is compressed (.gz .bz2 .xz .zst; anything else is plain text)."""

    def check(self) -> list[str]:
        """Problems that the file's beginning shows."""
        try:
            if isinstance(self.path, Path) and not self.path.is_file():
                return [f"{self.path}: is not a regular file"]
            with self.path.open("rb") as file:
                magic = file.read(8)
            if not magic:
                return [f"{self.path}: is empty"]
            suffix = self.path.suffix
            if suffix == ".tgz" or ".tar" in self.path.suffixes[-2:]:
                return [f"{self.path}: {AN_ARCHIVE}"]
            if suffix in COMPRESSED:
                if not magic.startswith(COMPRESSED[suffix]):
                    return [f"{self.path}: is named {suffix} but is not such a file"]
            else:
                for other, start in COMPRESSED.items():
                    if magic.startswith(start):
                        return [f"{self.path}: is compressed; rename it to end in {other}"]
            head = b""
            for chunk in self.chunks(ReadStats(), head_only=True):
                head = chunk
        except (TextError, StorageError) as error:
            return error.problems
        except OSError as error:
            return [f"{self.path}: cannot be read: {error.strerror or error}"]
        if not head.removeprefix(codecs.BOM_UTF8):
            return [f"{self.path}: holds no text"]
        if any(head.startswith(mark, place) for place, marks in ARCHIVES.items() for mark in marks):
            return [f"{self.path}: {AN_ARCHIVE}"]
        for start, what in NOT_UTF8.items():
            if head.startswith(start):
                return [f"{self.path}: is {what}, not UTF-8 text"]
        if head.count(b"\0") > NUL_SHARE * len(head):
            return [f"{self.path}: is full of NUL bytes: UTF-16 or binary, not UTF-8 text (iconv converts)"]
        if len(head) - len(head.translate(None, CONTROL)) > BINARY_SHARE * len(head):
            return [f"{self.path}: is binary, not UTF-8 text"]
        return []

    def chunks(self, stats: ReadStats, head_only: bool = False) -> Iterator[bytes]:
        """The decompressed text in pieces of about a megabyte, cut anywhere.

        Args:
            stats: Counts and hashes the file's own bytes.
            head_only: Give the beginning alone.

        Raises:
            TextError: The file cannot be read, is truncated or damaged, or changes while it is read.
            StorageError: The object cannot be read.
        """
        try:
            before = stamp(self.path)
            with self.path.open("rb") as file:
                counted = _Counted(file, stats)
                text = _decompress(counted, self.path.suffix)
                if head_only:
                    yield text.read(HEAD_BYTES)
                    return
                while chunk := text.read(CHUNK_BYTES):
                    yield chunk
                while counted.read(CHUNK_BYTES):  # what a decompressor leaves unread belongs to the checksum too
                    pass
                after = stamp(self.path)
        except EOFError as error:
            raise TextError(f"{self.path}: is truncated: its compressed data ends too early") from error
        except (OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
            raise TextError(f"{self.path}: {_reason(error)}") from error
        if after != before or stats.done != before[0]:
            raise TextError(
                f"{self.path}: changed while it was read ({before[0]:,} bytes at the start, "
                f"{after[0]:,} at the end, {stats.done:,} read); run again when it is complete"
            )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"is damaged: {error}"
