"""Settings from a foreign file, brought down to Python's own values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from xlm_train.runtime.errors import CheckpointError

LANGUAGE = re.compile(r"\w[\w.-]{0,19}")
MOST_VALUES = 100_000  # a small pickle can spell a tree without end


def is_text(value: str) -> bool:
    """Whether a string is Unicode text: pickles can hold half a surrogate pair, which no file can."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def read_languages(value: Any, where: str) -> dict[str, int]:
    """A table of languages and ids, in the order of ids. Raises CheckpointError naming `where` if it is none."""
    if (
        not isinstance(value, dict)
        or not value
        or not all(isinstance(code, str) and LANGUAGE.fullmatch(code) for code in value)
        or not all(type(number) is int for number in value.values())
        or {*value.values()} != {*range(len(value))}
    ):
        raise CheckpointError(f"{where}: does not say the languages (lang2id)")
    return dict(sorted(value.items(), key=lambda item: item[1]))


def plain(value: Any, path: Path) -> Any:
    """A copy with nothing in it but dicts, lists, tuples, text, truth values and Python's numbers.

    numpy numbers become Python's; arrays and tensors are left out of dicts (the original keeps some in its
    params; all follow from the rest). Raises CheckpointError where anything else is in it, or too much.
    """
    left = MOST_VALUES

    def copy(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > 10:
            raise CheckpointError(f"{path}: its params are too large or too deep to be settings")
        if value is None or type(value) in (bool, int, float) or (type(value) is str and is_text(value)):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, dict):
            return {
                key: copy(item, depth + 1) for key, item in value.items() if not isinstance(item, np.ndarray | Tensor)
            }
        if type(value) in (list, tuple):
            return type(value)(copy(item, depth + 1) for item in value)
        raise CheckpointError(f"{path}: its params hold a {type(value).__name__}")

    return copy(value, 0)
