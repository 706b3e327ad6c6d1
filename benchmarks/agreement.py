"""What it costs that the processes agree on when to leave: one all-reduce of one number over gloo, every k steps.

    python -m benchmarks.agreement

Real processes on this machine. Between machines a network's latency is added, some tens of microseconds a hop.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.turns import report, table
from xlm_train.runtime.control_group import ControlGroup, RankInfo

CALLS = 300


def _process(rank: int, world: int, store: str, results: SimpleQueue[list[float]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    group = ControlGroup(world)
    group.handshake(RankInfo.of_this_process(rank, torch.device("cpu"), ""), start_timeout=60, timeout=60)
    seconds = []
    for _ in range(CALLS):
        dist.barrier()  # all begin together: waiting for a slower process is not the exchange's cost
        start = time.perf_counter()
        group.highest(0)
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        results.put(seconds)
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    medians = {}
    for world in (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            results: SimpleQueue[list[float]] = mp.get_context("spawn").SimpleQueue()
            mp.spawn(_process, (world, f"{folder}/store", results), nprocs=world)
            medians[world] = statistics.median(results.get())
    text = table(
        ["processes", "one exchange, microseconds (median)", "a step, at one in 10"],
        [[world, f"{1e6 * s:,.0f}", f"{1e5 * s:,.1f}"] for world, s in medians.items()],
    )
    return report("Consensus on leaving", text, {"seconds": medians}, options.json)


if __name__ == "__main__":
    main()
