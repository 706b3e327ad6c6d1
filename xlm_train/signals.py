"""Signals that ask a run to leave, remembered until the next step boundary. Imports nothing heavy."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """Whether one of SIGTERM, SIGINT, SIGUSR1 has come since `install`. A second SIGINT raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.is_set = False

    def install(self) -> None:
        """Take the signals over, until the process ends: one that comes again at the very end must not kill it either."""
        for number in SIGNALS:
            signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
