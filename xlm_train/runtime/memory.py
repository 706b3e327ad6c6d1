"""How much memory a process may still take, and errors that say that there was none left."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CGROUPS = Path("/sys/fs/cgroup")
# What the limit, the use and the pages of files (which the system can take back) are called in both versions.
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Args:
        free: what can be had now.
        most: what could be had if everything else gave its memory back.
    """

    free: float
    most: float


def memory_of(device: torch.device) -> Memory:
    """Return the memory of a GPU, or of this machine within the limits of this process's control groups (Linux).

    Infinite where the system does not say.
    """
    if device.type == "cuda":
        import torch

        return Memory(*torch.cuda.mem_get_info(device))
    figures = _numbers(Path("/proc/meminfo"), 1024)
    free = figures.get("MemAvailable:", math.inf) + figures.get("SwapFree:", 0)
    most = figures.get("MemTotal:", math.inf) + figures.get("SwapTotal:", 0)
    for limit, used in _control_groups():
        free, most = min(free, limit - used), min(most, limit)
    return Memory(free, most)


def _control_groups(processes: Path = Path("/proc/self/cgroup")) -> Iterator[tuple[float, float]]:
    """Yield limit and use of this process's control group and of all above it."""
    try:
        lines = processes.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = CGROUPS / controllers
        limit, use, files = V1 if controllers else V2
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            try:
                text = (group / limit).read_text().strip()
                in_use = int((group / use).read_text()) - _numbers(group / "memory.stat", 1).get(files, 0)
                yield (math.inf if text == "max" else int(text)), in_use
            except OSError:  # the root has no limit; a container may not see the groups above its own
                pass
            if group == root:
                break


def _numbers(file: Path, unit: int) -> dict[str, int]:
    """Lines `name number ...` of a file of the system, in bytes; none where it cannot be read."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) * unit for line in lines if len(line) > 1 and line[1].isdigit()}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had; PyTorch's of a CPU is told from others by its text alone."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("DefaultCPUAllocator" in str(error) or "can't allocate memory" in str(error))
    )


def kills() -> int:
    """Return how many processes the system has killed since its start because memory was exhausted (Linux)."""
    return _numbers(Path("/proc/vmstat"), 1).get("oom_kill", 0)
