"""Which of the run's processes this is, and the signals that ask it to stop. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from xlm_train.runtime.errors import ConfigError

PR_SET_PDEATHSIG = 1  # from prctl.h


def rank() -> int:
    """Return the global rank, from torchrun's or srun's environment; 0 where there is no launcher."""
    return _number("RANK", "SLURM_PROCID", 0)


def local_rank() -> int:
    """Return the rank on this node, from the same environment: the number of the process's GPU."""
    return _number("LOCAL_RANK", "SLURM_LOCALID", 0)


def processes() -> int:
    """Return the world size, from the same environment; 1 where there is no launcher."""
    return _number("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", 1)


def _number(torchruns: str, sruns: str, alone: int) -> int:
    name = torchruns if torchruns in os.environ else sruns
    value = os.environ.get(name, str(alone))
    if not value.isdecimal():
        raise ConfigError(f"{name}={value} in the environment: must be a whole number; unset it where nothing set it")
    return int(value)


def end_with_parent() -> None:
    """Have the system kill this process when its parent ends (Linux).

    A worker whose launcher was killed would otherwise train on and hold the run's lock, with nobody to stop it.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def is_first_process() -> bool:
    """Whether this is rank 0, which writes and prints for all."""
    return rank() == 0


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


ANSWER = b"\nleaving after this step, with a checkpoint; Ctrl-C again aborts at once\n"


class StopFlag:
    """Remembers in `is_set` whether one of SIGNALS has arrived since `install`.

    The first SIGINT is answered on standard error by the first process; a second one does what it did before `install`.

    Args:
        answer: To the first SIGINT.
    """

    def __init__(self, answer: bytes = ANSWER) -> None:
        self.is_set = False
        self._answer = answer
        self._interrupted = False
        self._insist: Callable[[int, FrameType | None], object] = signal.default_int_handler

    def install(self) -> None:
        """Handle the signals from here until the process ends: one at the very end must not kill it either."""
        if callable(handler := signal.getsignal(signal.SIGINT)) and handler != self._received:
            self._insist = handler
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._received)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within a block."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            self._insist(number, frame)
        self.is_set = True
        if number == signal.SIGINT:
            self._interrupted = True
            if is_first_process():
                with contextlib.suppress(OSError):  # `2>&1 | tee LOG`: the same Ctrl-C has ended tee
                    os.write(2, self._answer)  # a handler may interrupt a print, in which another print fails


def require_processes(devices: int, nodes: int) -> None:
    """Check that a launcher started as many processes as a config asks for.

    Args:
        devices: processes a node.
        nodes: machines.

    Raises:
        ConfigError: the numbers differ.
    """
    if processes() != devices * nodes:
        raise ConfigError(
            f"the launcher started {processes()} processes, but trainer.devices={devices} x trainer.nodes={nodes} ="
            f" {devices * nodes}: make them equal"
        )
