"""What the agreements of a run cost a process, by the number of processes: real ones, idle otherwise, over loopback.

    python -m benchmarks.processes 8 16 32 64

CPU time of rank 0, not the time that passes: on a few cores that is the sum over all processes. Steps have two slots a process,
in two languages: `order` is which windows the process's own are (of 1,024 processes measured as well, as it needs no other),
`losses` a report of ten steps, from the first slot to the mean of each language. The fit is the straight line a + b W through
the figures, and what it says of 1,024 processes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from xlm_train.data.order import Order, Stream, slots_of_rank
from xlm_train.runtime.control_group import ControlGroup, RankInfo
from xlm_train.training.loss_buffer import LossBuffer, mean_by_stream

PATIENCE = 300.0  # seconds
REPEATS = 20
STEPS = 10  # of a report


def process(rank: int, world: int, folder: Path) -> None:
    """One process: meet, shake hands, agree; rank 0 writes what it took."""
    torch.set_num_threads(1)
    begun = time.process_time()
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(folder / "store"), world),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=PATIENCE),
    )
    group = ControlGroup(world)
    group.handshake(RankInfo.of_this_process(rank, torch.device("cpu"), "0" * 64), PATIENCE, PATIENCE)
    found = {"start": time.process_time() - begun}

    def measure(name: str, agree: Callable[[], object]) -> None:
        agree()
        begun = time.process_time()
        for _ in range(REPEATS):
            agree()
        found[name] = (time.process_time() - begun) / REPEATS

    measure("highest", lambda: group.highest(rank))
    measure("extremes", lambda: group.extremes(rank))
    measure("gather", lambda: group.gather(rank))
    measure("losses", lambda: report(rank))
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_")) * 1024
    if rank == 0:
        (folder / "found").write_text(json.dumps({**found, "private": private}))
    dist.barrier()


def report(rank: int) -> None:
    """What the losses of a report cost a process."""
    buffer, loss, norm = LossBuffer(), torch.tensor(5.0), torch.tensor(1.0)
    for step in range(STEPS):
        buffer.begin(step)
        for slot in (2 * rank, 2 * rank + 1):
            buffer.add(slot, slot % 2, loss)
        buffer.close(norm)
    buffer.reduce(shared_streams=2)
    mean_by_stream(buffer.take())


def order_seconds(world: int) -> float:
    """What a process takes to list its own slots of a step, among so many processes."""
    order = Order([Stream(name, 10**8, 16, 4096.0, Fraction(1)) for name in ("de", "en")], 2 * world, seed=0)
    begun = time.process_time()
    for step in range(REPEATS):
        order.step(step, slots_of_rank(2 * world, 0, world))
    return (time.process_time() - begun) / REPEATS


def measured(world: int) -> dict[str, float]:
    """Seconds of CPU and bytes of rank 0, among so many processes forked from this one."""
    with tempfile.TemporaryDirectory() as folder:
        members = []
        for rank in range(world):
            if (pid := os.fork()) == 0:
                status = 1
                try:
                    process(rank, world, Path(folder))
                    status = 0
                finally:
                    os._exit(status)
            members.append(pid)
        statuses = [os.waitpid(pid, 0)[1] for pid in members]
        assert statuses == [0] * world, statuses
        return {**json.loads((Path(folder) / "found").read_text()), "order": order_seconds(world)}


def main() -> None:
    worlds = [int(word) for word in sys.argv[1:]] or [8, 16, 32, 64]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rows = [measured(world) for world in worlds]
    units = dict.fromkeys(("start", "order", "highest", "extremes", "gather", "losses"), ("ms", 1000.0)) | {
        "private": ("MB", 1e-6)
    }
    print("| processes | " + " | ".join(f"{name}, {unit}" for name, (unit, _) in units.items()) + " |")
    print("|---" * (len(units) + 1) + "|")
    for world, row in zip(worlds, rows, strict=True):
        print(f"| {world} | " + " | ".join(f"{row[name] * scale:.2f}" for name, (_, scale) in units.items()) + " |")
    fits = {name: np.polyfit(worlds, [row[name] for row in rows], 1) for name in units}
    fits["order"] = np.array([0.0, order_seconds(1024)])
    line = (f"{fits[name][1] * scale:.2f} + {fits[name][0] * scale:.4f} W" for name, (_, scale) in units.items())
    print("| W | " + " | ".join(line) + " |")
    print(
        "| 1,024, by the fit | "
        + " | ".join(f"{np.polyval(fits[n], 1024) * s:.1f}" for n, (_, s) in units.items())
        + " |"
    )


if __name__ == "__main__":
    main()
