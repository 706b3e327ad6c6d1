"""How long this process waits for a core because other programs have it (Linux)."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

SHORTEST = 1.0  # seconds of a measurement: the system counts in hundredths


@dataclass(frozen=True)
class CoreUse:
    """What a stretch of time was like.

    Args:
        waited: share of it in which a thread was ready and had no core, of the thread that waited most.
        others: cores that all other processes used, on average, of those that this process may use.
        cores: that this process may use.
    """

    waited: float
    others: float
    cores: int


@dataclass(frozen=True)
class _Look:
    """Seconds: of the clock, of all processes on this process's cores, of this process; and waited by each thread."""

    at: float
    everyone: float
    own: float
    waited: dict[str, float]


class CoreWatch:
    """Measures from one call of `take` to the next."""

    def __init__(self) -> None:
        self._last = _look()

    def take(self) -> CoreUse | None:
        """Return what the time since the last result was like; None where it was short or the system does not say."""
        now = _look()
        if now is None or self._last is None or now.at - self._last.at < SHORTEST:
            return None
        last, self._last = self._last, now
        seconds = now.at - last.at
        waited = max(value - last.waited.get(thread, 0.0) for thread, value in now.waited.items())
        others = (now.everyone - last.everyone) - (now.own - last.own)
        return CoreUse(waited / seconds, max(0.0, others / seconds), len(os.sched_getaffinity(0)))


def cores_of_others(seconds: float = 0.1) -> float:
    """Measure how many of this process's cores all others use just now, on average; 0 where the system does not say."""
    before = _look()
    time.sleep(seconds)
    after = _look()
    if before is None or after is None:
        return 0.0
    return max(0.0, (after.everyone - before.everyone - (after.own - before.own)) / (after.at - before.at))


def _look() -> _Look | None:
    try:
        waited = {
            task.name: int((task / "schedstat").read_text().split()[1]) / 1e9
            for task in Path("/proc/self/task").iterdir()
        }
        everyone = ticks(Path("/proc/stat").read_text(), os.sched_getaffinity(0))
    except (OSError, ValueError, IndexError):  # another system, or a thread that has just ended
        return None
    return _Look(time.monotonic(), everyone / os.sysconf("SC_CLK_TCK"), time.process_time(), waited)


def ticks(stat: str, cores: Collection[int]) -> int:
    """Add up for how long some cores were in use, in the system's units, from the text of /proc/stat."""
    names, lines = {f"cpu{core}" for core in cores}, [line.split() for line in stat.splitlines()]
    in_use = (1, 2, 3, 6, 7)  # user, nice, system, irq, softirq
    return sum(int(words[column]) for words in lines if words[0] in names for column in in_use)
