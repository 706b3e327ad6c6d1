"""Whether other programs keep a process from its cores, with a real one that does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import process_environment
from xlm_train.runtime.cores import CoreWatch, ticks

LOOP = "import os\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\nwhile True: pass"
WATCHER = """
import os, sys, time
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from xlm_train.runtime.cores import CoreWatch
watch = CoreWatch()
if sys.argv[1] == "computes":
    end = time.monotonic() + 1.2
    while time.monotonic() < end: pass
else:
    time.sleep(1.2)
use = watch.take()
print(use.waited, use.others, use.cores)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not tell")


TRIES = 5  # other programs of the machine may be on the core too, and before ours


def measured(what: str) -> tuple[float, float, int]:
    """What a process sees that shares the core of a busy loop: the share that it waits and that others compute, cores."""
    with subprocess.Popen([sys.executable, "-c", LOOP]) as loop:
        try:
            words = [sys.executable, "-c", WATCHER, what]
            result = subprocess.run(words, capture_output=True, text=True, check=True, env=process_environment())
        finally:
            loop.kill()
    waited, others, cores = result.stdout.split()
    return float(waited), float(others), int(cores)


def test_a_process_that_computes_beside_a_busy_loop_waits() -> None:
    tries = (measured("computes") for _ in range(TRIES))
    assert any(
        0.3 < waited <= 1.0 and others > 0.3 and cores == 1 for waited, others, cores in tries
    )  # half of the time


def test_a_process_that_sleeps_beside_a_busy_loop_does_not() -> None:
    assert any(waited < 0.15 and others > 0.3 for waited, others, _ in (measured("sleeps") for _ in range(TRIES)))


def test_a_moment_is_too_short_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 5.0)
    assert CoreWatch().take() is None


def test_programs_on_cores_that_a_process_may_not_use_do_not_count() -> None:
    """In a container, /proc/stat has all cores of the host."""
    stat = "cpu  30 3 3 90 9 3 3 0 0 0\ncpu0 10 1 1 30 3 1 1 0 0 0\ncpu1 20 2 2 60 6 2 2 0 0 0\nintr 1 2\n"
    assert ticks(stat, {0}) == 14
    assert ticks(stat, {0, 1}) == 42
