"""Signals that ask a run to leave."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import process_environment

INTERRUPTED = """
import os, signal
from xlm_train.runtime.processes import StopFlag
flag = StopFlag()
flag.install()
os.kill(os.getpid(), signal.SIGINT)
print(flag.is_set)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("aborted")
"""


@pytest.mark.parametrize(("rank", "answers"), [("0", 1), ("1", 0)])
def test_ctrl_c_is_answered_at_once_by_the_first_process(rank: str, answers: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, env=process_environment(RANK=rank)
    )
    assert result.stdout.split() == ["True", "aborted"]
    assert result.stderr.count("leaving after this step, with a checkpoint; Ctrl-C again aborts at once") == answers
