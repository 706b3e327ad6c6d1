"""Whether a run fits into memory: told before its first step, and named where memory ran out all the same."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from xlm_train.config.parts import translates
from xlm_train.plan.memory import parameter_shapes, peak_memory, setting_of
from xlm_train.plan.slots import largest_slot
from xlm_train.runtime.console import compact, log
from xlm_train.runtime.errors import OutOfMemory
from xlm_train.runtime.memory import Memory, is_out_of_memory, memory_of
from xlm_train.runtime.processes import local_rank

if TYPE_CHECKING:
    from xlm_train.config.train import TrainConfig
    from xlm_train.model.transformer import ModelShape
    from xlm_train.training.trainer import RunContext

GB = 1e9
# Parts of the prediction that are measured or assumed; the others are counted tensor by tensor.
UNSURE = ("holes in the heap", "context and workspaces (assumed)")
DIVIDED = {None: (), "zero": ("optimizer",), "fsdp": ("weights", "gradients", "optimizer")}  # by trainer.sharding
MARGIN = 1.25  # refused only beyond it: on a GPU up to 1.2 times what was measured has been predicted
ADAM = ("torch.optim.AdamW", "torch.optim.Adam", "xlm_train.training.optim.OriginalAdam")  # others keep other moments


def require_memory(config: TrainConfig, shape: ModelShape) -> None:
    """Compare what a run takes with what this process's device has (see `compare`)."""
    import torch

    gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", local_rank()) if gpu else torch.device("cpu")
    compare(config.resolved, shape, memory_of(device), gpu)


def compare(config: dict[str, Any], shape: ModelShape, memory: Memory, gpu: bool) -> None:
    """Compare the predicted peak of a run with the memory of its device. Logs a warning where that is short.

    Args:
        config: The run's, resolved.
        shape: The model's, or of each side of a translation model.
        memory: Of one GPU, or of the machine, which all processes on it share.
        gpu: Whether the devices are GPUs.

    Raises:
        OutOfMemory: What must be held at the same time is more than there could ever be, by a margin.
    """
    settings = config["trainer"]
    processes = settings["devices"] * settings["nodes"]
    sizes = parameter_shapes(shape, translates(config["objective"]), config["model"].get("share", "none"))
    count = sum(math.prod(size) for size in sizes.values())
    parts = peak_memory(shape, count, setting_of(config, processes, gpu))
    for part in DIVIDED[settings["sharding"]]:
        parts[part] /= processes
    here = 1 if gpu else settings["devices"]
    peak = here * sum(parts.values())
    unsure = UNSURE if config["optimizer"]["_target_"] in ADAM else (*UNSURE, "optimizer")
    counted = {name: size for name, size in parts.items() if name not in unsure}
    least = here * sum(counted.values())
    largest = max(counted, key=lambda name: counted[name])
    of_which = f"{slot_text(config)}, most of it for {largest}"
    if least > MARGIN * memory.most:
        raise OutOfMemory(
            f"this run cannot fit into memory: it takes about {least / GB:,.1f} GB ({of_which}), and there are"
            f" {memory.most / GB:,.1f} GB. {ways_out(config)}"
        )
    if peak > memory.free:
        log(
            f"warning: memory may run out: this run takes about {peak / GB:,.1f} GB at its peak ({of_which}), and"
            f" {memory.free / GB:,.1f} GB are free. {ways_out(config)}"
        )


@contextlib.contextmanager
def out_of_memory_named(config: dict[str, Any], run: RunContext) -> Iterator[None]:
    """Say where memory ran out and what helps, where the block ends with an error that means this.

    Args:
        config: The run's, resolved.
        run: Knows the step.

    Raises:
        OutOfMemory: Instead of PyTorch's or NumPy's error.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        when = "before the first step" if run.state is None else f"at step {run.state.step + 1:,}"
        asked = re.search(r"[Tt]ried to allocate ([\d.]+) (\w+)", str(error))
        amount = ""
        if asked:
            more = f"{compact(int(asked[1]))}B" if asked[2] == "bytes" else f"{asked[1]} {asked[2]}"
            amount = f" (asked for {more} more)"
        raise OutOfMemory(f"out of memory {when}, with {slot_text(config)}{amount}. {ways_out(config)}") from error


def slot_text(config: dict[str, Any]) -> str:
    """Describe the shape of a slot, such as `slots of 8 streams x 256 tokens`."""
    data, reads = config["data"], largest_slot(config).reads
    size = f"{data['slot_streams']} streams x {data['bptt']:,} tokens"
    if reads != "windows":
        size = f"{data['tokens_per_slot']:,} tokens in {reads}"
    return f"slots of {size} in {config['trainer']['precision']}"


def ways_out(config: dict[str, Any]) -> str:
    """Name three settings that take less memory, those that change the run least first."""
    data, ways = config["data"], []
    streams, of_windows = data["slot_streams"], largest_slot(config).reads == "windows"
    if not of_windows:
        ways.append(
            f"data.tokens_per_slot={data['tokens_per_slot'] // 2} data.slots={data['slots'] * 2} (as many tokens a step)"
        )
    elif streams > 1:
        fewer = next(streams // divisor for divisor in range(2, streams + 1) if streams % divisor == 0)
        ways.append(f"data.slot_streams={fewer} data.slots={data['slots'] * streams // fewer} (as many tokens a step)")
    if not config["model"]["recompute"]:
        ways.append("model.recompute=true (activations are computed twice)")
    ways.append(
        f"data.bptt={max(2, data['bptt'] // 2)}" if of_windows else f"data.max_len={max(1, data['max_len'] // 2)}"
    )
    if config["trainer"]["precision"] == "32-true" and config["trainer"]["accelerator"] != "cpu":
        ways.append("trainer.precision=bf16-mixed")
    ways.append("a smaller model (model.n_layers, model.dim)")
    return f"Less is taken by: {'; '.join(ways[:3])}"
