"""Step time against bandwidth: data-parallel training between two hosts with a slow link, measured and predicted.

    python -m benchmarks.network --json network.json          (as root on Linux: it makes two network namespaces)

Two namespaces of this machine, joined by a pair of virtual interfaces, are the two hosts; a token bucket (tc tbf) limits
what each sends. In each a process trains the same small model with DistributedDataParallel over gloo, with and without
compressed gradients and with several slots a step. The model of xlm_train/plan/network_model.py gets what an unlimited link
shows (what a byte costs the software, what packing it costs) and the time of the same step without any reduction, and
predicts the step at every bandwidth. Over limited links the median prediction must be within 15 %, each within 30 %.

Only the bandwidth is limited; latency is the machine's own. Both processes share its cores with whatever else runs:
steps with and without reduction are taken in turn, and medians of them compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BANDWIDTHS = (400, 150, 60)  # Mbit/s
HOOKS = (None, "fp16", "powersgd")
SLOTS = (1, 4)
MEDIAN_BOUND, BOUND = 0.15, 0.30  # how far predictions over a limited link may be off: median, any
STEPS = 6  # measured in each setting; the median counts
DEVICE = "veth0"
ADDRESSES = ("10.213.7.1", "10.213.7.2")
PAYLOAD = 1448 / 1514  # of an Ethernet frame of 1,500 bytes with TCP's timestamps; tbf counts the whole frame
POWERSGD_RANK = 2
# PowerSGD's second and third reductions of a bucket are begun from callbacks. Over gloo these run when the network is
# done, in another order in each process as soon as two buckets are under way, and the processes then mistake one for
# the other ("Received data size doesn't match expected size"). One bucket leaves no order to mistake.
ONE_BUCKET_MB = 1000
SHAPE = {"n_words": 1000, "dim": 256, "n_layers": 4, "n_heads": 4, "ffn_dim": 1024, "max_positions": 64, "dropout": 0.0}
STREAMS, WINDOW = 2, 64


# --- the two hosts -----------------------------------------------------------------------------------------------


def sh(*words: str) -> None:
    """Run a command; stops the benchmark with its message where it fails."""
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"network: {' '.join(words)}: {result.stderr.strip()}")


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Names of two namespaces, joined by interfaces of one name; removed at the end."""
    names = (f"slow{os.getpid()}a", f"slow{os.getpid()}b")
    try:
        for name in names:
            sh("ip", "netns", "add", name)
        sh(
            "ip",
            "link",
            "add",
            "dev",
            DEVICE,
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            DEVICE,
            "netns",
            names[1],
        )
        for name, address in zip(names, ADDRESSES, strict=True):
            sh("ip", "-n", name, "addr", "add", f"{address}/24", "dev", DEVICE)
            for device in ("lo", DEVICE):
                sh("ip", "-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def limit(hosts: tuple[str, str], megabits: int | None) -> None:
    """Limit what each host sends; None: as fast as the machine can."""
    for host in hosts:
        subprocess.run(["tc", "-n", host, "qdisc", "del", "dev", DEVICE, "root"], capture_output=True, check=False)
        if megabits is not None:
            burst = f"{max(32, megabits // 8)}kb"  # a millisecond's worth
            sh("tc", "-n", host, "qdisc", "add", "dev", DEVICE, "root", "tbf", "rate", f"{megabits}mbit", "burst", burst, "latency", "100ms")  # fmt: skip  # noqa: E501


# --- one of the processes ----------------------------------------------------------------------------------------


def work(rank: int) -> None:
    """Train as told: a setting as JSON in each line of standard input, seconds of its steps as JSON in each line of
    output."""
    import torch
    from torch import distributed
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
    from torch.nn.parallel import DistributedDataParallel

    from xlm_train.model.transformer import XLM, ModelShape
    from xlm_train.runtime.device import disable_malloc_trim

    disable_malloc_trim()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://{ADDRESSES[0]}:29577", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = XLM(ModelShape(**SHAPE))

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            return self.network.next_token_loss(windows, 0)

    windows = torch.randint(14, SHAPE["n_words"], (STREAMS, WINDOW))
    models: dict[str | None, DistributedDataParallel] = {}
    for hook in HOOKS:
        cap = ONE_BUCKET_MB if hook == "powersgd" else None
        model = DistributedDataParallel(Loss(), gradient_as_bucket_view=True, bucket_cap_mb=cap)
        if hook == "fp16":
            model.register_comm_hook(None, fp16_compress_hook)
        elif hook == "powersgd":
            state = PowerSGDState(None, matrix_approximation_rank=POWERSGD_RANK, start_powerSGD_iter=2)
            model.register_comm_hook(state, powerSGD_hook)
        models[hook] = model

    def step(model: DistributedDataParallel, slots: int, reduce: bool) -> tuple[float, float]:
        """Seconds until the last backward pass, and from there."""
        start = time.perf_counter()
        for slot in range(slots):
            silent = not reduce or slot < slots - 1
            with model.no_sync() if silent else contextlib.nullcontext():
                loss = model(windows)
                last = time.perf_counter()
                loss.backward()
        end = time.perf_counter()
        model.zero_grad(set_to_none=False)
        return last - start, end - last

    def all_reduce(tensor: torch.Tensor) -> float:
        start = time.perf_counter()
        distributed.all_reduce(tensor)
        return time.perf_counter() - start

    for model in models.values():
        for _ in range(3):  # lays out the buckets, and gets PowerSGD past its first steps
            step(model, 1, True)
    print(json.dumps("ready"), flush=True)
    large, small = torch.zeros(2**20), torch.zeros(1)
    for line in sys.stdin:
        order = json.loads(line)
        distributed.barrier()
        if order["what"] == "all_reduce":
            answer: Any = [[all_reduce(large), all_reduce(small)] for _ in range(STEPS)]
        else:
            model, slots = models[order["hook"]], order["slots"]
            step(model, slots, True)  # the first after a change finds the link's bucket full
            answer = [[*step(model, slots, False), sum(step(model, slots, True))] for _ in range(STEPS)]
        print(json.dumps(answer), flush=True)
    distributed.destroy_process_group()


class Workers:
    """The two processes, each in its host."""

    def __init__(self, hosts: tuple[str, str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": DEVICE}
        self.processes = [
            subprocess.Popen(
                ["ip", "netns", "exec", host, sys.executable, "-m", "benchmarks.network", "--rank", str(rank)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            )
            for rank, host in enumerate(hosts)
        ]  # fmt: skip
        self._answers()  # when both are ready

    def _answers(self) -> list[Any]:
        lines = []
        for process in self.processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                sys.exit("network: a process ended before its time")
            lines.append(json.loads(line))
        return lines

    def ask(self, **order: Any) -> list[float]:
        """Medians over steps of the figures measured, of the slower process."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        medians = [[statistics.median(column) for column in zip(*answer, strict=True)] for answer in self._answers()]
        return max(medians, key=sum)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()  # whatever went wrong, nothing is left in the namespaces
            process.wait()


# --- measuring and predicting ------------------------------------------------------------------------------------


def compare(hosts: tuple[str, str], workers: Workers, bandwidths: Sequence[int]) -> dict[str, Any]:
    """Measure every setting; predict it from what an unlimited link shows."""
    from xlm_train.model.transformer import ModelShape
    from xlm_train.plan.memory import parameter_shapes
    from xlm_train.plan.network_model import Link, StepTime, make_buckets, step_time
    from xlm_train.plan.step import gradients_of

    shape = ModelShape(**SHAPE)
    gradients = gradients_of(parameter_shapes(shape), shape.n_layers)
    buckets = make_buckets(gradients)
    one_bucket = make_buckets(gradients, first=ONE_BUCKET_MB * 2**20, limit=ONE_BUCKET_MB * 2**20)
    gradient_bytes = sum(bucket.bytes for bucket in buckets)

    limit(hosts, None)
    large, latency = workers.ask(what="all_reduce")
    unlimited = 4 * 2**20 / (large - latency)  # with two processes each sends every byte once

    def measure(hook: str | None, slots: int) -> tuple[float, float, float]:
        """Seconds without reduction until the last backward pass, of that pass, and of a whole step with reduction."""
        before, backward, whole = workers.ask(what="steps", hook=hook, slots=slots)
        return before, backward, whole

    def predict(rate: float, hook: str | None, before: float, backward: float, compress: float) -> StepTime:
        link = Link(devices=1, nodes=2, inside=1.0, between=rate, latency=latency / 2)
        laid_out = one_bucket if hook == "powersgd" else buckets
        return step_time(before, backward, 0.0, laid_out, link, hook, compress, POWERSGD_RANK)

    compress: dict[str | None, float] = {None: 0.0}
    for hook in HOOKS[1:]:
        before, backward, whole = measure(hook, 1)
        compress[hook] = max(0.0, (whole - predict(unlimited, hook, before, backward, 0.0).total) / gradient_bytes)

    rows = []
    print("   Mbit/s slots  compress    alone  measured predicted  ratio   (ms a step)")
    for megabits in (None, *bandwidths):
        limit(hosts, megabits)
        rate = unlimited if megabits is None else min(unlimited, megabits * 1e6 / 8 * PAYLOAD)
        for slots in SLOTS:
            for hook in HOOKS:
                before, backward, measured = measure(hook, slots)
                predicted = predict(rate, hook, before, backward, compress[hook]).total
                rows.append(
                    {
                        "megabits": megabits, "slots": slots, "hook": hook or "none", "alone_seconds": before + backward,
                        "measured_seconds": measured, "predicted_seconds": predicted, "ratio": predicted / measured,
                    }
                )  # fmt: skip
                times = f"{1000 * (before + backward):7.1f} {1000 * measured:9.1f} {1000 * predicted:9.1f}"
                print(
                    f"{megabits or 'unlimited':>9} {slots:5}  {hook or 'none':8} {times} {predicted / measured:6.2f}",
                    flush=True,
                )
    limited = [abs(row["ratio"] - 1) for row in rows if row["megabits"] is not None]
    return {
        "gradient_megabytes": gradient_bytes / 1e6, "buckets": len(buckets), "unlimited_megabits": unlimited * 8 / 1e6,
        "latency_ms": 1000 * latency / 2, "compress_ms_per_megabyte": {hook or "none": 1e9 * cost for hook, cost in compress.items()},
        "median_error": statistics.median(limited), "largest_error": max(limited), "rows": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--megabits", type=int, nargs="+", default=BANDWIDTHS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        work(arguments.rank)
        return
    if os.geteuid() != 0:
        sys.exit("network: needs root: it makes network namespaces")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("network: terminated"))  # so that the namespaces are removed
    start = time.monotonic()
    with two_hosts() as hosts, Workers(hosts) as workers:
        results = compare(hosts, workers, arguments.megabits)
    print(
        f"{results['gradient_megabytes']:.1f} MB of gradients in {results['buckets']} buckets; unlimited link"
        f" {results['unlimited_megabits']:,.0f} Mbit/s; limited links: predicted within {results['median_error']:.0%} (median),"
        f" {results['largest_error']:.0%} (largest); {time.monotonic() - start:.0f} s"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if results["median_error"] > MEDIAN_BOUND or results["largest_error"] > BOUND:
        sys.exit(f"network: the model is off by more than {MEDIAN_BOUND:.0%} (median) or {BOUND:.0%} (any)")


if __name__ == "__main__":
    main()
