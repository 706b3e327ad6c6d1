"""Progress lines: at least every few seconds, plain where there is no terminal."""

from __future__ import annotations

import io
import time

import pytest

from xlm_train.runtime import console
from xlm_train.runtime.console import Progress, waiting

UNITS = {"MB": 1, "lines": 0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_tell_amount_rate_and_time_left(clock: list[float]) -> None:
    out = io.StringIO()
    progress = Progress("tokenise", 10_000_000, UNITS, out)
    for _ in range(10):
        clock[0] += 1
        progress.add(500_000, 1.5, 1000)
    progress.end()
    first, second, last = out.getvalue().splitlines()
    assert first.split() == ["tokenise", "25%", "7.5", "MB", "1.5", "MB/s", "1,000", "lines/s", "0:15", "left"]
    assert second.split() == ["tokenise", "50%", "15.0", "MB", "1.5", "MB/s", "1,000", "lines/s", "0:10", "left"]
    assert last.split() == ["tokenise", "15.0", "MB", "1.5", "MB/s", "1,000", "lines/s", "in", "0:10"]
    assert "\r" not in out.getvalue()


def test_work_found_done_does_not_count_as_speed(clock: list[float]) -> None:
    out = io.StringIO()
    progress = Progress("encode", 10_000_000, UNITS, out)
    progress.skip(5_000_000, 5.0)
    clock[0] += 5
    progress.add(1_000_000, 1.0, 500)
    assert out.getvalue().split()[:9] == ["encode", "60%", "1.0", "MB", "0.2", "MB/s", "100", "lines/s", "0:20"]
    assert "(5.0 MB were done before)" in out.getvalue()


def test_a_terminal_is_redrawn_in_place(clock: list[float]) -> None:
    out = Terminal()
    progress = Progress("count", None, UNITS, out)
    for _ in range(3):
        clock[0] += 0.6
        progress.add(1000, 0.001, 10)
    progress.end()
    assert out.getvalue().count("\r") == 4
    assert out.getvalue().count("\n") == 1


def test_work_that_cannot_tell_its_total_and_work_not_shown(clock: list[float]) -> None:
    out = Terminal()
    for shown in (True, False):
        progress = Progress("text.en", None, {"tokens": 0}, out, shown=shown)
        clock[0] += 2
        progress.add(4000, 4000)
        progress.end()
    line = "\r\x1b[Ktext.en          4,000 tokens      2,000 tokens/s"
    assert out.getvalue() == f"{line}{line}  in 0:02\n"


def test_a_long_call_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "EVERY_PLAIN", 0.02)
    out = io.StringIO()
    with waiting("learn", "60,000 codes", out):
        time.sleep(0.1)
    lines = out.getvalue().splitlines()
    assert len(lines) > 2
    assert lines[0] == "learn       60,000 codes: 0:00 so far"
    assert lines[-1] == "learn       60,000 codes: took 0:00"
