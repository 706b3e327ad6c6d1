"""What `trainer.precision=auto` means: the fastest on this machine, or what a run that goes on began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.device import cpu_multiplies_bfloat16
from xlm_train.runtime.run_folder import parse_config
from xlm_train.runtime.run_store import RunStore
from xlm_train.runtime.storage import url_problem


def settle_precision(values: dict[str, Any]) -> str | None:
    """Replace trainer.precision=auto, which is part of no run's identity, by the precision that it means.

    A run with checkpoints keeps its precision on every machine; where this one cannot do it, the config's rules say so.

    Args:
        values: A resolved training config, changed in place; what is missing or wrong in it is told elsewhere.

    Returns:
        A line that says what was chosen and why; None where nothing was.
    """
    trainer = values.get("trainer")
    if not isinstance(trainer, dict) or trainer.get("precision") != "auto":
        return None
    precision, reason = _stored(values) or _fastest(trainer.get("accelerator") != "cpu" and torch.cuda.is_available())
    trainer["precision"] = precision
    return f"trainer.precision=auto: {precision}, {reason}"


def _fastest(gpu: bool) -> tuple[str, str]:
    if gpu:
        bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
        name = torch.cuda.get_device_name()
        return ("bf16-mixed" if bfloat16 else "16-mixed"), f"the fastest on {name}"
    if cpu_multiplies_bfloat16():
        return "bf16-mixed", "as this processor multiplies bfloat16 faster than float32"
    return "32-true", "as this processor has no products of bfloat16"


def _stored(values: dict[str, Any]) -> tuple[str, str] | None:
    """The precision of an earlier start of this run, where that left a checkpoint."""
    paths, name = values.get("paths"), values.get("run_name")
    if not isinstance(paths, dict) or not isinstance(name, str):
        return None
    folder = Path(str(paths.get("runs"))) / name
    file = folder / "config.yaml"
    url = (values.get("storage") or {}).get("url")
    if file.is_file() and checkpoint_file.any_in(folder / "checkpoints"):
        config = file.read_bytes()
    elif (
        isinstance(url, str)
        and url_problem(url) is None
        and (found := RunStore(url, name, folder, 0.0).read("config.yaml"))
    ):
        config = found
    else:
        return None
    began = parse_config(config, file).get("trainer")
    precision = began.get("precision") if isinstance(began, dict) else None
    return None if precision is None else (str(precision), "with which this run began")
