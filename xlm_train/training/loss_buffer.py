"""The losses of every step, kept until the next report.

Adding a slot's loss never waits for the device and exchanges nothing. `reduce` is the one collective: it adds up the
processes' sums, two numbers for each stream, however many slots and processes there are. Which slot had which loss is
asked for only of a step that was found bad (`slots_of`).

Losses are float32, sums float64: those of like losses are exact, so they are the same on any number of processes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class SlotLoss(NamedTuple):
    """What one slot of a step came to.

    Args:
        slot: its number within the step.
        stream: number of its stream among the objective's.
        loss: nats per target.
    """

    slot: int
    stream: int
    loss: float


@dataclass(frozen=True)
class StepLosses:
    """Losses of one global step.

    Args:
        step: its number.
        streams: of each stream that the step read, by its number among the objective's: the sum of its slots' losses in nats
            per target, and how many slots.
        grad_norm: before clipping.
    """

    step: int
    streams: dict[int, tuple[float, int]]
    grad_norm: float

    @classmethod
    def of_slots(cls, step: int, losses: Sequence[float], streams: Sequence[int], grad_norm: float) -> StepLosses:
        """Add up each slot's loss and stream, as which earlier versions kept a step in a checkpoint.

        Args:
            step: its number.
            losses: of each slot, in nats per target.
            streams: of each slot the number of its stream.
            grad_norm: before clipping.
        """
        sums = {
            stream: [loss for loss, own in zip(losses, streams, strict=True) if own == stream]
            for stream in sorted({*streams})
        }
        return cls(step, {stream: (math.fsum(found), len(found)) for stream, found in sums.items()}, grad_norm)

    def by_stream(self) -> dict[int, float]:
        """Return the mean loss of each stream that the step read."""
        return mean_by_stream([self])


def mean_by_stream(steps: Iterable[StepLosses]) -> dict[int, float]:
    """Return each stream's mean loss over the slots of some steps."""
    found: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
    for step in steps:
        for stream, sum_and_slots in step.streams.items():
            found[stream].append(sum_and_slots)
    return {stream: _mean(sums) for stream, sums in sorted(found.items())}


def mean(steps: Iterable[StepLosses]) -> float:
    """Return the mean loss over all slots of some steps."""
    return _mean([sum_and_slots for step in steps for sum_and_slots in step.streams.values()])


def _mean(sums: Sequence[tuple[float, int]]) -> float:
    return math.fsum(total for total, _ in sums) / sum(slots for _, slots in sums)


@dataclass
class _Open:
    """A step of which this process has its own slots: number, stream, loss on the device."""

    step: int
    slots: list[tuple[int, int, Tensor]] = field(default_factory=list)
    grad_norm: Tensor | None = None


@dataclass
class LossBuffer:
    """Losses of the steps since the last report."""

    reduced: list[StepLosses] = field(default_factory=list)
    _open: list[_Open] = field(default_factory=list)
    _own: dict[int, list[SlotLoss]] = field(default_factory=dict)  # this process's slots of the steps reduced last

    def begin(self, step: int) -> None:
        """Open the entry of a step."""
        self._open.append(_Open(step))

    def add(self, slot: int, stream: int, loss: Tensor) -> None:
        """Add the loss of one slot to the step opened last; it is not read here.

        Args:
            slot: its number within the step.
            stream: number of its stream among the objective's.
            loss: a scalar in nats per target, on the device.
        """
        self._open[-1].slots.append((slot, stream, loss.detach()))

    def close(self, grad_norm: Tensor) -> None:
        """End the entry of a step with its gradient's norm (the same on all processes)."""
        self._open[-1].grad_norm = grad_norm

    def reduce(self, shared_streams: int | None = None) -> list[StepLosses]:
        """Add up what is open over all processes and return the newly whole steps. A collective; waits for the device.

        Args:
            shared_streams: how many streams the objective has; None: this is the only process.
        """
        if not self._open:
            return []
        losses = torch.stack([loss for entry in self._open for _, _, loss in entry.slots])
        values = iter(losses.double().tolist())
        own = [[SlotLoss(slot, stream, next(values)) for slot, stream, _ in entry.slots] for entry in self._open]
        width = shared_streams or 1 + max(one.stream for slots in own for one in slots)
        sums = np.zeros((len(own), width, 2))
        for row, slots in zip(sums, own, strict=True):
            for one in slots:
                row[one.stream] += (one.loss, 1)
        if shared_streams is not None:
            shared = torch.from_numpy(sums).to(losses.device)
            torch.distributed.all_reduce(shared)
            sums = shared.cpu().numpy()
        norms = [torch.as_tensor(math.nan if e.grad_norm is None else e.grad_norm).double() for e in self._open]
        scalars = torch.stack([norm.to(losses.device) for norm in norms]).tolist()
        steps = [
            StepLosses(
                entry.step, {stream: (total, int(slots)) for stream, (total, slots) in enumerate(row) if slots}, norm
            )
            for entry, row, norm in zip(self._open, sums.tolist(), scalars, strict=True)
        ]
        self._own = {entry.step: slots for entry, slots in zip(self._open, own, strict=True)}
        self._open.clear()
        self.reduced += steps
        return steps

    def slots_of(self, step: int, world_size: int = 1) -> list[SlotLoss]:
        """Return every slot's loss of one of the steps that were reduced last, in order. A collective."""
        found: list[Any] = [self._own[step]]
        if world_size > 1:
            found = [None] * world_size
            torch.distributed.all_gather_object(found, self._own[step])
        return sorted(one for slots in found for one in slots)

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
        """Take over what `state` returned, or that of an earlier version."""
        self.reduced = [StepLosses(*entry) if len(entry) == 3 else StepLosses.of_slots(*entry) for entry in state]
        self._open, self._own = [], {}
