"""The plan itself: from a checked config to every figure, as one dictionary that is also plan.json.

Sizes are in GB (1e9 bytes), speeds in TFLOP/s (1e12), times in seconds unless the name says otherwise.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from xlm_train.config.cluster import ClusterConfig
from xlm_train.config.parts import translates
from xlm_train.model.flops import Flops, row_flops
from xlm_train.plan.limits import limits_of
from xlm_train.plan.memory import parameter_shapes, peak_memory, setting_of
from xlm_train.plan.notes import notes_of
from xlm_train.plan.probe import Speed, measure
from xlm_train.plan.settings import PlanSettings, with_planned_precision
from xlm_train.plan.slots import SlotKind, largest_slot, slot_kinds, texts_of, tokens_once
from xlm_train.plan.step import mean_time, network_figures, slot_time, speed_of_cluster
from xlm_train.runtime.energy import GRAMS_CO2_PER_KWH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xlm_train.data.corpus import Corpus
    from xlm_train.model.transformer import ModelShape
    from xlm_train.plan.network_model import StepTime

GB = 1e9


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
    sizes = {part.name for part in fields(ModelShape)}
    shape = ModelShape(
        n_words=corpus.n_words if corpus else plan.n_words,
        n_langs=len(corpus.languages) if corpus else plan.n_langs,
        **{name: value for name, value in config["model"].items() if name in sizes},
    )
    parameters = parameter_shapes(shape, translates(config["objective"]), config["model"]["share"])
    count = sum(math.prod(size) for size in parameters.values())
    setting = setting_of(config, cluster.devices, gpu=not cluster.is_cpu)
    largest = largest_slot(config)
    kinds = slot_kinds(config, shape.n_langs, corpus)
    flops = [row_flops(shape, kind.row, setting.recompute) for kind in kinds]

    tokens_step = round(data["slots"] * sum(kind.share * kind.tokens for kind in kinds))
    slots_device = -(-data["slots"] // cluster.devices)  # of the process with the most
    speed, source = _speed(config, cluster, plan, shape, kinds)
    slot = mean_time(
        [
            (k.share, slot_time(shape, parts, k.rows, speed, setting.accumulates, k.row.source))
            for k, parts in zip(kinds, flops, strict=True)
        ]
    )
    network = network_figures(cluster, shape, parameters, setting.compression, slot, slots_device, count / speed.update)
    step: StepTime = network.pop("step")
    flops_slot = sum(
        k.share * k.rows * part.total for k, parts in zip(kinds, flops, strict=True) for part in parts.values()
    )
    decodes = any(kind.row.decodes for kind in kinds)
    budget = _budget(config, plan, corpus, tokens_step, kinds)

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
            "from_corpus": corpus is not None, "translates": translates(config["objective"]),
            "embeddings": sum(math.prod(size) for name, size in parameters.items() if f".{name}".endswith(".embeddings.weight")),
            "blocks": sum(math.prod(size) for name, size in parameters.items() if "blocks." in name),
        },
        "step": {
            "tokens": tokens_step, "predicted": round(data["slots"] * sum(k.share * k.predicted for k in kinds)),
            "mask_share": setting.mask_share, "slots_per_device": slots_device, "streams_per_slot": setting.streams,
            "window": largest.length, "reads": largest.reads,
            "precision": setting.precision, "recompute": setting.recompute,
        },
        "flops_per_token": _mean_flops(kinds, flops),
        "memory_gb": memory,
        "memory": {"peak_gb": sum(memory.values()), "available_gb": available, "fits": sum(memory.values()) <= available},
        "speed": {
            "tokens_per_second": tokens_step / step.total, "seconds_per_step": step.total,
            "peak_tflops_per_device": speed.peak / 1e12,
            "efficiency": flops_slot / slot.total / speed.peak, "source": source,
            # of the whole cluster, against its peak: uneven slots and the network included
            "mfu": data["slots"] * flops_slot / step.total / cluster.devices / speed.peak,
            "back_translation": slots_device * slot.decoding / step.total if decodes else None,
        },
        "network": network,
        "budget": budget,
        "time": {"hours": seconds / 3600, "device_hours": device_hours},
        "checkpoint": {
            "gb": checkpoint_gb, "every_n_steps": every, "stall_seconds": stall,
            "stall_share": stall / every / (step.total + stall / every), "kept": keep, "disk_gb": keep * checkpoint_gb,
        },
        "data": _data(config, corpus, budget["tokens"], kinds),
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
    result["limits"] = limits_of(result, plan.loss)
    result["notes"] = notes_of(config, cluster, result, shape, count)
    return result


def _mean_flops(kinds: Sequence[SlotKind], flops: Sequence[Mapping[str, Flops]]) -> dict[str, dict[str, int]]:
    """FLOPs by part of a position that a language model reads, or of a token of a translation run, over all slots."""
    found: dict[str, Counter[str]] = {}
    units = 0.0
    for kind, parts in zip(kinds, flops, strict=True):
        rows = kind.share * kind.rows
        units += rows * (kind.row.tokens if kind.row.source else kind.row.positions)
        for name, part in parts.items():
            more = {
                "forward": part.forward,
                "backward": part.backward,
                "recompute": part.recompute,
                "total": part.total,
            }
            found.setdefault(name, Counter()).update({key: rows * n for key, n in more.items()})
    return {name: {key: round(n / units) for key, n in part.items()} for name, part in found.items()}


def _speed(
    config: dict[str, Any], cluster: ClusterConfig, plan: PlanSettings, shape: ModelShape, kinds: Sequence[SlotKind]
) -> tuple[Speed, str]:
    """The devices' speed and where it is known from."""
    precision, largest = config["trainer"]["precision"], max(kinds, key=lambda kind: kind.tokens)
    if plan.probe or cluster.peak_tflops[precision] is None:
        import torch

        from xlm_train.runtime.device import disable_malloc_trim

        disable_malloc_trim()  # as training does
        if config["trainer"]["threads"] is not None:
            torch.set_num_threads(config["trainer"]["threads"])
        threads = torch.get_num_threads()
        return (
            measure(shape, max(1, round(largest.rows)), max(1, round(largest.row.tokens) - 1), precision=precision),
            f"measured just now on this machine with {threads} thread{'s' * (threads > 1)}, at another depth and batch",
        )
    if plan.efficiency is not None:
        return speed_of_cluster(cluster, precision, plan.efficiency), "plan.efficiency"
    assert cluster.efficiency is not None
    return (
        speed_of_cluster(cluster, precision, cluster.efficiency),
        "stated in the cluster's file, with its source; not measured with this program",
    )


