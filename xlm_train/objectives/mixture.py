"""Several objectives in one run: each step's slots are divided among them by quota."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlm_train.data.datamodule import Batch
from xlm_train.data.order import Slot, Stream
from xlm_train.data.training_text import TrainingText
from xlm_train.model.transformer import XLM
from xlm_train.objectives.objective import Objective
from xlm_train.runtime.errors import ConfigError


@dataclass(frozen=True)
class PartBatch:
    """A slot's batch, and the name of the objective that made it."""

    part: str
    inputs: Batch

    def to(self, device: torch.device, non_blocking: bool = False) -> PartBatch:
        """Return it on a device."""
        return replace(self, inputs=self.inputs.to(device, non_blocking))

    def pin_memory(self) -> PartBatch:
        """Return it in memory that a GPU can read by itself."""
        return replace(self, inputs=self.inputs.pin_memory())


class Mixture:
    """Objectives that share a run: a slot belongs to one of them, in closed form, as slots do to languages.

    The original draws: each of its updates is of one objective, which a step of several slots averages.

    Args:
        text: what is read.
        parts: name -> objective, given the text.
        shares: name -> share of the slots; they need not sum to 1.

    Raises:
        ConfigError: with every value that cannot work.
    """

    def __init__(
        self,
        text: TrainingText,
        parts: Mapping[str, Callable[[TrainingText], Objective]],
        shares: Mapping[str, float],
    ) -> None:
        problems = []
        if not parts or parts.keys() != shares.keys():
            problems.append(f"shares has {', '.join(shares) or 'none'}: one is needed for each of {', '.join(parts)}")
        problems += [
            f"shares.{name}={share}: must be above 0, and finite"
            for name, share in shares.items()
            if not 0 < share < math.inf
        ]
        self.parts: dict[str, Objective] = {}
        for name, make in parts.items():
            try:
                self.parts[name] = make(text)
            except ConfigError as error:
                problems += [f"parts.{name}.{problem}" for problem in error.problems]
        kinds = {part.evaluation for part in self.parts.values()}
        if len(kinds) > 1:
            problems.append(f"parts are scored in different ways, {' and '.join(sorted(kinds))}: leave one out")
        if problems:
            raise ConfigError(problems)
        self.shares = shares
        self._streams = {name: part.streams for name, part in self.parts.items()}
        self._part_of = {stream.name: name for name, streams in self._streams.items() for stream in streams}

    @property
    def evaluation(self) -> str:
        """How all of them are scored."""
        return next(iter(self.parts.values())).evaluation

    @property
    def mask_share(self) -> float | None:
        """The mean over the slots of all parts."""
        found = {name: part.mask_share for name, part in self.parts.items()}
        masked = {name: share for name, share in found.items() if share is not None}
        weight = sum(self.shares[name] for name in masked)
        return sum(self.shares[name] * share for name, share in masked.items()) / weight if masked else None

    @property
    def streams(self) -> Sequence[Stream]:
        """The streams of all parts, each part's shares scaled to its own."""
        found: list[Stream] = []
        for name, streams in self._streams.items():
            scale = Fraction(str(self.shares[name])) / sum(stream.share for stream in streams)
            found += [replace(stream, share=stream.share * scale) for stream in streams]
        return found

    def _part(self, slot: Slot) -> Objective:
        return self.parts[self._part_of[slot.stream]]

    def batch(self, slot: Slot, generator: np.random.Generator) -> PartBatch:
        """Make the batch of the part that the slot belongs to."""
        return PartBatch(self._part_of[slot.stream], self._part(slot).batch(slot, generator))

    def texts(self, slot: Slot) -> Sequence[tuple[str, NDArray[np.int64]]]:
        """List what that part reads."""
        return self._part(slot).texts(slot)

    def loss(self, model: XLM, batch: PartBatch) -> Tensor:
        """Compute the loss of the part that made the batch."""
        return self.parts[batch.part].loss(model, batch.inputs)

    def empty_batch(self) -> Any:
        """Make the first part's empty batch."""
        name, part = next(iter(self.parts.items()))
        return PartBatch(name, part.empty_batch())
