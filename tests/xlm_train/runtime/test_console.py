"""Progress lines: at least every few seconds, plain where there is no terminal."""

from __future__ import annotations

import io
import re
import time

import pytest

from xlm_train.runtime import console
from xlm_train.runtime.console import Progress, counted, waiting
from xlm_train.training.loggers import progress_line

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
    assert first.split() == ["tokenise", "25%", "0:15", "left", "7.5", "MB", "1.5", "MB/s", "1,000", "lines/s"]
    assert second.split() == ["tokenise", "50%", "0:10", "left", "15.0", "MB", "1.5", "MB/s", "1,000", "lines/s"]
    assert last.split() == ["tokenise", "15.0", "MB", "1.5", "MB/s", "1,000", "lines/s", "in", "0:10"]
    assert "\r" not in out.getvalue()


def test_work_found_done_does_not_count_as_speed(clock: list[float]) -> None:
    out = io.StringIO()
    progress = Progress("encode", 10_000_000, UNITS, out)
    progress.skip(5_000_000, 5.0)
    clock[0] += 5
    progress.add(1_000_000, 1.0, 500)
    assert out.getvalue().split()[:10] == [
        "encode",
        "60%",
        "0:20",
        "left",
        "1.0",
        "MB",
        "0.2",
        "MB/s",
        "100",
        "lines/s",
    ]
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


REPORT = {
    "progress/steps": 100_000, "progress/seconds_left": 5025.0, "progress/tokens": 1.23e9, "optim/lr": 1e-4,
    "speed/tokens_per_second": 5432.1, "train/loss": 3.21456, "train/loss_de": 3.30123, "train/loss_en": 3.12789,
}  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (28, "step 1,200/100,000"),
        (79, "step 1,200/100,000  1:23:45 left  loss 3.215  5,432 tokens/s  1.23 G tokens"),
        (109, "step 1,200/100,000  1:23:45 left  loss 3.215  5,432 tokens/s  (de 3.301, en 3.128)  1.23 G tokens"),
        (None, "step 1,200/100,000  1:23:45 left  loss 3.215  5,432 tokens/s  (de 3.301, en 3.128)  1.23 G tokens  lr 1.00e-04"),
    ],
)  # fmt: skip
def test_a_narrow_terminal_shows_what_matters_most(columns: int | None, shown: str) -> None:
    assert progress_line(1200, REPORT, columns) == shown


def test_progress_fits_the_terminal(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "columns_of", lambda stream: 45)
    out = Terminal()
    progress = Progress("tokenise", 10_000_000, UNITS, out)
    clock[0] += 1
    progress.add(2_500_000, 2.5, 1000)
    assert out.getvalue() == "\r\x1b[Ktokenise     25%  0:03 left         2.5 MB"


def test_a_long_call_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "EVERY_PLAIN", 0.02)
    out = io.StringIO()
    with waiting("learn", "60,000 codes", out):
        while out.getvalue().count("\n") < 2:
            time.sleep(0.01)
    *heard, last = out.getvalue().splitlines()
    assert all(re.fullmatch(r"learn       60,000 codes: \d+:\d\d so far", line) for line in heard)
    assert re.fullmatch(r"learn       60,000 codes: took \d+:\d\d", last)


def test_counts_have_their_plural() -> None:
    assert [counted(n, noun) for noun in ("text", "process", "batch") for n in (1, 2)] == [
        *("1 text", "2 texts", "1 process", "2 processes", "1 batch", "2 batches")
    ]
