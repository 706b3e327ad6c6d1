"""Files and folders that are either whole or not there; hashes and JSON."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from xlm_train.runtime.errors import UserError


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (a rename survives a power cut only after this)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under `path` whole or not at all.

    Written to a temporary name in the same folder (so that the rename cannot cross a filesystem), flushed to
    disk, renamed, and the folder flushed too. On any failure the temporary file is removed and what stood under
    `path` before is untouched.

    Raises UserError naming the path where the folder is missing or read-only, or the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        fsync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # on a read-only filesystem even that fails
            temporary.unlink()
        if isinstance(error, OSError):
            raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error
        raise


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: Any) -> str:
    """SHA-256 of some values, as hex: of their canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinities are refused: they are not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode() + b"\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file. Raises UserError naming it where it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON: {error}") from error


AT_FDCWD = -100


RENAME_EXCHANGE = 2


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well; on any failure it is removed.

    Everything is on disk before the name changes. What stood under `out` before is removed after that: whether
    it may be is the caller's to decide. Raises UserError naming `out` where it cannot be written.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                _fsync(Path(folder) / name)
            fsync_folder(Path(folder))
        if out.exists():
            _exchange(temporary, out)
        else:
            temporary.rename(out)
        fsync_folder(out.parent)
    except OSError as error:
        raise UserError(f"out={out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fsync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders' names: in one step on Linux; elsewhere in two, between which `old` is missing."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename and rename(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0:
        return
    aside = new.with_suffix(".old")
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)
