"""Signals that ask a run to leave."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import process_environment
from xlm_train.runtime.processes import local_rank

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


def test_a_run_outlives_the_reader_of_its_output() -> None:
    """As `xlm-train 2>&1 | tee LOG`, where Ctrl-C ends tee too."""
    script = """
import os, signal
from xlm_train.runtime.console import log
from xlm_train.runtime.processes import StopFlag
from xlm_train.runtime.streams import settle_streams
settle_streams()
flag = StopFlag()
flag.install()
os.kill(os.getpid(), signal.SIGINT)
log("a line that nobody reads")
os._exit(7 if flag.is_set else 1)
"""
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([sys.executable, "-c", script], stderr=writer, env=process_environment())
    os.close(writer)
    assert result.returncode == 7


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, 0), ({"SLURM_LOCALID": "3"}, 3), ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, 1)],
    ids=["alone", "srun", "torchrun below srun"],
)
def test_the_rank_on_a_node(environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert local_rank() == expected
