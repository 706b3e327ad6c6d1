"""The machine: what a reader of the figures must know, whether the wheel has code for its GPUs, what they are to reach."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from xlm_train.config.overrides import config_folder

CUDA_INDEX = "https://download.pytorch.org/whl/cu126"


class Failed(Exception):
    """A part of the benchmark cannot go on; the message says why."""


@dataclass(frozen=True)
class Goal:
    """cluster: the file of configs/cluster that describes the device. share: of its peak which one GPU is to reach."""

    cluster: str
    share: float | None


GOALS = {
    "V100": Goal("v100_1", 0.50),
    "A100": Goal("a100_1", 0.60),
    "H100": Goal("h100_1", 0.45),
    "H200": Goal("h200_1", None),
    "T4": Goal("t4_1", None),
    "RTX 4090": Goal("rtx4090_1", None),
}


def goal_of(device: str) -> Goal | None:
    """The goal for a device of this name, or None where its peak is not known here."""
    return next((goal for name, goal in GOALS.items() if name in device), None)


def peak_tflops(precision: str) -> float | None:
    """Dense peak of the first GPU in this precision, from configs/cluster; None where it is not known."""
    goal = goal_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if goal is None:
        return None
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        cluster = compose("plan", overrides=[f"cluster={goal.cluster}"]).cluster
    return cluster.peak_tflops.get(precision)  # type: ignore[no-any-return]


def versions() -> dict[str, Any]:
    """Everything a reader of the figures must know about the machine."""
    gpu = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if gpu else None,
        "driver": nvidia_smi("driver_version"),
        "power_limit": nvidia_smi("power.limit"),
        "clocks": nvidia_smi("clocks.max.sm"),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "compute_capability": [torch.cuda.get_device_capability(number) for number in range(torch.cuda.device_count())],
        "memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if gpu else None,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def nvidia_smi(field: str) -> list[str]:
    """One field of every GPU that the driver sees; nothing where there is no driver."""
    try:
        words = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.split("\n")[:-1]
    except (OSError, subprocess.SubprocessError):
        return []


def check_wheel() -> None:
    """Raises Failed, with the line that fixes it, where the installed PyTorch has no code for this machine's GPUs."""
    seen = nvidia_smi("name")
    if seen and not torch.cuda.is_available():
        raise Failed(
            f"the driver sees {', '.join(seen)}, PyTorch {torch.__version__} sees no GPU: a wheel for CPUs, or a driver older than"
            f" its CUDA {torch.version.cuda}. pip install --force-reinstall 'torch<2.15' --index-url {CUDA_INDEX}"
        )
    for number in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(number)
        if not covers(torch.cuda.get_arch_list(), capability):
            raise Failed(missing_code(torch.cuda.get_device_name(number), capability))


def covers(architectures: Collection[str], capability: tuple[int, int]) -> bool:
    """Whether a wheel built for `architectures` (torch.cuda.get_arch_list()) runs on a device.

    sm_XY holds machine code for compute capability X.Y and later ones of the same X; compute_XY is compiled on the
    spot for any later device.
    """
    for name in architectures:
        if match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name):
            kind, version, special = match[1], (int(match[2]), int(match[3])), match[4]
            if version == capability or (
                not special and version < capability and (kind == "compute" or version[0] == capability[0])
            ):
                return True
    return False


def missing_code(name: str, capability: tuple[int, int]) -> str:
    """The message, with what to install, where the wheel has no code for a device."""
    what = f"PyTorch {torch.__version__} has no code for {name} (sm_{capability[0]}{capability[1]})"
    if capability == (7, 0):
        return (
            f"{what}: PyPI's wheels have it up to 2.10, those for CUDA 12.6 up to 2.14. pip install --force-reinstall 'torch<2.11'"
            f"   or   pip install --force-reinstall 'torch<2.15' --index-url {CUDA_INDEX}"
        )
    return f"{what}: see https://pytorch.org/get-started/locally for a wheel that has"


def runs(precision: str) -> bool:
    """bfloat16 only where the device computes in it (compute capability 8.0); before, PyTorch emulates it."""
    return precision != "bf16-mixed" or not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0)
