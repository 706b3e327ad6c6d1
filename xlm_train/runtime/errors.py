"""Errors that a user can fix, and the exit statuses.

What the system says of a file is told in a line, too. Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_OUT_OF_MEMORY = 71  # EX_OSERR of sysexits.h: the system cannot give what is needed
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: start the same command again
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class UserError(Exception):
    """One or more mistakes in what the user gave: a file, an override, a folder.

    All mistakes that can be found together are reported together.

    Args:
        problems: one line each, naming the file or the override to change.
    """

    status: ClassVar[int] = EXIT_USER_ERROR  # of a command that ends with it

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return f"{len(self.problems)} problems:\n" + "\n".join(f"  - {p}" for p in self.problems)

    def __reduce__(self) -> tuple[type[UserError], tuple[list[str]]]:
        return (type(self), (self.problems,))  # crosses process borders with its list intact


def said(error: Exception) -> str:
    """The kind of an error and its first line, if it says anything."""
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


class ConfigError(UserError):
    """The configuration asks for something impossible or unknown."""


class CorpusError(UserError):
    """A binarised corpus is missing, unfinished, damaged, or does not belong to this run."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, unsafe, or does not belong to this run."""


class UnreadableError(CheckpointError):
    """A checkpoint that is there cannot be read now, which says nothing of what is in it."""


class StorageError(UserError):
    """Object storage cannot be reached, refuses, or does not hold what is asked for."""


class SystemFailure(UserError):
    """The system fails at a file, which may pass: a disk, a network file system."""

    status = EXIT_FAILED


class OutOfMemory(UserError):
    """A run needs more memory than there is."""

    status = EXIT_OUT_OF_MEMORY


class TextError(UserError):
    """A text source cannot be read."""


def at_least(least: int, **values: float) -> None:
    """Check that values are not too small.

    Args:
        least: the smallest value that is allowed.
        values: by the name of the override that sets them.

    Raises:
        ConfigError: with all that are.
    """
    if problems := [
        f"{name}={value}: must be at least {least}" for name, value in values.items() if not value >= least
    ]:
        raise ConfigError(problems)
