"""Signals that ask a run to leave, remembered until the next step boundary. Imports nothing heavy."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class StopFlag:
    """Whether one of SIGTERM, SIGINT, SIGUSR1, SIGHUP has come since `install`. A second SIGINT raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.is_set = False
        self._interrupted = False

    def install(self) -> None:
        """Take the signals over, until the process ends: one that comes again at the very end must not kill it either."""
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self.is_set = True
