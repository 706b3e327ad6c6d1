"""How long a data-parallel step takes, from its gradients, its backward pass and the links between the processes.

DistributedDataParallel sums gradients in buckets: each is reduced as soon as the backward pass of a step's last slot
has filled it, one after the other, while the backward pass goes on. So what a step waits for is not the whole
reduction but its end: above all the last bucket, which here holds the tied embeddings (half the model) and is full
only when the backward pass is over.

Times are in seconds, sizes in bytes, bandwidths in bytes a second in one direction. `xlm-plan` predicts with this model;
`benchmarks/network.py` compares it with steps measured over a link of limited bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FIRST_BUCKET_BYTES = 2**20  # torch.distributed's limits: a small bucket first, so that reducing begins early
BUCKET_BYTES = 25 * 2**20
COMPRESSIONS = ("fp16", "powersgd")
POWERSGD_MIN_RATE = 2  # of torch's powerSGD_hook: a tensor that shrinks less is sent whole


@dataclass(frozen=True)
class Gradient:
    """One parameter's gradient. shape: of the parameter. ready: when it is final, as a share of the backward pass."""

    shape: tuple[int, ...]
    ready: float

    @property
    def elements(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True)
class Bucket:
    """Gradients that are reduced together, once the last of them is ready."""

    gradients: tuple[Gradient, ...]

    @property
    def bytes(self) -> int:
        return 4 * sum(gradient.elements for gradient in self.gradients)

    @property
    def ready(self) -> float:
        return max(gradient.ready for gradient in self.gradients)


@dataclass(frozen=True)
class Link:
    """What connects the processes: `nodes` machines of `devices` processes each.

    inside, between: bandwidth of one device's links inside a node, and of a whole node's links to the others.
    latency: of one message. inside counts only with several devices, between only with several nodes.
    """

    devices: int
    nodes: int
    inside: float
    between: float
    latency: float

    def all_reduce(self, n_bytes: float) -> float:
        """Seconds to sum `n_bytes` over all processes.

        Rings: reduce-scatter inside the nodes, all-reduce across them, all-gather inside. Over n members a ring sends
        2 (n-1)/n of its bytes through each member's link in 2 (n-1) messages. Across nodes the devices of a node
        share its links, each with its part of the bytes: together all of them, once.
        Source: Thakur, Rabenseifner & Gropp 2005; Patarasuk & Yuan 2009.
        """
        seconds = 0.0
        for members, bandwidth in ((self.devices, self.inside), (self.nodes, self.between)):
            if members > 1:
                seconds += 2 * (members - 1) * (n_bytes / members / bandwidth + self.latency)
        return seconds


@dataclass(frozen=True)
class StepTime:
    """compute: forward, backward and update alone. communication: all reductions, laid end to end. exposed: what of
    them the step waits for. total: the step."""

    compute: float
    communication: float
    exposed: float

    @property
    def total(self) -> float:
        return self.compute + self.exposed


def make_buckets(
    gradients: Sequence[Gradient], first: int = FIRST_BUCKET_BYTES, limit: int = BUCKET_BYTES
) -> list[Bucket]:
    """Buckets as DistributedDataParallel lays them out: gradients in order of arrival; full when its limit is reached."""
    buckets: list[Bucket] = []
    current: list[Gradient] = []
    for gradient in gradients:
        current.append(gradient)
        if Bucket(tuple(current)).bytes >= (limit if buckets else first):
            buckets.append(Bucket(tuple(current)))
            current = []
    return buckets + ([Bucket(tuple(current))] if current else [])


def wire_bytes(bucket: Bucket, compression: str | None, rank: int = 1) -> list[int]:
    """Bytes of each message that reduces a bucket: one, or for PowerSGD up to three, one after the other.

    fp16 halves them. PowerSGD sends a matrix of n x m as its two factors of `rank` columns, n + m numbers each,
    first the one, then the other; vectors and what would not shrink go whole before them.
    Source: Vogels, Karimireddy & Jaggi 2019, algorithm 1; torch's powerSGD_hook.
    """
    if compression is None:
        return [bucket.bytes]
    if compression == "fp16":
        return [bucket.bytes // 2]
    whole = left = right = 0
    for gradient in bucket.gradients:
        n, m = gradient.shape[0], gradient.elements // gradient.shape[0]
        if (n + m) * rank * POWERSGD_MIN_RATE < gradient.elements:
            left, right = left + n * rank, right + m * rank
        else:
            whole += gradient.elements
    return [4 * elements for elements in (whole, left, right) if elements]


def step_time(
    compute: float,
    backward: float,
    update: float,
    buckets: Sequence[Bucket],
    link: Link,
    compression: str | None = None,
    compress: float = 0.0,
    rank: int = 1,
) -> StepTime:
    """A step of `compute` seconds before its last backward pass, `backward` seconds of that, and `update` seconds after.

    compress: seconds that packing and unpacking cost for each byte of gradient. With one process nothing is reduced.
    """
    alone = compute + backward + update
    if link.devices * link.nodes == 1:
        return StepTime(alone, 0.0, 0.0)
    communication = free = 0.0
    for bucket in buckets:
        seconds = compress * bucket.bytes + sum(link.all_reduce(n) for n in wire_bytes(bucket, compression, rank))
        free = max(free, bucket.ready * backward) + seconds
        communication += seconds
    return StepTime(alone, communication, max(0.0, free - backward))
