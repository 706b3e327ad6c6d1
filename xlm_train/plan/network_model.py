"""How long a data-parallel step takes, from its gradients, its backward pass and the links between the processes.

DistributedDataParallel sums gradients in buckets: each is reduced as soon as the backward pass of a step's last slot
has filled it, one after the other, while the backward pass goes on. So what a step waits for is not the whole
reduction but its end: above all the last bucket, which here holds the tied embeddings (half the model) and is full
only when the backward pass is over.

Times are in seconds, sizes in bytes, bandwidths in bytes a second in one direction. `xlm-plan` predicts with this model;
`benchmarks/network.py` compares it with steps measured over a link of limited bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xlm_train.training.strategy import POWERSGD_RANK

FIRST_BUCKET_BYTES = 2**20  # torch.distributed's limits: a small bucket first, so that reducing begins early
BUCKET_BYTES = 25 * 2**20
POWERSGD_MIN_RATE = 2  # of torch's powerSGD_hook: a tensor that shrinks less is sent whole


@dataclass(frozen=True)
class Gradient:
    """One parameter's gradient.

    Args:
        shape: Of the parameter.
        ready: When it is final, as a share of the backward pass.
    """

    shape: tuple[int, ...]
    ready: float

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Bucket:
    """Gradients that are reduced together, once the last of them is ready."""

    gradients: tuple[Gradient, ...]

    @property
    def bytes(self) -> int:
        """Their size in float32."""
        return 4 * sum(gradient.elements for gradient in self.gradients)

    @property
    def ready(self) -> float:
        """When the last of them is final, as a share of the backward pass."""
        return max(gradient.ready for gradient in self.gradients)


@dataclass(frozen=True)
class Link:
    """What connects the processes.

    Args:
        devices: Processes of a node.
        nodes: Machines.
        inside: Bandwidth of one device's links inside a node; counts only with several devices.
        between: Bandwidth of a whole node's links to the others; counts only with several nodes.
        latency: Of one message.
    """

    devices: int
    nodes: int
    inside: float
    between: float
    latency: float

    def all_reduce(self, n_bytes: float) -> float:
        """Seconds to sum `n_bytes` over all processes.

        In rings: reduce-scatter inside the nodes, all-reduce across them, all-gather inside. Over n members a ring sends
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
    """Seconds of a step.

    Args:
        compute: Forward, backward and update alone.
        communication: All reductions, laid end to end.
        exposed: What of them the step waits for.
    """

    compute: float
    communication: float
    exposed: float

    @property
    def total(self) -> float:
        """The whole step."""
        return self.compute + self.exposed


def make_buckets(
    gradients: Sequence[Gradient], first: int = FIRST_BUCKET_BYTES, limit: int = BUCKET_BYTES
) -> list[Bucket]:
    """Put gradients into buckets as DistributedDataParallel does: in order of arrival, full when the limit is reached.

    Args:
        gradients: In the order in which the backward pass finishes them.
        first: Limit of the first bucket in bytes.
        limit: Limit of the others in bytes.

    Returns:
        The buckets in the order in which they are reduced.
    """
    buckets: list[Bucket] = []
    current: list[Gradient] = []
    for gradient in gradients:
        current.append(gradient)
        if Bucket(tuple(current)).bytes >= (limit if buckets else first):
            buckets.append(Bucket(tuple(current)))
            current = []
    return buckets + ([Bucket(tuple(current))] if current else [])


def wire_bytes(bucket: Bucket, compression: str | None, rank: int = POWERSGD_RANK) -> list[int]:
    """Bytes of each message that reduces a bucket.

    Args:
        bucket: The bucket.
        compression: None, "fp16" or "powersgd".
        rank: Of PowerSGD's factors.

    Returns:
        One message, of half the bytes with fp16. For PowerSGD up to three, one after the other: vectors and what would
        not shrink go whole; then a matrix of n x m goes as its two factors, of n and of m times `rank` numbers.

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
    rank: int = POWERSGD_RANK,
) -> StepTime:
    """Predict a step.

    Args:
        compute: Seconds before its last backward pass.
        backward: Seconds of that.
        update: Seconds after it.
        buckets: The gradients, in the order in which they are reduced.
        link: Between the processes; with one process nothing is reduced.
        compression: None, "fp16" or "powersgd".
        compress: Seconds that packing and unpacking cost for each byte of gradient.
        rank: Of PowerSGD's factors.

    Returns:
        The step's seconds.
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
