"""Several objectives in one run: they divide each step's slots, or take turns with whole steps."""

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
from xlm_train.data.turns import UNWEIGHTED, Weight
from xlm_train.model.flops import Row
from xlm_train.model.transformer import XLM
from xlm_train.objectives.objective import Objective
from xlm_train.runtime.errors import ConfigError

ORDERS = ("quota", "turns")  # the values of objective.order


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

    By `quota` a step has slots of all of them, and averages their losses. In `turns` a step is of one stream alone: all
    streams of the first part in an order drawn again in each iteration, then those of the next part, as the original's
    loop (see data/turns.py).

    Args:
        text: what is read.
        parts: name -> objective, given the text.
        shares: by quota: name -> share of the slots; they need not sum to 1.
        weights: name -> weight of its losses, a number or points "iteration:weight" of a piecewise linear function,
            such as "0:1,100000:0.1,300000:0"; 1 where not given. By quota an iteration is a step.
        order: quota or turns.

    Raises:
        ConfigError: with every value that cannot work.
    """

    def __init__(
        self,
        text: TrainingText,
        parts: Mapping[str, Callable[[TrainingText], Objective]],
        shares: Mapping[str, float] | None = None,
        weights: Mapping[str, float | str] | None = None,
        order: str = "quota",
    ) -> None:
        shares, self.in_turns = shares or {}, order == "turns"
        self.weights, problems = _weights(weights or {}, parts, self.in_turns)
        if order not in ORDERS:
            problems.append(f"order={order}: must be one of {', '.join(ORDERS)}")
        if self.in_turns and shares:
            problems.append(
                "shares: objectives that take turns have no shares: set objective.order=quota, or leave them out"
            )
        if not self.in_turns and (not parts or parts.keys() != shares.keys()):
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
    def rows(self) -> Mapping[str, Row]:
        """Those of all parts."""
        return {stream: row for part in self.parts.values() for stream, row in part.rows.items()}

    @property
    def directions(self) -> Sequence[tuple[str, str]]:
        """The directions that the parts learn to translate, each once."""
        return list(dict.fromkeys(pair for part in self.parts.values() for pair in getattr(part, "directions", ())))

    @property
    def streams(self) -> Sequence[Stream]:
        """The streams of all parts, each part's shares scaled to its own; in turns each has a step an iteration."""
        found: list[Stream] = []
        for name, streams in self._streams.items():
            if self.in_turns:
                found += [
                    replace(stream, share=Fraction(1), weight=self.weights[name], turn=name) for stream in streams
                ]
                continue
            scale = Fraction(str(self.shares[name])) / sum(stream.share for stream in streams)
            found += [replace(stream, share=stream.share * scale, weight=self.weights[name]) for stream in streams]
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


def _weights(
    given: Mapping[str, float | str], parts: Mapping[str, Any], in_turns: bool
) -> tuple[dict[str, Weight], list[str]]:
    """The weight of each part, and what is wrong with those given."""
    problems = [
        f"weights.{name}: there is no such part among {', '.join(parts)}" for name in given if name not in parts
    ]
    weights = dict.fromkeys(parts, UNWEIGHTED)
    for name in given.keys() & parts.keys():
        try:
            weights[name] = Weight.parse(given[name])
        except ConfigError as error:
            problems += [f"weights.{name}={problem}" for problem in error.problems]
            continue
        if not in_turns and any(value == 0 for _, value in weights[name].points):
            problems.append(
                f"weights.{name}={given[name]}: becomes 0, and by quota its slots would be read for nothing: use a small"
                " weight, or objective.order=turns"
            )
    return weights, problems
