"""Settings of processor and memory (allocator, OpenMP), choice of device, peak memory, reads by the host, timing.

Imports torch only inside functions: the OpenMP setting must be made before torch is loaded.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.runtime.console import log
from xlm_train.runtime.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
NEVER = 2**31 - 1  # a trim threshold, in bytes, that is not reached


def use_cpu(threads: int | None) -> None:
    """Set up the CPU for a command that computes: so many threads, or PyTorch's choice; freed memory is kept."""
    disable_malloc_trim()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def disable_malloc_trim() -> bool:
    """Make glibc's allocator keep freed memory instead of returning it to the system.

    A training step frees and allocates the same large buffers again and again; by default each goes back to the system
    and every one of its pages is mapped and zeroed again in the next step. The cost: the peak stays reserved.

    Returns:
        Whether it could be set (glibc on Linux only).
    """
    mallopt = _glibc("mallopt")
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))


def trim_malloc() -> None:
    """Return to the system, once, what is freed but kept by glibc's allocator; elsewhere nothing is done."""
    if (malloc_trim := _glibc("malloc_trim")) is not None:
        malloc_trim(0)


def _glibc(name: str) -> Any:
    """A function of glibc; None where there is another C library."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name) if sys.platform.startswith("linux") else None
    except (OSError, AttributeError):
        return None


def release_memory() -> None:
    """Free what nothing refers to any more, on the GPU too."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


SPINS = "2000"  # some ten microseconds: a pause is 40 to 140 cycles
SPINS_IN_COMPANY = "200"
COMPANY = 0.5  # cores that others use, from which a machine counts as busy


def limit_openmp_spin(others: float = 0.0) -> None:
    """Let OpenMP's threads spin only briefly at a barrier before they sleep, and more briefly on a busy machine.

    Must be called before torch is imported; what the user has set (OMP_WAIT_POLICY, GOMP_SPINCOUNT) stays. Changes no
    result: as many threads do the same sums.

    By default threads spin for milliseconds: when another program takes one thread's core, all others of the step keep
    theirs busy with waiting, and the system thinks that they have had their share. `python -m benchmarks.busy` measures.

    Args:
        others: cores that other processes use.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    os.environ["GOMP_SPINCOUNT"] = SPINS
    if others > COMPANY:
        os.environ["GOMP_SPINCOUNT"] = SPINS_IN_COMPANY
        log(
            f"other programs use {others:.1f} cores: threads that wait for each other give theirs back sooner"
            f" (GOMP_SPINCOUNT={SPINS_IN_COMPANY}; set it to {SPINS} where this is soon over)"
        )


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What the processor can do, in the words of /proc/cpuinfo, and its vendor; nothing where there is no such file."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return frozenset()
    lines = (line.partition(":") for line in file.read_text().splitlines())
    return frozenset(
        word for key, _, value in lines if key.strip() in ("flags", "Features", "vendor_id") for word in value.split()
    )


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has products of bfloat16; others widen each number first, and are slower than in float32.

    AVX512_BF16 and AMX on x86, BF16 on ARM, where it has not been measured. Not known outside of Linux: taken for no.
    """
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def is_free_to_read(tensor: Tensor) -> bool:
    """Whether reading the tensor's value costs nothing, as it does on a CPU.

    On a GPU the host waits for all work queued so far, and then the GPU for the next work. Everything in a step that
    reads a value asks this first, so that a test can forbid it on a CPU too, and count.
    """
    return tensor.device.type == "cpu"


def resolve_device(device: str) -> torch.device:
    """Turn the name of a device into a device.

    Args:
        device: "auto" (a GPU where there is one), "cpu" or "cuda".

    Raises:
        ConfigError: another name, or a GPU that PyTorch does not see.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={device}: must be auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: this PyTorch sees no GPU; device=cpu works everywhere")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Return what the driver calls a GPU; any other device's type, as "CPU"."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return device.type.upper()


def is_accelerator(accelerator: str, name: str) -> bool:
    """Whether a device of this name is the one of a cluster's file: "A100 SXM4 40 GB" is "NVIDIA A100-SXM4-40GB".

    What counts is the file's first word with a digit, else its first word.
    """
    words = re.findall(r"\w+", accelerator)
    model = next((word for word in words if any(map(str.isdigit, word))), words[0] if words else "")
    return model in re.findall(r"\w+", name)


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory of this process in GB (10^9 bytes): on its GPU where it has one, else resident memory."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: ru_maxrss there begins with the parent's peak
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


class Stopwatch:
    """Adds up the time between `start` and `stop` on the device's own clock; only `take` waits for a GPU."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._began = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self, device: torch.device) -> None:
        """Start measuring."""
        self._began = time.perf_counter()
        if device.type == "cuda":
            import torch

            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            self._events.append(pair)

    def stop(self, device: torch.device) -> None:
        """Stop measuring, on the device of the last `start`."""
        if device.type == "cuda":
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._began

    def take(self) -> float:
        """Return the seconds measured since the last call."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds
