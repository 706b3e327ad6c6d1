"""Checkpoint files that are either whole or absent, and safe to load.

A file is what `torch.save` writes, followed by a trailer of 48 bytes: a magic word, the length and the SHA-256 of what
comes before it. Length and checksum are verified before anything is parsed, then it loads under `weights_only=True`: a
damaged file is never half-read and a file of unknown origin never executes code.

What is inside says checkpoint_content.py.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlm_train.runtime.checkpoint_content import FORMAT, VERSION, from_view, settled, to_view
from xlm_train.runtime.errors import CheckpointError, OutOfMemory, UnreadableError, UserError, said
from xlm_train.runtime.files import atomic_write
from xlm_train.runtime.memory import is_out_of_memory

MAGIC = b"XLMCKPT1"
TRAILER = struct.Struct("<8sQ32s")
NAME = re.compile(r"step-(\d{8,})\.pt")


class _HashingWriter(io.RawIOBase):
    """Passes bytes on to a file and hashes them. `torch.save` writes a stream in order, so one pass is enough."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.length = 0
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.hash.update(view)
        try:
            self.file.write(view)
        except OSError as error:
            self.failure = error
            raise
        self.length += len(view)
        return len(view)


def name_of(step: int) -> str:
    """Return the file name of the checkpoint taken after `step` steps."""
    return f"step-{step:08d}.pt"


def write(path: str | Path, content: Mapping[str, Any]) -> str:
    """Write a checkpoint file atomically.

    Args:
        path: the file; an earlier file there is untouched until the new one is whole on disk.
        content: what goes inside (see checkpoint_content.py); format and version are added.

    Returns:
        SHA-256 of the content as hex.

    Raises:
        UserError: the file cannot be written; names it.
    """
    with atomic_write(path) as file:
        written = save_into(file, {"format": FORMAT, "version": VERSION, **content})
        file.write(TRAILER.pack(MAGIC, written.length, written.hash.digest()))
    return written.hash.hexdigest()


def save_into(file: Any, content: Any, pickle_protocol: int = 2) -> _HashingWriter:
    """Call `torch.save`, which reports its own confusion instead of, say, a full disk: here that is raised.

    Args:
        file: open for writing.
        content: as `torch.save` takes it.
        pickle_protocol: likewise.

    Returns:
        What knows the length and the hash of the bytes written.

    Raises:
        OSError: the file cannot be written.
    """
    import torch  # takes seconds, and most who look at run folders read no checkpoint

    writer = _HashingWriter(file)
    try:
        torch.save(content, writer, pickle_protocol=pickle_protocol)  # type: ignore[arg-type]
    except Exception:
        if writer.failure is not None:
            raise writer.failure from None
        raise
    return writer


def save(path: str | Path, view: Mapping[str, Any]) -> str:
    """Write a checkpoint from its view, atomically.

    Args:
        path: the file; an earlier file there is untouched until the new one is whole on disk.
        view: keys as in the module's docstring.

    Returns:
        SHA-256 of the content as hex.

    Raises:
        UserError: the file cannot be written; names it.
    """
    return write(path, from_view(view))


def is_checkpoint(path: str | Path) -> bool:
    """Whether a file ends as a checkpoint of this program does; nothing else of it is read."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TRAILER.size))
        return file.read(len(MAGIC)) == MAGIC


def checksum(path: str | Path) -> str:
    """Verify a checkpoint's length and checksum without loading it.

    Args:
        path: the file; every byte of it is read.

    Returns:
        SHA-256 of its content as hex.

    Raises:
        CheckpointError: names the file and what is wrong with it.
        UnreadableError: it cannot be read, which says nothing of what is in it.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < TRAILER.size:
                raise CheckpointError(f"{path}: {size} bytes: not a checkpoint, or truncated")
            file.seek(size - TRAILER.size)
            magic, length, digest = TRAILER.unpack(file.read(TRAILER.size))
            if magic != MAGIC:
                raise CheckpointError(
                    f"{path}: does not end as a checkpoint of xlm_train: truncated, or another program's file"
                    " (xlm-import reads the original's .pth and transformers folders)"
                )
            if length != size - TRAILER.size:
                raise CheckpointError(
                    f"{path}: {size - TRAILER.size} bytes of content where {length} were written: damaged"
                )
            file.seek(0)
            found, left = hashlib.sha256(), length
            while left:
                block = file.read(min(left, 1 << 22))
                if not block:
                    raise CheckpointError(f"{path}: became shorter while it was read")
                found.update(block)
                left -= len(block)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read: {error.strerror or error}") from error
    if found.digest() != digest:
        raise CheckpointError(f"{path}: its checksum is wrong: the file is damaged")
    return found.hexdigest()


