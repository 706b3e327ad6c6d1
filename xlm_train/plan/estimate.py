"""The plan itself: from a checked config to every figure, as one dictionary that is also plan.json.

Sizes are in GB (1e9 bytes), speeds in TFLOP/s (1e12), times in seconds unless the name says otherwise.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xlm_train.config.cluster import ClusterConfig
from xlm_train.model.flops import Flops, flops_per_token
from xlm_train.plan.memory import peak_memory, reads_pairs, setting_of
from xlm_train.plan.network_model import COMPRESSIONS, Gradient, Link, StepTime, make_buckets, step_time
from xlm_train.plan.probe import Speed, measure, vocabulary_seconds
from xlm_train.plan.settings import PlanSettings, with_planned_precision
from xlm_train.runtime.energy import GRAMS_CO2_PER_KWH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xlm_train.data.corpus import Corpus
    from xlm_train.model.transformer import ModelShape

GB = 1e9
# Bytes that an update moves for each parameter: the norm reads the gradient (4), clipping and zeroing read and write
# it (12), Adam reads weight, gradient and both moments and writes all but the gradient (28).
UPDATE_BYTES = 44
# Bytes moved for each byte of gradient: fp16 reads 4 and writes 2 of four, twice; PowerSGD (counted in torch's
# powerSGD_hook) adds the error, multiplies twice, restores, and takes the new error.
COMPRESS_BYTES = {"fp16": 3, "powersgd": 10}
BINDS = 0.10  # share of a step spent waiting for the network from which it is called binding


@dataclass(frozen=True)
class SlotTime:
    """Seconds of one slot.

    Args:
        before: Until its backward pass through the blocks.
        backward: That pass.
    """

    before: float
    backward: float

    @property
    def total(self) -> float:
        """The whole slot."""
        return self.before + self.backward


def parameter_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's parameters, without making them."""
    import torch

    from xlm_train.model.transformer import XLM

    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in XLM(shape).named_parameters()}


def gradients_of(parameters: Mapping[str, tuple[int, ...]], n_layers: int) -> list[Gradient]:
    """Put gradients into the order in which the backward pass finishes them.

    First the output's bias, then the blocks from the last to the first, and at the very end the embeddings, the output's
    tied weights among them.

    Args:
        parameters: Names and shapes.
        n_layers: Of the model.

    Returns:
        The gradients with their times.
    """
    backwards = list(reversed(list(parameters.items())))
    bias = [Gradient(parameters["output_bias"], 0.0)]
    blocks = [
        Gradient(size, 1 - int(name.split(".")[1]) / n_layers) for name, size in backwards if name.startswith("blocks.")
    ]
    rest = [Gradient(size, 1.0) for name, size in backwards if not name.startswith(("blocks.", "output_bias"))]
    return bias + blocks + rest


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
    return Speed(blocks=rate, softmax=rate, update=memory / UPDATE_BYTES, memory=math.inf, peak=peak * 1e12)


def slot_time(
    shape: ModelShape, flops: Mapping[str, Flops], tokens: int, speed: Speed, accumulates: bool = False
) -> SlotTime:
    """Predict one slot on one device.

    Args:
        shape: The model's.
        flops: Of a position, by part.
        tokens: Positions of the slot.
        speed: Of the device.
        accumulates: Whether its gradients are added to others.

    Returns:
        Its seconds.
    """
    softmax = flops["output softmax"].total
    blocks = sum(part.total for part in flops.values()) - softmax
    backward = blocks - sum(part.forward for name, part in flops.items() if name != "output softmax")
    return SlotTime(
        before=tokens * ((blocks - backward) / speed.blocks + softmax / speed.softmax)
        + (vocabulary_seconds(shape, speed.memory) if accumulates else 0.0),
        backward=tokens * backward / speed.blocks,
    )


