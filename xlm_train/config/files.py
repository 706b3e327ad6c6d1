"""What commands read and write: told before any work whether it is there, and whether it can be made."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass
class DataPath:
    """Where the corpus is."""

    path: str | None


def path_of(given: str | Path) -> Path:
    """The path that a user wrote, `~` replaced; as a shell does, not where there is no such user."""
    try:
        return Path(given).expanduser()
    except RuntimeError:
        return Path(given)


def out_problems(out: str | None) -> list[str]:
    """Tell whether a result can be written to `out`, before the work that it is the result of."""
    if out is None:
        return []
    why: str | None
    if os.path.isdir(out) or not out:
        why = "is a folder; give a file"
    elif os.path.exists(out) and not os.path.isfile(out):
        why = "is a device or pipe, which would be replaced; give a file"
    else:
        why = unwritable(Path(out).parent)
    return [] if why is None else [f"out={out}: {why}"]


def overwriting_problems(out: str | None, written: Iterable[Path], inputs: Mapping[str, str | None]) -> list[str]:
    """Tell of inputs that a result would take the place of.

    Args:
        out: Of the result.
        written: All files that are written for it.
        inputs: What is read, by key.
    """
    files = list(written)
    return [
        f"out={out}: would overwrite {key}={file}; give another file"
        for key, file in inputs.items()
        if file is not None and any(_is_same(path, file) for path in files)
    ]


def _is_same(path: Path, other: str) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one of them is not there
        return False


def checkpoint_problems(path: str) -> list[str]:
    """Tell whether there is a checkpoint under a path that stands for one (`local_checkpoint`)."""
    if os.path.isfile(path):
        return []
    why = "is a folder without checkpoints" if os.path.isdir(path) else "there is no such file"
    return [f"checkpoint={path}: {why}"]


def unwritable(folder: Path) -> str | None:
    """Say why no file can be made in a folder; None where one can. Tried, as permissions do not tell all."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder} is not writable ({error.strerror})" if folder.is_dir() else f"{folder} is no folder"
