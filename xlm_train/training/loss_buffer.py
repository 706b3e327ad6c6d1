"""The loss of every slot, kept until the next report.

Adding an entry never waits for the device and exchanges nothing. `reduce` is the one collective: it puts the processes'
entries together, so every process then knows the loss of every slot of every step, whoever ran it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepLosses:
    """Losses of one global step.

    Args:
        step: its number.
        losses: nats per target of each slot.
        streams: number of each slot's stream among the objective's.
        grad_norm: before clipping.
    """

    step: int
    losses: list[float]
    streams: list[int]
    grad_norm: float

    def by_stream(self) -> dict[int, float]:
        """Return the mean loss of each stream that the step read."""
        return mean_by_stream([self])


def mean_by_stream(steps: Sequence[StepLosses]) -> dict[int, float]:
    """Return each stream's mean loss over steps, in exact summation: the same on any number of processes."""
    found: defaultdict[int, list[float]] = defaultdict(list)
    for step in steps:
        for stream, loss in zip(step.streams, step.losses, strict=True):
            found[stream].append(loss)
    return {stream: math.fsum(losses) / len(losses) for stream, losses in sorted(found.items())}


@dataclass
class _Open:
    """A step of which this process has only its own slots."""

    step: int
    losses: Tensor  # (slots, 2) float64 on the device: loss and stream, zero where another process has the slot
    grad_norm: Tensor | None = None


@dataclass
class LossBuffer:
    """Losses of the steps since the last report."""

    reduced: list[StepLosses] = field(default_factory=list)
    _open: list[_Open] = field(default_factory=list)

    def begin(self, step: int, slots: int, device: torch.device) -> None:
        """Open the entry of a step of `slots` slots."""
        self._open.append(_Open(step, torch.zeros(slots, 2, dtype=torch.float64, device=device)))

    def add(self, slot: int, stream: int, loss: Tensor) -> None:
        """Add the loss of one slot to the step opened last; it is not read here."""
        entry = self._open[-1].losses
        entry[slot, 0] = loss.detach()
        entry[slot, 1].fill_(stream)

    def close(self, grad_norm: Tensor) -> None:
        """End the entry of a step with its gradient's norm (the same on all processes)."""
        self._open[-1].grad_norm = grad_norm

    def reduce(self, world_size: int) -> list[StepLosses]:
        """Exchange what is open and return the newly whole steps. A collective; waits for the device."""
        if not self._open:
            return []
        losses = torch.stack([entry.losses for entry in self._open])
        norms = [torch.as_tensor(math.nan if e.grad_norm is None else e.grad_norm).double() for e in self._open]
        if world_size > 1:
            torch.distributed.all_reduce(losses)
        values, scalars = losses.cpu(), torch.stack([norm.to(losses.device) for norm in norms]).tolist()
        steps = [
            StepLosses(entry.step, value[:, 0].tolist(), [int(x) for x in value[:, 1].tolist()], norm)
            for entry, value, norm in zip(self._open, values, scalars, strict=True)
        ]
        self._open.clear()
        self.reduced += steps
        return steps

    def drop(self, step: int) -> None:
        """Leave a reduced step out of the next report."""
        self.reduced = [entry for entry in self.reduced if entry.step != step]

    def take(self) -> list[StepLosses]:
        """Return the reduced steps since the last report; the next report begins after them."""
        taken, self.reduced = self.reduced, []
        return taken

    def state(self) -> list[tuple[Any, ...]]:
        """Return the entries as plain values, for a checkpoint; everything must have been reduced."""
        assert not self._open, "reduce before saving"
        return [astuple(entry) for entry in self.reduced]

    def restore(self, state: Sequence[Sequence[Any]]) -> None:
        """Take over what `state` returned."""
        self.reduced, self._open = [StepLosses(*entry) for entry in state], []
