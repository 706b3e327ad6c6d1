"""The standard streams as a command finds them: closed, or with nobody at the other end."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import Any

MODES = {0: os.O_RDONLY, 1: os.O_WRONLY, 2: os.O_WRONLY}


class _Heard:
    """Standard error: what cannot be written there is lost, and the work goes on (`2>&1 | tee LOG`, and tee has ended).

    Args:
        stream: The stream itself.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As a text stream's."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Likewise."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Likewise."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._stream, name)


def settle_streams() -> None:
    """Open the streams that are closed on /dev/null: else a file of the command's would get their number."""
    for number, mode in MODES.items():
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest number that is free
    sys.stdin, sys.stdout = sys.stdin or os.fdopen(0, closefd=False), sys.stdout or os.fdopen(1, "w", closefd=False)
    if not isinstance(sys.stderr, _Heard):
        sys.stderr = _Heard(sys.stderr or os.fdopen(2, "w", closefd=False))  # type: ignore[assignment]
