"""Which of the run's processes this is, known before Lightning and torch.distributed are up."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from prctl.h


def rank() -> int:
    """Global rank, from torchrun's or srun's environment; 0 where there is no launcher."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def processes() -> int:
    """World size, likewise."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", "1")))


def end_with_parent() -> None:
    """Let the system kill this process when the one that started it is gone (Linux).

    A worker whose launcher was killed would train on, hold the run's lock, and nobody could stop it.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def is_first_process() -> bool:
    return rank() == 0


def say(text: str) -> None:
    """A line to the console, from the first process only."""
    if is_first_process():
        print(text, file=sys.stderr, flush=True)
