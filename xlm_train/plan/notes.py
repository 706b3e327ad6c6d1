"""What a person should know of a plan, or change, with the overrides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xlm_train.config.rules import compression_problems
from xlm_train.plan.memory import peak_memory, setting_of
from xlm_train.plan.slots import USUAL_LENGTH, largest_slot
from xlm_train.training.strategy import COMPRESSIONS

if TYPE_CHECKING:
    from xlm_train.config.cluster import ClusterConfig
    from xlm_train.model.transformer import ModelShape

GB = 1e9


def notes_of(
    config: dict[str, Any], cluster: ClusterConfig, plan: dict[str, Any], shape: ModelShape, count: int
) -> list[str]:
    """What a person should know or change, with the overrides.

    Args:
        config: Resolved and checked, its precision settled.
        cluster: What is planned for.
        plan: All else that plan.json holds.
        shape: The model's.
        count: Its parameters, of a translation model those of both sides.
    """
    notes, data, trainer = [], config["data"], config["trainer"]
    if not plan["memory"]["fits"]:
        notes.append("does not fit" + _what_fits(config, cluster, shape, count, plan["memory"]["available_gb"]))
    limits = plan["limits"]
    if limits["network"]["binds"]:
        settings = (trainer["precision"], trainer["sharding"], config["callbacks"])
        allowed = [name for name in COMPRESSIONS if not any(compression_problems(name, *settings))]
        if cluster.is_cpu and "powersgd" in allowed:
            allowed.remove("powersgd")
        best = min(["none", *allowed], key=plan["network"]["seconds_per_step"].__getitem__)
        faster = (
            f"trainer.gradient_compression={best}, or " if best != (plan["network"]["compression"] or "none") else ""
        )
        fewer = "fewer devices" if limits["batch"]["binds"] else "more data.slots a step for each reduction"
        notes.append(f"the network binds: {faster}{fewer}")
    if limits["batch"]["binds"]:
        notes.append(
            f"the batch binds: more devices save few steps; a smaller {_size_of_slot(config)[0]}, or fewer data.slots (at least"
            f" {cluster.devices}), reaches the same loss with fewer tokens"
        )
    if limits["checkpoints"]["binds"]:
        notes.append("checkpoints bind: a larger callbacks.checkpointing.every_n_steps, or a faster disk")
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
    if plan["data"] is None and largest_slot(config).reads != "windows":
        notes.append(f"sentences of {USUAL_LENGTH} tokens assumed: data.path=CORPUS has the real ones")
    if plan["speed"]["back_translation"] is not None:
        notes.append(
            "translations are taken to be as long as the sentences: a model that begins at random makes longer ones, and"
            " takes more time and memory, until it has learned to end them"
        )
    notes.append("not counted: validation, start-up, waiting in a queue, restarts, power of the hosts")
    return notes


def _size_of_slot(config: dict[str, Any]) -> tuple[str, int]:
    """The setting that says how much a slot holds, and its least value."""
    slot = largest_slot(config)
    return ("data.slot_streams", 1) if slot.reads == "windows" else ("data.tokens_per_slot", int(slot.row.tokens) + 1)


def _what_fits(config: dict[str, Any], cluster: ClusterConfig, shape: ModelShape, count: int, available: float) -> str:
    """The largest slot that fits at the same tokens a step, without and with recomputing."""
    data, model = config["data"], config["model"]
    key, least = _size_of_slot(config)
    for recompute in (model["recompute"], True):
        size = whole = data[name := key.removeprefix("data.")]
        while size >= least:
            smaller = {**config, "data": {**data, name: size}, "model": {**model, "recompute": recompute}}
            needed = sum(peak_memory(shape, count, setting_of(smaller, cluster.devices, not cluster.is_cpu)).values())
            if needed <= available * GB:
                words = f"{key}={size} data.slots={data['slots'] * whole // size}"
                return f": {words}{' model.recompute=true' if recompute else ''} needs {needed / GB:.1f} GB"
            if size % 2:
                break
            size //= 2
    return ", whatever the size of a slot: a smaller model is needed"
