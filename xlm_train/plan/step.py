"""How long a step takes: its slots on one device, decoding among them, and the reduction of its gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from xlm_train.model.flops import DECODING, Flops
from xlm_train.plan.network_model import Gradient, Link, StepTime, make_buckets, step_time
from xlm_train.plan.probe import Speed, vocabulary_seconds
from xlm_train.training.strategy import COMPRESSIONS

if TYPE_CHECKING:
    from xlm_train.config.cluster import ClusterConfig
    from xlm_train.model.transformer import ModelShape

GB = 1e9
# Bytes that an update moves for each parameter: the norm reads the gradient (4), clipping and zeroing read and write
# it (12), Adam reads weight, gradient and both moments and writes all but the gradient (28).
UPDATE_BYTES = 44
# Bytes moved for each byte of gradient: fp16 reads 4 and writes 2 of four, twice; PowerSGD (counted in torch's
# powerSGD_hook) adds the error, multiplies twice, restores, and takes the new error.
COMPRESS_BYTES = {"fp16": 3, "powersgd": 10}
# Share of a translation model's backward pass after which the decoder's gradients are ready: of 28 D^2 weights of a layer
# of both sides (with a feed-forward of 4 D) it has 16.
DECODER_SHARE = 16 / 28
# Decoding, measured on one core of a CPU that others used too (docs/planning.md), assumed for GPUs: what starting the
# operations of one layer takes, for the next word of all sentences; and what products with few rows reach of the speed.
LAYER_SECONDS = 4e-4
FEW_ROWS = 0.5


@dataclass(frozen=True)
class SlotTime:
    """Seconds of one slot.

    Args:
        before: Until its backward pass through the blocks.
        backward: That pass.
        decoding: Of `before`, what making back-translations takes.
    """

    before: float
    backward: float
    decoding: float = 0.0

    @property
    def total(self) -> float:
        """The whole slot."""
        return self.before + self.backward


def mean_time(times: Sequence[tuple[float, SlotTime]]) -> SlotTime:
    """The mean of slots, each with its share."""
    return SlotTime(
        *(sum(share * getattr(t, part) for share, t in times) for part in ("before", "backward", "decoding"))
    )


def gradients_of(parameters: Mapping[str, tuple[int, ...]], n_layers: int) -> list[Gradient]:
    """Put gradients into the order in which the backward pass finishes them.

    First the output's bias, then the blocks from the last to the first, and at the very end the embeddings, the output's
    tied weights among them. A translation model's decoder comes before its encoder, whose output nobody uses.

    Args:
        parameters: Names and shapes.
        n_layers: Of the model, or of each side.

    Returns:
        The gradients with their times.
    """
    if "decoder.output_bias" not in parameters:
        return _gradients_of_side(parameters, n_layers, 0.0, 1.0)
    sides = {
        side: {name.removeprefix(f"{side}."): size for name, size in parameters.items() if name.startswith(f"{side}.")}
        for side in ("decoder", "encoder")
    }
    del sides["encoder"]["output_bias"]
    decoder = _gradients_of_side(sides["decoder"], n_layers, 0.0, DECODER_SHARE)
    return decoder + _gradients_of_side(sides["encoder"], n_layers, DECODER_SHARE, 1.0)


def _gradients_of_side(
    parameters: Mapping[str, tuple[int, ...]], n_layers: int, begin: float, end: float
) -> list[Gradient]:
    """Those of one stack of blocks, whose backward pass is from `begin` to `end` of the whole one."""

    def ready(name: str) -> float:
        if name == "output_bias":
            return begin
        return begin + (end - begin) * (1 - int(name.split(".")[1]) / n_layers) if name.startswith("blocks.") else end

    found = [Gradient(size, ready(name)) for name, size in reversed(list(parameters.items()))]
    return sorted(found, key=lambda gradient: gradient.ready)


def speed_of_cluster(cluster: ClusterConfig, precision: str, efficiency: float) -> Speed:
    """Take a cluster's stated speed: one share of the peak for all products, with what is not a product in it.

    Args:
        cluster: With a peak for this precision and a bandwidth of memory.
        precision: The config's `trainer.precision`.
        efficiency: The share.

    Returns:
        The speed of one device.
    """
    peak = cluster.peak_tflops[precision]
    assert peak is not None
    assert cluster.memory_gbytes_per_s is not None
    rate, memory = peak * 1e12 * efficiency, cluster.memory_gbytes_per_s * GB
    return Speed(rate, rate, memory / UPDATE_BYTES, memory=math.inf, peak=peak * 1e12, weights=memory)


def slot_time(
    shape: ModelShape,
    flops: Mapping[str, Flops],
    rows: float,
    speed: Speed,
    accumulates: bool = False,
    translation: float = 0.0,
) -> SlotTime:
    """Predict one slot on one device.

    Args:
        shape: The model's.
        flops: Of a row, or of a position, by part.
        rows: Rows of the slot, or positions.
        speed: Of the device.
        accumulates: Whether its gradients are added to others.
        translation: Tokens of a translation, where the flops have the making of it.

    Returns:
        Its seconds.
    """
    softmax = flops["output softmax"].total
    in_blocks = [part for name, part in flops.items() if name not in ("output softmax", DECODING)]
    forward = sum(part.forward for part in in_blocks)
    backward = sum(part.total for part in in_blocks) - forward
    decoding = decoding_seconds(shape, rows * flops[DECODING].forward, translation, speed) if DECODING in flops else 0.0
    return SlotTime(
        before=rows * (forward / speed.blocks + softmax / speed.softmax)
        + (vocabulary_seconds(shape, speed.memory) if accumulates else 0.0)
        + decoding,
        backward=rows * backward / speed.blocks,
        decoding=decoding,
    )


def decoding_seconds(shape: ModelShape, flops: float, length: float, speed: Speed) -> float:
    """Seconds to translate the sentences of a slot together, greedily.

    For each next word of all of them the weights are read once, which takes longer than the products where sentences are
    few, and the host starts the operations of every layer.

    Args:
        shape: Of each side.
        flops: Of all sentences.
        length: Tokens of a translation.
        speed: Of the device.
    """
    D, steps = shape.dim, length - 1
    weights = 4 * (shape.n_rows * D + shape.n_layers * (6 * D * D + 2 * D * shape.ffn_dim))  # source keys are made once
    return steps * shape.n_layers * LAYER_SECONDS + max(
        flops / speed.blocks / FEW_ROWS, steps * weights / speed.weights
    )


def network_figures(
    cluster: ClusterConfig,
    shape: ModelShape,
    parameters: Mapping[str, tuple[int, ...]],
    chosen: str | None,
    slot: SlotTime,
    slots: int,
    update: float,
) -> dict[str, Any]:
    """Step time with each compression, and under "step" with the chosen one.

    Args:
        cluster: Its links and memory: a bandwidth that it does not state is without limit, a latency 0.
        shape: The model's.
        parameters: Names and shapes.
        chosen: The config's compression; None: none.
        slot: Mean of the slots of a step.
        slots: Of the process with the most.
        update: Seconds of the optimizer's update.
    """
    link = Link(
        cluster.devices_per_node,
        cluster.nodes,
        (cluster.intra_node_gbytes_per_s or math.inf) * GB,
        (cluster.inter_node_gbytes_per_s or math.inf) * GB,
        (cluster.latency_us or 0.0) * 1e-6,
    )
    buckets = make_buckets(gradients_of(parameters, shape.n_layers))
    memory = (cluster.memory_gbytes_per_s or math.inf) * GB
    before = (slots - 1) * slot.total + slot.before

    def step_over(link: Link, compression: str | None) -> StepTime:
        packing = COMPRESS_BYTES.get(compression or "", 0) / memory
        return step_time(before, slot.backward, update, buckets, link, compression, packing)

    steps = {name: step_over(link, name) for name in (None, *COMPRESSIONS)}
    step, at_once = steps[chosen], step_over(replace(link, latency=0.0), chosen)
    return {
        "step": step,
        "compression": chosen,
        "gradient_gb": sum(bucket.bytes for bucket in buckets) / GB,
        "last_bucket_gb": buckets[-1].bytes / GB,
        "compute_seconds": step.compute,
        "overlap_seconds": slot.backward,
        "all_reduce_seconds": step.communication,
        "latency_seconds": step.communication - at_once.communication,
        "exposed_seconds": step.exposed,
        "exposed_share": step.exposed / step.total,
        "seconds_per_step": {name or "none": candidate.total for name, candidate in steps.items()},
    }
