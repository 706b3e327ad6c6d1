"""Checkpoints that are whole or not there, and safe to load.

A checkpoint file is what `torch.save` writes, followed by a trailer of 48 bytes: a magic word, the length and the
SHA-256 of what stands before it. Length and checksum are verified before anything is parsed, then it loads under
`weights_only=True`: a damaged file is never half-read and a foreign one never executes code.

Content (format version 2):
    format, version
    shape       ModelShape as a dict
    model       state dict of `XLM`
    optimizer   state dict, or None in a checkpoint for inference
    progress    step (attempts), updates, skipped steps, loss scale, patience, best metrics (see progress.py)
    ledger      losses of the steps since the last report; guard: recent good losses (see ledger.py, guard.py)
    text        languages {code: id}, vocab, codes (both as text), lowercase, remove_accents: to read new text
    lineage     corpus: its lineage hash; parents: hashes of the checkpoints this one descends from (init_from, import)
    metrics     last validation metrics
    config      the resolved config of the run
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xlm_train.runtime.errors import CheckpointError
from xlm_train.runtime.files import atomic_write

FORMAT = "xlm_train.checkpoint"
VERSION = 2
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
        except OSError as error:  # torch.save would report its own confusion instead of, say, a full disk
            self.failure = error
            raise
        self.length += len(view)
        return len(view)


def name_of(step: int) -> str:
    """File name of the checkpoint taken after `step` steps."""
    return f"step-{step:08d}.pt"


def save(path: str | Path, content: dict[str, Any]) -> str:
    """Write a checkpoint atomically; returns the SHA-256 of its content as hex.

    Raises UserError naming the file where it cannot be written; what stood there before is then untouched.
    """
    with atomic_write(path) as file:
        writer = _HashingWriter(file)
        try:
            torch.save({"format": FORMAT, "version": VERSION, **content}, writer)  # type: ignore[arg-type]
        except Exception:
            if writer.failure is not None:
                raise writer.failure from None
            raise
        file.write(TRAILER.pack(MAGIC, writer.length, writer.hash.digest()))
    return writer.hash.hexdigest()


def checksum(path: str | Path) -> str:
    """Verify a checkpoint's length and checksum without loading it; returns the SHA-256 of its content.

    Raises CheckpointError naming the file and what is wrong with it.
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
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if found.digest() != digest:
        raise CheckpointError(f"{path}: its checksum is wrong: the file is damaged")
    return found.hexdigest()


def load(path: str | Path) -> dict[str, Any]:
    """Verify and read a checkpoint, tensors on the CPU.

    Adds the key `sha256`, the content's checksum. Raises CheckpointError where the file is missing, damaged, unsafe,
    or of a version this program does not read.
    """
    digest = checksum(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here; all mean that the file is not a safe checkpoint
        raise CheckpointError(
            f"{path}: cannot be loaded safely: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not a checkpoint of xlm_train")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path}: checkpoint version {content.get('version')}, this program reads {VERSION}")
    content["sha256"] = digest
    return content


@dataclass(frozen=True)
class Found:
    """Result of looking for the newest checkpoint. damaged: newer ones that were passed over, as (file, reason)."""

    path: Path | None
    content: dict[str, Any] | None
    damaged: list[tuple[Path, str]]


def in_folder(folder: str | Path) -> list[Path]:
    """The checkpoints of a folder, newest (highest step) first."""
    files = [path for path in Path(folder).glob("step-*.pt") if NAME.fullmatch(path.name)]
    return sorted(files, key=lambda path: int(NAME.fullmatch(path.name)[1]), reverse=True)  # type: ignore[index]


def newest(folder: str | Path, foreign: Callable[[dict[str, Any]], str | None] = lambda content: None) -> Found:
    """The newest checkpoint of a folder that is whole; others are named and passed over, never deleted.

    foreign: why a content does not belong here (another run's file under this name), or None.
    """
    damaged: list[tuple[Path, str]] = []
    for path in in_folder(folder):
        try:
            content = load(path)
        except CheckpointError as error:
            damaged.append((path, str(error)))
            continue
        why = foreign(content)
        if content["progress"]["step"] != int(NAME.fullmatch(path.name)[1]):  # type: ignore[index]
            why = f"holds step {content['progress']['step']}: it was renamed"
        if why is None:
            return Found(path, content, damaged)
        damaged.append((path, f"{path}: {why}"))
    return Found(None, None, damaged)


def peek(path: str | Path) -> str | None:
    """Read the SHA-256 that a checkpoint ends with, without reading its content.

    Args:
        path: The checkpoint.

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
