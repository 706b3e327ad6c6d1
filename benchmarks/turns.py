"""Variants measured in turn: each in a process of its own that stays alive, one computing at a time.

A machine's speed drifts, and other programs come and go: run one after the other, the variant that had the quiet hour
wins. Here each round lets every variant do one call before the next round begins (A B C A B C), so what disturbs one
disturbs all. Ratios are taken within a round, and their median and spread over the rounds are what is reported.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from xlm_train.runtime.device import SPINS, cpu_flags


@dataclass(frozen=True)
class Variant:
    """One way of doing a thing.

    build: "module:function"; called once with `arguments` in the variant's process, it returns the call to time.
    takes_turns: build is given the `Turns` before its arguments instead, calls `next` at each turn's start by itself and
    does not return before the process ends.
    imports: modules loaded before the memory is first looked at. environment: set before the process starts.
    warm_up: calls before the first that counts.
    """

    name: str
    build: str
    arguments: dict[str, Any] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    warm_up: int = 1
    takes_turns: bool = False


@dataclass
class Measured:
    """What one variant took.

    seconds, cpu_seconds (of all threads, system calls included), faults (minor page faults), returned: of each call.
    peak: bytes resident at most, above what was resident after imports.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    returned: list[Any] = field(default_factory=list)
    peak: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def times_slower_than(self, other: Measured, cpu: bool = False) -> tuple[float, float, float]:
        """Median, lowest and highest ratio of this variant's seconds to the other's in the same round.

        cpu: of CPU seconds instead, which other programs on the machine disturb little.
        """
        mine, its = (self.cpu_seconds, other.cpu_seconds) if cpu else (self.seconds, other.seconds)
        ratios = [a / b for a, b in zip(mine, its, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def in_turn(variants: Sequence[Variant], rounds: int, threads: int = 2) -> dict[str, Measured]:
    """Measure all variants over `rounds` rounds, with `threads` threads a process.

    Every second round runs in the opposite order, so that none always follows the same one.
    """
    results = {variant.name: Measured() for variant in variants}
    workers = {}
    try:
        for variant in variants:
            workers[variant.name] = _Worker(variant, threads)
            for _ in range(variant.warm_up):
                workers[variant.name].call()
        for number in range(rounds):
            for variant in variants if number % 2 == 0 else variants[::-1]:
                measured = results[variant.name]
                for values, value in zip(
                    (measured.seconds, measured.cpu_seconds, measured.faults, measured.returned),
                    workers[variant.name].call(),
                    strict=True,
                ):
                    values.append(value)
        for variant in variants:
            results[variant.name].peak = workers[variant.name].peak()
    finally:
        for worker in workers.values():
            worker.stop()
    return results


class _Worker:
    """A process that builds a variant and calls it when asked."""

    def __init__(self, variant: Variant, threads: int) -> None:
        self.name = variant.name
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, variant, threads), daemon=True)
        # threads wait as xlm-train lets them, in all variants alike: what is compared is not how they bear company
        environment = {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": SPINS, **variant.environment}
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)  # OpenMP and the allocator read it before any Python runs
        try:
            self.process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        theirs.close()
        self._receive()

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            sys.exit(f"{self.name}: its process ended with status {self.process.exitcode}")

    def call(self) -> tuple[float, float, int, Any]:
        self.pipe.send("call")
        return self._receive()  # type: ignore[no-any-return]

    def peak(self) -> int:
        self.pipe.send("peak")
        return int(self._receive())

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


class Turns:
    """A variant's side of the turns: `next` ends one and waits for the next."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.resident = _status("VmRSS")
        self.began: tuple[int, float, float] | None = None  # faults, CPU seconds, seconds at the start of a turn

    def next(self, result: Any = None) -> None:
        """Send what this turn took and `result`, answer what is asked between turns, begin the next turn.

        The process ends here when no more turns are wanted.
        """
        if self.began is None:
            self.pipe.send("ready")
        else:
            seconds, cpu_seconds = time.perf_counter() - self.began[2], time.process_time() - self.began[1]
            self.pipe.send((seconds, cpu_seconds, _faults() - self.began[0], result))
        while True:
            try:
                asked = self.pipe.recv()
            except EOFError:
                os._exit(0)  # from deep inside a run as well, which shall not save anything
            if asked == "call":
                break
            self.pipe.send(_status("VmHWM") - self.resident)
        self.began = _faults(), time.process_time(), time.perf_counter()


def _serve(pipe: Connection, variant: Variant, threads: int) -> None:
    module, _, function = variant.build.partition(":")
    for name in ("torch", module, *variant.imports):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(threads)
    turns = Turns(pipe)
    build = getattr(importlib.import_module(module), function)
    if variant.takes_turns:
        build(turns, **variant.arguments)
        return
    work: Callable[[], Any] = build(**variant.arguments)
    result = None
    while True:
        turns.next(result)
        result = work()


def _faults() -> int:
    """Minor page faults of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _status(name: str) -> int:
    """A memory figure of this process in bytes (Linux). Unlike ru_maxrss it leaves out what came before exec."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load": round(os.getloadavg()[0], 2),
        "instructions": sorted(cpu_flags() & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16"}),
        "torch": torch.__version__,
        "libraries": re.findall(r"(?:Math Kernel Library Version|MKL-DNN v|OpenBLAS) ?[\d.]+", torch.__config__.show()),
        "python": platform.python_version(),
    }


def spread(ratio: tuple[float, float, float]) -> str:
    """`1.52x (1.48-1.55)`: median, lowest, highest."""
    return f"{ratio[0]:.2f}x ({ratio[1]:.2f}-{ratio[2]:.2f})"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table with even columns."""
    cells = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def report(title: str, text: str, results: dict[str, Any], json_path: Path | None) -> dict[str, Any]:
    """Print a benchmark's table with the machine, write its figures where asked; returns them with the machine."""
    results = {"machine": machine(), **results}
    print(
        f"\n{title}\n{', '.join(f'{name} {value}' for name, value in results['machine'].items())}\n\n{text}", flush=True
    )
    if json_path is not None:
        json_path.write_text(json.dumps(results, indent=2) + "\n")
    return results