def make_plan(config: dict[str, Any], corpus: Corpus | None) -> dict[str, Any]:
    """Compute all figures of a plan.

    Measures this machine for some seconds where it is the cluster and states no speed.

    Args:
        config: Composed, resolved and checked (configs/plan.yaml).
        corpus: What is trained on; None where that is not known yet.

    Returns:
        What plan.json holds.
    """
    from xlm_train.model.transformer import ModelShape

    config = with_planned_precision(config)
    plan, cluster = PlanSettings(**config["plan"]), ClusterConfig(**config["cluster"])
    data = config["data"]
    shape = ModelShape(
        n_words=corpus.n_words if corpus else plan.n_words,
        n_langs=len(corpus.languages) if corpus else plan.n_langs,
        **{name: value for name, value in config["model"].items() if name not in ("recompute", "ops")},
    )
    parameters = parameter_shapes(shape)
    count = sum(math.prod(size) for size in parameters.values())
    setting = setting_of(config, cluster.devices, gpu=not cluster.is_cpu)
    share = 1.0 if setting.mask_share is None else setting.mask_share
    flops = flops_per_token(shape, setting.positions, setting.recompute, setting.mask_share)
    flops_token = sum(part.total for part in flops.values())

    of_slot = data["tokens_per_slot"] if reads_pairs(config) else data["slot_streams"] * data["bptt"]
    tokens_step = data["slots"] * of_slot
    slots_device = -(-data["slots"] // cluster.devices)  # of the process with the most
    speed, source = _speed(config, cluster, plan, shape)
    slot = slot_time(shape, flops, setting.streams * setting.positions, speed, setting.accumulates)
    network = _network(cluster, shape, parameters, setting.compression, slot, slots_device, count / speed.update, speed)
    step: StepTime = network.pop("step")
    # of the whole cluster, against its peak: uneven slots and the network included
    flops_step = data["slots"] * setting.streams * setting.positions * flops_token
    budget = _budget(config, plan, corpus, tokens_step)

    memory = {name: size / GB for name, size in peak_memory(shape, count, setting).items()}
    available = cluster.memory_gb or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    checkpoint_gb = 12 * count / GB  # weights and both of Adam's moments
    stall = checkpoint_gb / cluster.disk_gbytes_per_s
    every = config["callbacks"]["checkpointing"]["every_n_steps"]
    seconds = budget["steps"] * (step.total + stall / every)
    device_hours = cluster.devices * seconds / 3600
    price = plan.price_per_gpu_hour if plan.price_per_gpu_hour is not None else cluster.price_per_device_hour
    kwh = None if cluster.watts is None else device_hours * cluster.watts * plan.pue / 1000
    grams = plan.grams_co2_per_kwh if plan.grams_co2_per_kwh is not None else GRAMS_CO2_PER_KWH[plan.region]
    keep = config["callbacks"]["checkpointing"]["keep_last"] + 1
    result = {
        "cluster": {
            "name": cluster.name, "accelerator": cluster.accelerator, "devices": cluster.devices, "nodes": cluster.nodes,
            "devices_per_node": cluster.devices_per_node,
        },
        "model": {
            "parameters": count, "words": shape.n_words, "rows": shape.n_rows, "languages": shape.n_langs,
            "from_corpus": corpus is not None, "embeddings": math.prod(parameters["embeddings.weight"]),
            "blocks": sum(math.prod(size) for name, size in parameters.items() if name.startswith("blocks.")),
        },
        "step": {
            "tokens": tokens_step, "predicted": round(data["slots"] * setting.streams * setting.positions * share),
            "mask_share": setting.mask_share, "slots_per_device": slots_device, "streams_per_slot": setting.streams,
            "window": setting.positions if reads_pairs(config) else data["bptt"],
            "precision": setting.precision, "recompute": setting.recompute,
        },
        "flops_per_token": {
            name: {"forward": part.forward, "backward": part.backward, "recompute": part.recompute, "total": part.total}
            for name, part in flops.items()
        },
        "memory_gb": memory,
        "memory": {"peak_gb": sum(memory.values()), "available_gb": available, "fits": sum(memory.values()) <= available},
        "speed": {
            "tokens_per_second": tokens_step / step.total, "seconds_per_step": step.total,
            "peak_tflops_per_device": speed.peak / 1e12,
            "efficiency": setting.streams * setting.positions * flops_token / slot.total / speed.peak, "source": source,
            "mfu": flops_step / step.total / cluster.devices / speed.peak,
        },
        "network": network,
        "budget": budget,
        "time": {"hours": seconds / 3600, "device_hours": device_hours},
        "checkpoint": {
            "gb": checkpoint_gb, "every_n_steps": every, "stall_seconds": stall,
            "stall_share": stall / every / (step.total + stall / every), "kept": keep, "disk_gb": keep * checkpoint_gb,
        },
        "data": _data(config, corpus, budget["tokens"]),
        "cost": {
            "per_device_hour": price, "currency": cluster.currency,
            "total": None if price is None else price * device_hours,
        },
        "energy": {
            "watts_per_device": cluster.watts, "pue": plan.pue, "kwh": kwh,
            "region": plan.region if plan.grams_co2_per_kwh is None else "given", "grams_co2_per_kwh": grams,
            "co2_kg": None if kwh is None else kwh * grams / 1000,
        },
    }  # fmt: skip
    result["notes"] = _notes(config, cluster, result, shape, count)
    return result


def _speed(config: dict[str, Any], cluster: ClusterConfig, plan: PlanSettings, shape: ModelShape) -> tuple[Speed, str]:
    """The devices' speed and where it is known from."""
    precision, data = config["trainer"]["precision"], config["data"]
    if plan.probe or cluster.peak_tflops[precision] is None:
        import torch

        from xlm_train.runtime.device import disable_malloc_trim

        disable_malloc_trim()  # as training does
        if config["trainer"]["threads"] is not None:
            torch.set_num_threads(config["trainer"]["threads"])
        threads = torch.get_num_threads()
        return (
            measure(shape, data["slot_streams"], data["bptt"] - 1, precision=precision),
            f"measured just now on this machine with {threads} thread{'s' * (threads > 1)}, at another depth and batch",
        )
    if plan.efficiency is not None:
        return speed_of_cluster(cluster, precision, plan.efficiency), "plan.efficiency"
    assert cluster.efficiency is not None
    return (
        speed_of_cluster(cluster, precision, cluster.efficiency),
        "stated in the cluster's file, with its source; not measured with this program",
    )


def _network(
    cluster: ClusterConfig,
    shape: ModelShape,
    parameters: Mapping[str, tuple[int, ...]],
    chosen: str | None,
    slot: SlotTime,
    slots: int,
    update: float,
    speed: Speed,
) -> dict[str, Any]:
    """Step time with each compression, and under "step" with the chosen one."""
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
    steps = {
        name: step_time(
            before, slot.backward, update, buckets, link, name, COMPRESS_BYTES.get(name or "", 0) / memory
        )
        for name in (None, *COMPRESSIONS)
    }  # fmt: skip
    step = steps[chosen]
    return {
        "step": step,
        "compression": chosen,
        "gradient_gb": sum(bucket.bytes for bucket in buckets) / GB,
        "last_bucket_gb": buckets[-1].bytes / GB,
        "compute_seconds": step.compute,
        "overlap_seconds": slot.backward,
        "all_reduce_seconds": step.communication,
        "exposed_seconds": step.exposed,
        "exposed_share": step.exposed / step.total,
        "binds": step.exposed > BINDS * step.total,
        "seconds_per_step": {name or "none": candidate.total for name, candidate in steps.items()},
    }


def _budget(config: dict[str, Any], plan: PlanSettings, corpus: Corpus | None, tokens_step: int) -> dict[str, Any]:
    """How long to train, and who says so."""
    from xlm_train.config.train import steps_of

    if plan.tokens is not None:
        steps, source = -(-plan.tokens // tokens_step), "plan.tokens"
    elif plan.epochs is not None:
        assert corpus is not None
        bptt = config["data"]["bptt"]
        windows = (corpus.stream("train", lang).n_windows(bptt) * bptt for lang in corpus.languages)
        once = sum(_pair_tokens(corpus).values() if reads_pairs(config) else windows)
        steps, source = math.ceil(plan.epochs * once / tokens_step), "plan.epochs"
    else:
        steps, source = steps_of(config["trainer"], tokens_step), "trainer.max_steps and trainer.max_tokens"
    return {"steps": steps, "tokens": steps * tokens_step, "source": source}


def _data(config: dict[str, Any], corpus: Corpus | None, tokens: int) -> dict[str, Any] | None:
    """Disk of a corpus, and how often the run reads each language, or each pair."""
    from xlm_train.data.order import language_shares

    if corpus is None:
        return None
    if reads_pairs(config):
        sizes = _pair_tokens(corpus)
        shares = language_shares(sizes, 0.0)
    else:
        streams = {lang: corpus.stream("train", lang) for lang in corpus.languages}
        sizes = {lang: stream.n_tokens for lang, stream in streams.items()}
        sentences = {lang: stream.n_sentences for lang, stream in streams.items()}
        shares = language_shares(sentences, config["data"]["lang_alpha"])
    return {
        "path": str(corpus.path),
        "disk_gb": sum(file.stat().st_size for file in corpus.path.iterdir() if file.is_file()) / GB,
        "train_tokens": sizes,
        "passes": {name: tokens * float(shares[name]) / size for name, size in sizes.items()},
    }


def _pair_tokens(corpus: Corpus) -> dict[str, int]:
    """Training tokens of each pair, all eos included."""
    tables = {name: corpus.length_order("train", name).classes for name in corpus.pair_names("train")}
    return {name: int((table[:, 0] * table[:, -1]).sum()) for name, table in tables.items()}


def _notes(
    config: dict[str, Any], cluster: ClusterConfig, plan: dict[str, Any], shape: ModelShape, count: int
) -> list[str]:
    """What a person should know or change, with the overrides."""
    notes, data, trainer = [], config["data"], config["trainer"]
    if not plan["memory"]["fits"]:
        notes.append("does not fit" + _what_fits(config, cluster, shape, count, plan["memory"]["available_gb"]))
    if plan["network"]["binds"]:
        allowed = (
            "none",
            "fp16" if trainer["precision"] == "16-mixed" else "powersgd",
        )  # what config/train.py lets through
        best = min(allowed, key=plan["network"]["seconds_per_step"].__getitem__)
        faster = (
            f"trainer.gradient_compression={best}, or " if best != (plan["network"]["compression"] or "none") else ""
        )
        notes.append(f"the network binds: {faster}more data.slots a step for each reduction")
    if data["slots"] % cluster.devices:
        idle = 1 - data["slots"] / (plan["step"]["slots_per_device"] * cluster.devices)
        notes.append(
            f"data.slots={data['slots']} does not divide evenly over {cluster.devices} devices: they are idle {idle:.0%} of the"
            f" time; data.slots={cluster.devices * plan['step']['slots_per_device']} is even"
        )
    if (trainer["devices"], trainer["nodes"]) != (cluster.devices_per_node, cluster.nodes):
        notes.append(
            f"planned for the cluster's {cluster.nodes} x {cluster.devices_per_node} devices: start the run with"
            f" trainer.devices={cluster.devices_per_node} trainer.nodes={cluster.nodes}"
        )
    if plan["data"] is None:
        notes.append(
            f"vocabulary of {plan['model']['words']:,} words assumed: data.path=CORPUS reads the real one, and its size"
        )
    objective = config["objective"]
    if any("pairs" in part for part in (objective, *(objective.get("parts") or {}).values())):
        notes.append(
            f"slots of pairs, of about {data['tokens_per_slot']:,} tokens (data.tokens_per_slot), are counted like slots of windows, of"
            f" {data['slot_streams'] * data['bptt']:,}"
        )
    notes.append("not counted: validation, start-up, waiting in a queue, restarts, power of the hosts")
    return notes


def _what_fits(config: dict[str, Any], cluster: ClusterConfig, shape: ModelShape, count: int, available: float) -> str:
    """The largest slot that fits at the same tokens a step, without and with recomputing."""
    data, model = config["data"], config["model"]
    for recompute in (model["recompute"], True):
        streams = data["slot_streams"]
        while True:
            smaller = {**config, "data": {**data, "slot_streams": streams}, "model": {**model, "recompute": recompute}}
            needed = sum(peak_memory(shape, count, setting_of(smaller, cluster.devices, not cluster.is_cpu)).values())
            if needed <= available * GB:
                words = f"data.slot_streams={streams} data.slots={data['slots'] * data['slot_streams'] // streams}"
                return f": {words}{' model.recompute=true' if recompute else ''} needs {needed / GB:.1f} GB"
            if streams % 2:
                break
            streams //= 2
    return ", whatever the number of streams: a smaller model is needed"
