"""Each GPU by itself, and each link between two: matrix products, all-reduce, and every pair in turn. Names stragglers.

One process a device (NCCL), or, without GPUs, two CPU processes (gloo) in the place of devices.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

STRAGGLER = 0.10  # slower than the median by more than this share
REPEATS = 10


def stragglers(speeds: Mapping[str, float], share: float = STRAGGLER) -> list[str]:
    """Names whose speed is below the median of all by more than `share` of it."""
    if not speeds:
        return []
    least = (1 - share) * statistics.median(speeds.values())
    return [name for name, speed in speeds.items() if speed < least]


def measure_devices(world: int, kind: str) -> dict[str, Any]:
    """Speeds of `world` devices of a kind ("cuda", "cpu") and of the links between them.

    Returns {"matmul_tflops": {device: x}, "allreduce_gb_per_s": x or None, "pair_gb_per_s": {"a-b": x}, "stragglers":
    names, "first": roofs of the first device}. The speed of an all-reduce is the bus's, 2 (n-1)/n bytes moved for each
    byte reduced; of a pair, of one direction.
    """
    first = torch.device(kind, 0) if kind == "cuda" else torch.device("cpu")
    found: dict[str, Any]
    if world == 1:
        found = {"matmul_tflops": {f"{kind}:0": matmul_tflops(first)}, "allreduce_gb_per_s": None, "pair_gb_per_s": {}}
    else:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_process, (world, kind, folder), nprocs=world)
            found = dict(torch.load(Path(folder) / "result", weights_only=True))
    found["stragglers"] = [
        *stragglers(found["matmul_tflops"]),
        *(f"link {pair}" for pair in stragglers(found["pair_gb_per_s"])),
    ]
    found["first"] = roofs(first)
    return found


def roofs(device: torch.device) -> dict[str, float]:
    """What the device can do at most: matrix products by precision, copies within it and from the host."""
    gpu = device.type == "cuda"
    dtypes = (torch.float16, torch.bfloat16, torch.float32) if gpu else (torch.float32,)
    found = {f"{str(dtype)[6:]} matmul, TFLOP/s": matmul_tflops(device, dtype) for dtype in dtypes}
    source = torch.ones(2**30 if gpu else 2**22, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() / 1e9  # read and written
    found["copy on the device, GB/s"] = moved / _seconds(lambda: target.copy_(source), device)
    if gpu:
        host = torch.ones(2**28, dtype=torch.uint8).pin_memory()
        part = target[: 2**28]
        found["copy from pinned host memory, GB/s"] = 2**28 / 1e9 / _seconds(lambda: part.copy_(host), device)
        found["copy to pinned host memory, GB/s"] = 2**28 / 1e9 / _seconds(lambda: host.copy_(part), device)
    return found


def _process(rank: int, world: int, kind: str, folder: str) -> None:
    if kind == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world,
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    waiting = dist.new_group(backend="gloo")  # on the CPU: a device that waits must not compute

    tflops = 0.0
    for turn in range(world):  # one at a time: each by itself
        if turn == rank:
            tflops = matmul_tflops(device)
        dist.barrier(waiting)
    all_tflops: list[Any] = [None] * world
    dist.all_gather_object(all_tflops, tflops, waiting)

    elements = 2**26 if kind == "cuda" else 2**20
    data = torch.ones(elements, device=device)
    gigabytes = data.numel() * data.element_size() / 1e9
    everyone = None
    if world > 1:
        everyone = 2 * (world - 1) / world * gigabytes / _seconds(lambda: dist.all_reduce(data), device)
    pairs: dict[str, float] = {}
    for first in range(world):
        for second in range(first + 1, world):
            if rank in (first, second):
                seconds = _seconds(partial(_there_and_back, data, rank, first, second), device)
                pairs[f"{first}-{second}"] = 2 * gigabytes / seconds
            dist.barrier(waiting)
    found: list[Any] = [None] * world
    dist.all_gather_object(found, pairs, waiting)
    if rank == 0:
        result = {
            "matmul_tflops": {f"{kind}:{number}": value for number, value in enumerate(all_tflops)},
            "allreduce_gb_per_s": everyone,
            "pair_gb_per_s": {name: speed for each in found for name, speed in each.items()},
        }
        torch.save(result, Path(folder) / "result")
    dist.destroy_process_group()


def matmul_tflops(device: torch.device, dtype: torch.dtype | None = None) -> float:
    """TFLOP/s of one large matrix product of random numbers: without `dtype` float16 on a GPU, float32 on a CPU."""
    size = 8192 if device.type == "cuda" else 512
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    return float(2 * size**3 / _seconds(lambda: torch.mm(a, b, out=out), device) / 1e12)


def _there_and_back(data: Tensor, rank: int, first: int, second: int) -> None:
    if rank == first:
        dist.send(data, second)
        dist.recv(data, second)
    else:
        dist.recv(data, first)
        dist.send(data, first)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Median seconds of a call, the device waited for; the first calls (connections, clocks) are not counted."""
    samples = []
    for number in range(REPEATS + 3):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        if number >= 3:
            samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