def read(path: str | Path) -> dict[str, Any]:
    """Verify a checkpoint and read what is inside.

    Args:
        path: the file.

    Returns:
        The content as version 3 has it (see checkpoint_content.py), tensors on the CPU, with the key `sha256` added.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or of a version that this program does not read.
        OutOfMemory: it does not fit into memory.
    """
    import torch

    digest = checksum(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here; all others mean that the file is not a safe checkpoint
        if is_out_of_memory(error):
            size = f"{Path(path).stat().st_size / 1e9:,.1f} GB"
            raise OutOfMemory(
                f"{path}: out of memory while its {size} were read: free some, or use another machine"
            ) from error
        raise CheckpointError(f"{path}: cannot be loaded safely: {said(error)}") from error
    try:
        return {**settled(content), "sha256": digest}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def shape_of(path: str | Path) -> dict[str, Any]:
    """Read the shape of the model in a checkpoint, without its weights; what is read is not verified.

    Raises:
        CheckpointError: the file is no checkpoint, or cannot be loaded.
        OSError: it cannot be read.
    """
    import torch

    if not is_checkpoint(path):
        raise CheckpointError(f"{path}: does not end as a checkpoint of xlm_train")
    try:
        shape: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["shape"]
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be loaded safely: {error}") from error
    return shape


def of_run(path: str | Path) -> Path:
    """Return the checkpoint that a path stands for: of a run's folder its best one, else its newest; a file itself."""
    path = Path(path)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    best = folder / "best.pt"
    return best if best.is_file() else next(iter(in_folder(folder)), path)


def load(path: str | Path) -> dict[str, Any]:
    """Verify a checkpoint and read it as a view.

    Args:
        path: the file, or the folder of a run, whose best checkpoint is read.

    Returns:
        The view (see checkpoint_content.py), tensors on the CPU, with the key `sha256` added.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or of a version that this program does not read.
    """
    return to_view(read(of_run(path)))


@dataclass(frozen=True)
class Found:
    """Result of looking for the newest checkpoint.

    Args:
        path: the newest whole checkpoint of the run; None where there is none.
        content: what is inside it, as `read` returns it.
        skipped: newer files that are damaged or not the run's, as (file, reason).
    """

    path: Path | None
    content: dict[str, Any] | None
    skipped: list[tuple[Path, str]]


def in_folder(folder: str | Path) -> list[Path]:
    """List the checkpoints of a folder, newest (highest step) first; none where there is no such folder.

    Raises:
        UserError: it cannot be read.
    """
    files = [path for path in _files_in(folder) if NAME.fullmatch(path.name)]
    return sorted(files, key=step_of, reverse=True)


def any_in(folder: str | Path) -> bool:
    """Whether a folder holds checkpoints, damaged ones that were put aside among them.

    Raises:
        UserError: it cannot be read.
    """
    return any(path.name.startswith("step-") for path in _files_in(folder))


def _files_in(folder: str | Path) -> list[Path]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:  # glob would find nothing, and a run would begin anew
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from error
    try:
        return [path for path in map(Path(folder).joinpath, names) if _is_regular(path)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from error


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a link that leads nowhere
            return False
        raise


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's file name."""
    return int(path.stem.removeprefix("step-"))


def newest(folder: str | Path, mismatch: Callable[[dict[str, Any]], str | None] = lambda content: None) -> Found:
    """Find the newest whole checkpoint of a folder; others are named and skipped, never deleted.

    Args:
        folder: where the files `step-*.pt` are.
        mismatch: returns why a content does not belong here (another run's file under this name), or None.

    Returns:
        The checkpoint with its content, and the newer files that were skipped.

    Raises:
        UnreadableError: a file cannot be read, which may be the newest whole one.
    """
    skipped: list[tuple[Path, str]] = []
    for path in in_folder(folder):
        try:
            content = read(path)
        except UnreadableError as error:
            raise UnreadableError(f"{error}: make it readable, or move it away to go on from the one before") from error
        except CheckpointError as error:
            skipped.append((path, str(error)))
            continue
        why = mismatch(content)
        if content["train_state"]["step"] != step_of(path):
            why = f"holds step {content['train_state']['step']}: it was renamed"
        if why is None:
            return Found(path, content, skipped)
        skipped.append((path, f"{path}: {why}"))
    return Found(None, None, skipped)


def peek(path: str | Path) -> str | None:
    """Read the SHA-256 that a checkpoint ends with, without reading its content.

    Args:
        path: the checkpoint.

    Returns:
        The checksum as it was written, as hex; None where the file cannot be read or does not end as a whole
        checkpoint does. That the content has this checksum is not verified: see `checksum`.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TRAILER.size))
            magic, length, digest = TRAILER.unpack(file.read(TRAILER.size))
    except (OSError, struct.error):
        return None
    return digest.hex() if magic == MAGIC and length == size - TRAILER.size else None
