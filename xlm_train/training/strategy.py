"""Optimizer state divided among the processes (ZeRO stage 1; Rajbhandari et al. 2020)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer

SHARDINGS = ("zero",)


def sharded(make: functools.partial[torch.optim.Optimizer]) -> Callable[[Iterable[Tensor]], torch.optim.Optimizer]:
    """The same optimizer with each process keeping the moments of its part of the parameters only.

    Each parameter is updated by one process with the same arithmetic, then sent to the others: the weights are those of
    the undivided optimizer, bit for bit.
    """
    return lambda parameters: ZeroRedundancyOptimizer(parameters, optimizer_class=make.func, **make.keywords)  # type: ignore[arg-type]


def put_back(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict, whole or divided; each process of a divided optimizer keeps its part.

    ZeroRedundancyOptimizer moves the step counts to the CPU (torch 2.8 to 2.14), where a fused update cannot use them.
    """
    optimizer.load_state_dict(state)
    if isinstance(optimizer, ZeroRedundancyOptimizer) and optimizer.optim.defaults.get("fused"):
        for parameter, moments in optimizer.optim.state.items():
            moments["step"] = moments["step"].to(parameter.device)


def gather(optimizer: torch.optim.Optimizer) -> None:
    """Bring a divided state together on the first process, before it is saved. A collective; nothing where undivided."""
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        optimizer.consolidate_state_dict(to=0)
