"""Combinations of values in a training config that cannot work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from xlm_train.config.schema import Rule
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.device import cpu_multiplies_bfloat16
from xlm_train.runtime.storage import is_url, url_problems


def _gpus(accelerator: str) -> int:
    return torch.cuda.device_count() if accelerator != "cpu" else 0


def _path(path: str) -> Iterator[str]:
    if is_url(path):
        yield from url_problems("data.path", path)
    elif not Path(path).is_dir():
        yield f"data.path={path}: there is no such folder; xlm-prep makes one"


def _runs(runs: str) -> Iterator[str]:
    if is_url(runs):  # any other URL stands in storage.url by now
        yield from url_problems("paths.runs", runs, writes=True)
    elif runs == "~" or runs.startswith("~/"):  # of a config: on the command line it is replaced
        yield f"paths.runs={runs}: ~ is not replaced in a config: ${{oc.env:HOME}}{runs[1:]}"


def _store(url: str | None) -> Iterator[str]:
    if url is not None:
        yield from url_problems("storage.url", url, writes=True)


def _longest_window(bptt: int, longest: int) -> Iterator[str]:
    if bptt > longest >= 1:
        yield (f"data.bptt={bptt} is longer than model.max_positions={longest}: data.bptt={longest} is the longest")


def _length(max_steps: int | None, max_tokens: int | None) -> Iterator[str]:
    if max_steps is None and max_tokens is None:
        yield "trainer.max_steps and trainer.max_tokens are both null: say how long to train"


def _init(init_optimizer: bool, init_from: str | None) -> Iterator[str]:
    if init_optimizer and init_from is None:
        yield "init_optimizer=true: there is no checkpoint to take it from: give init_from=FILE"


def _sides(init_from: str | None, init_encoder: str | None, init_decoder: str | None) -> Iterator[str]:
    for key, path in (("init_encoder", init_encoder), ("init_decoder", init_decoder)):
        if path is not None and init_from is not None:
            yield f"{key}={path}: init_from={init_from} gives both sides their weights: leave one of them out"


def _weights(
    init_from: str | None, init_encoder: str | None, init_decoder: str | None, runs: str, run: str, url: str | None
) -> Iterator[str]:
    """What a run begins with must be there; it is read once, so a run that goes on needs it no more."""
    begun = url is not None or checkpoint_file.any_in(Path(runs) / run / "checkpoints")
    for key, path in (("init_from", init_from), ("init_encoder", init_encoder), ("init_decoder", init_decoder)):
        if path is not None and is_url(path):
            yield from url_problems(key, path)
        elif path is not None and not begun and not Path(path).exists():
            yield f"{key}={path}: there is no such file or folder"


def _processes(devices: int, nodes: int, slots: int) -> Iterator[str]:
    if devices * nodes > slots:
        yield (
            f"trainer.devices x trainer.nodes = {devices * nodes} processes, but data.slots={slots}: a step has only so"
            f" many slots to divide; at most {slots} processes work"
        )


def _one_process(devices: int, nodes: int, compression: str | None, sharding: str | None) -> Iterator[str]:
    for key, value in (("gradient_compression", compression), ("sharding", sharding)):
        if value is not None and devices * nodes == 1:
            yield f"trainer.{key}={value}: there is one process: nothing is exchanged or divided"


def _either(compression: str | None, sharding: str | None) -> Iterator[str]:
    if compression is not None and sharding == "fsdp":
        yield f"trainer.gradient_compression={compression}: not with trainer.sharding=fsdp, which exchanges gradients itself"


def _compression(compression: str | None, precision: str) -> Iterator[str]:
    if compression == "fp16" and precision != "16-mixed":
        yield (
            "trainer.gradient_compression=fp16: without the loss scale of trainer.precision=16-mixed small gradients"
            " would become 0"
        )


def _powersgd(compression: str | None, precision: str, callbacks: dict[str, Any]) -> Iterator[str]:
    skips = (callbacks.get("guard") or {}).get("policy") == "skip"
    if compression == "powersgd" and (precision == "16-mixed" or skips):
        yield (
            "trainer.gradient_compression=powersgd: a gradient that overflows stays in its error feedback and spoils all"
            " that follow: use trainer.precision=bf16-mixed or 32-true, and callbacks.guard.policy=stop or rollback"
        )


def _powersgd_here(compression: str | None, accelerator: str) -> Iterator[str]:
    if compression == "powersgd" and _gpus(accelerator) == 0:
        yield (
            "trainer.gradient_compression=powersgd: on CPUs (gloo) its reductions start in another order on each process"
            " and fail; trainer.gradient_compression=fp16 works"
        )


def compression_problems(
    compression: str | None, precision: str, sharding: str | None, callbacks: dict[str, Any]
) -> Iterator[str]:
    """What keeps a compression of gradients from working, on whatever devices.

    Args:
        compression: `trainer.gradient_compression`.
        precision: `trainer.precision`.
        sharding: `trainer.sharding`.
        callbacks: The config's section: it counts what `guard` does about a bad step.
    """
    yield from _either(compression, sharding)
    yield from _compression(compression, precision)
    yield from _powersgd(compression, precision, callbacks)


def _devices(accelerator: str, devices: int) -> Iterator[str]:
    gpus = _gpus(accelerator)
    if accelerator == "gpu" and gpus == 0:
        yield "trainer.accelerator=gpu: this PyTorch sees no GPU; trainer.accelerator=cpu works everywhere"
    elif gpus and devices > gpus and "WORLD_SIZE" not in os.environ:
        yield f"trainer.devices={devices}: this machine has {gpus} GPUs; trainer.devices={gpus}"


def _precision(precision: str, accelerator: str, cpu_fp16: bool) -> Iterator[str]:
    gpus = _gpus(accelerator)
    if precision == "16-mixed" and gpus == 0 and not cpu_fp16:
        yield (
            "trainer.precision=16-mixed on a CPU would be slow and is for tests only:"
            " trainer.precision=32-true, or debug.cpu_fp16=true to insist"
        )
    if precision == "bf16-mixed" and gpus and torch.cuda.get_device_capability() < (8, 0):
        yield (
            f"trainer.precision=bf16-mixed: {torch.cuda.get_device_name()} only emulates bfloat16 (it needs compute"
            " capability 8.0); trainer.precision=16-mixed"
        )
    if precision == "bf16-mixed" and not gpus and not cpu_multiplies_bfloat16():
        yield (
            "trainer.precision=bf16-mixed: this processor has neither AVX512_BF16 nor AMX nor ARM's BF16: emulated, bfloat16"
            " is slower than float32; trainer.precision=32-true, under another run_name where a run has begun"
        )


RULES = [
    Rule(("data.path",), _path),
    Rule(("paths.runs",), _runs),
    Rule(("storage.url",), _store),
    Rule(("data.bptt", "model.max_positions"), _longest_window),
    Rule(("trainer.max_steps", "trainer.max_tokens"), _length),
    Rule(("init_optimizer", "init_from"), _init),
    Rule(("init_from", "init_encoder", "init_decoder"), _sides),
    Rule(("init_from", "init_encoder", "init_decoder", "paths.runs", "run_name", "storage.url"), _weights),
    Rule(("trainer.devices", "trainer.nodes", "data.slots"), _processes),
    Rule(("trainer.devices", "trainer.nodes", "trainer.gradient_compression", "trainer.sharding"), _one_process),
    Rule(("trainer.gradient_compression", "trainer.sharding"), _either),
    Rule(("trainer.gradient_compression", "trainer.precision"), _compression),
    Rule(("trainer.gradient_compression", "trainer.precision", "callbacks"), _powersgd),
    Rule(("trainer.gradient_compression", "trainer.accelerator"), _powersgd_here),
    Rule(("trainer.accelerator", "trainer.devices"), _devices),
    Rule(("trainer.precision", "trainer.accelerator", "debug.cpu_fp16"), _precision),
]
