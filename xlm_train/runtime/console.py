"""What the console shows: lines of the first process, numbers as a person reads them. Imports nothing heavy."""

from __future__ import annotations

import sys

from xlm_train.runtime.processes import is_first_process


def log(text: str) -> None:
    """Print a line to standard error, from the first process only."""
    if is_first_process():
        print(text, file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """1 process, 2 processes."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def compact(number: float) -> str:
    """1234567 -> 1.23 M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """3723 -> 1:02:03."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
