"""The loss of every slot, kept until the next report.

Adding an entry never waits for the device and exchanges nothing. `settle` is the one collective: it puts the
processes' entries together, so every process then knows the loss of every slot of every step, whoever ran it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepLosses:
    """One global step. losses: nats per token of each slot; languages: id of each slot; grad_norm: before clipping."""

    step: int
    losses: list[float]
    languages: list[int]
    grad_norm: float

    def by_language(self) -> dict[int, float]:
        """Mean loss of each language that the step read."""
        return mean_by_language([self])


def mean_by_language(steps: list[StepLosses]) -> dict[int, float]:
    """Mean loss of each language over steps, in exact summation: the same on any number of processes."""
    found: defaultdict[int, list[float]] = defaultdict(list)
    for step in steps:
        for language, loss in zip(step.languages, step.losses, strict=True):
            found[language].append(loss)
    return {language: math.fsum(losses) / len(losses) for language, losses in sorted(found.items())}


@dataclass
class _Open:
    """A step this process has only its own slots of."""

    step: int
    losses: Tensor  # (slots, 2) float64 on the device: loss and language, zero where another process has the slot
    grad_norm: Tensor | None = None


@dataclass
class Ledger:
    """Entries of the steps since the last report. slots: of a global step."""

    slots: int
    settled: list[StepLosses] = field(default_factory=list)
    _open: list[_Open] = field(default_factory=list)

    def begin(self, step: int, device: torch.device) -> None:
        self._open.append(_Open(step, torch.zeros(self.slots, 2, dtype=torch.float64, device=device)))

    def add(self, slot: int, language: int, loss: Tensor) -> None:
        """The loss of one slot of the step begun last; not read here."""
        entry = self._open[-1].losses
        entry[slot, 0] = loss.detach()
        entry[slot, 1].fill_(language)

    def close(self, grad_norm: Tensor) -> None:
        """The gradient's norm (the same on all processes) ends the entry of a step."""
        self._open[-1].grad_norm = grad_norm

    def settle(self, world_size: int) -> list[StepLosses]:
        """Exchange what is open; returns the newly whole steps. A collective; waits for the device."""
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
        self.settled += steps
        return steps

    def drop(self, step: int) -> None:
        """Leave a settled step out of the next report."""
        self.settled = [entry for entry in self.settled if entry.step != step]

    def take(self) -> list[StepLosses]:
        """The settled steps since the last report; the next report begins after them."""
        taken, self.settled = self.settled, []
        return taken

    def state(self) -> list[tuple[Any, ...]]:
        """For a checkpoint; everything must be settled."""
        assert not self._open, "settle before saving"
        return [astuple(entry) for entry in self.settled]

    def restore(self, state: list[tuple[Any, ...]]) -> None:
        self.settled, self._open = [StepLosses(*entry) for entry in state], []