def _budget(
    config: dict[str, Any], plan: PlanSettings, corpus: Corpus | None, tokens_step: int, kinds: Sequence[SlotKind]
) -> dict[str, Any]:
    """How long to train, and who says so."""
    from xlm_train.config.train import steps_of

    if plan.tokens is not None:
        steps, source = -(-plan.tokens // tokens_step), "plan.tokens"
    elif plan.epochs is not None:
        assert corpus is not None
        once = sum(tokens_once(corpus, reads, config["data"]["bptt"]) for reads in {kind.reads for kind in kinds})
        steps, source = math.ceil(plan.epochs * once / tokens_step), "plan.epochs"
    else:
        steps, source = steps_of(config["trainer"], tokens_step), "trainer.max_steps and trainer.max_tokens"
    return {"steps": steps, "tokens": steps * tokens_step, "source": source}


def _data(
    config: dict[str, Any], corpus: Corpus | None, tokens: int, kinds: Sequence[SlotKind]
) -> dict[str, Any] | None:
    """Disk of a corpus, and how often the run reads each language, and each pair."""
    if corpus is None:
        return None
    sizes: dict[str, int] = {}
    passes: Counter[str] = Counter()
    for kind in kinds:
        part = tokens * kind.share * kind.tokens / sum(k.share * k.tokens for k in kinds)
        for name, (size, share) in texts_of(corpus, kind.reads, config["data"]["lang_alpha"]).items():
            sizes[name] = size
            passes[name] += part * share / size  # type: ignore[assignment]
    return {
        "path": str(corpus.path),
        "disk_gb": sum(file.stat().st_size for file in corpus.path.iterdir() if file.is_file()) / GB,
        "train_tokens": sizes,
        "passes": dict(passes),
    }
