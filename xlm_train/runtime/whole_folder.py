"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import fsync_folder

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
