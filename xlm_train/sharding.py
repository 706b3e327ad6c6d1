"""Optimizer state divided among the processes (ZeRO stage 1; Rajbhandari et al. 2020)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

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


def gather(optimizer: torch.optim.Optimizer) -> None:
    """Bring a divided state together on the first process, before it is saved. A collective; nothing where undivided."""
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        optimizer.consolidate_state_dict(to=0)
