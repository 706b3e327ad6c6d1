"""Files and folders that are either whole or absent; hashes and JSON."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Self

from xlm_train.runtime.console import log
from xlm_train.runtime.errors import UserError

LEFTOVER = re.compile(r"\..+\.([0-9]+)-[0-9a-f]{8}\.tmp", re.DOTALL)  # what a writer works on; its process
LONGEST_NAME = 255  # bytes of a file's or folder's name, on every usual file system


def fsync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk: only then does a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under `path` whole or not at all.

    The block writes to a temporary name in the same folder (so that the rename cannot cross a filesystem), which is
    flushed to disk and renamed, and the folder is flushed too. On any failure the temporary file is removed and an
    earlier file under `path` is untouched.

    Args:
        path: the file; its folder must exist.

    Raises:
        UserError: the folder is missing or read-only, or the disk is full; names the path.
    """
    target = Path(path)
    temporary = target.with_name(working_name(target.name))
    try:
        with open(temporary, "w+b") as file:
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


def working_name(name: str) -> str:
    """The name under which this process works on a file or folder, until it is whole."""
    return f".{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed in the middle of a write have left; who still writes goes on."""
    for left_over in folder.glob(".*.tmp"):
        found = LEFTOVER.fullmatch(left_over.name)
        if found is None or (found[1] != str(os.getpid()) and Path(f"/proc/{found[1]}").exists()):
            continue
        if left_over.is_dir():  # of an export
            shutil.rmtree(left_over, ignore_errors=True)
        else:
            left_over.unlink(missing_ok=True)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: Any) -> str:
    """Return the SHA-256 of the canonical JSON of some values, as hex."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write indented JSON, atomically.

    Args:
        path: the file.
        value: what JSON can hold, without NaN and infinities.

    Raises:
        UserError: the file cannot be written; names it.
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text.encode() + b"\n")


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, on a line of its own even where a write before it was cut off.

    Raises:
        OSError: it cannot be written; a part of it may be there.
    """
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode() + b"\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing or not JSON; names it.
    """
    try:
        if stat.S_ISFIFO(Path(path).stat().st_mode):
            raise UserError(f"{path}: cannot be read: is a pipe, and would be waited for")
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON: {error}") from error


def as_number(value: Any) -> float | None:
    """A value of a JSON file as a number; None where it is none, or not finite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond
        return None
    return number if math.isfinite(number) else None


def beside(out: Path, ending: str) -> Path:
    """A result's other file: out.json -> out.ENDING, and out -> out.ENDING."""
    return out.with_name(f"{out.name.removesuffix('.json')}.{ending}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process of the machine at a time run the block.

    Args:
        path: the lock's file, which is made, its folder too.

    Raises:
        UserError: it cannot be made; names its folder.
    """
    make_folder(path.parent)
    try:
        file = open(path, "w")  # noqa: SIM115 (closed below, where the lock ends)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be written to: {error.strerror}") from error
    with file:
        lock(file, wait=True)
        yield


def lock(file: IO[Any], wait: bool = False) -> None:
    """Lock an open file until it is closed. On a network file system without locks there is a warning instead.

    Raises:
        BlockingIOError: another process has it, and this one does not `wait`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        folder = os.path.dirname(file.name)  # noqa: PTH120 (a name is all that a file has)
        log(f"warning: {folder} cannot be locked ({error.strerror}): let no two commands write there at a time")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        UserError: it cannot be made; names it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error


AT_FDCWD, RENAME_EXCHANGE = -100, 2  # from fcntl.h


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `out` when the block succeeds; on any failure it is removed.

    Everything is on disk before the name changes; an earlier folder under `out` is removed after that.

    Args:
        out: the folder to write or replace; whether it may be replaced the caller has checked.

    Raises:
        UserError: `out` cannot be written; names it.
    """
    temporary = out.with_name(working_name(out.name))
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
    except UserError as error:  # of a file in it: named as it would have been
        raise type(error)([problem.replace(str(temporary), str(out)) for problem in error.problems]) from error
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


class ResumableLines:
    """A text file that appears when it is whole; a writer that was stopped goes on behind its last whole block.

    Until then its lines are in FILE.part, and what they were made by in FILE.part.json. A context manager, which closes it.

    Args:
        path: Of the file.
        made_by: Whatever decides what the lines are. Lines of another maker are thrown away.

    Attributes:
        done: Lines that are there already.

    Raises:
        UserError: It cannot be written, or another process is writing it.
    """

    def __init__(self, path: str | os.PathLike[str], made_by: Any) -> None:
        self.path = Path(path)
        self.part, self.note = self.working_files(path)
        self.done = 0
        try:
            self.file = open(self.part, "a+b")  # noqa: SIM115 (open as long as the object)
            lock(self.file)
            is_there = self.part.exists() and os.path.samestat(os.fstat(self.file.fileno()), self.part.stat())
        except BlockingIOError:
            is_there = False
        except OSError as error:
            raise UserError(f"{self.part}: cannot be written: {error.strerror or error}") from error
        if not is_there:  # the other one has it, or has just given it its name
            raise UserError(f"out={path}: another process is writing it")
        if self.note.is_file() and read_json(self.note) == made_by:
            self.file.seek(0)
            data = self.file.read()
            self.done = data.count(b"\n")
            self.file.truncate(data.rfind(b"\n") + 1)
        else:
            self.file.truncate(0)  # before the note says that its lines are ours
            try:
                write_json(self.note, made_by)
            except UserError:
                self.part.unlink()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()  # and with it the lock

    @staticmethod
    def working_files(path: str | os.PathLike[str]) -> tuple[Path, Path]:
        """The unfinished file of a file, and what is noted of it."""
        return Path(f"{path}.part"), Path(f"{path}.part.json")

    def write(self, lines: Iterable[str]) -> None:
        """Add lines, on disk before this returns.

        Raises:
            UserError: They cannot be written.
        """
        try:
            self.file.write("".join(f"{line}\n" for line in lines).encode())
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise UserError(f"{self.part}: cannot be written: {error.strerror or error}") from error

    def finish(self) -> None:
        """Give the file its name.

        Raises:
            UserError: It cannot have it.
        """
        try:
            os.replace(self.part, self.path)
            self.note.unlink()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error
