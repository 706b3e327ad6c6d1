"""Time that a process computes, without the time it waits for others."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Adds up the spans between `start` and `stop`, on the device's own clock; only reading it waits for a GPU."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._began = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self, device: torch.device) -> None:
        self._began = time.perf_counter()
        if device.type == "cuda":
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            self._events.append(pair)

    def stop(self, device: torch.device) -> None:
        if device.type == "cuda":
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._began

    def take(self) -> float:
        """Seconds since the last call."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds
