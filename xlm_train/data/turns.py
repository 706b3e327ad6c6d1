"""Which stream a step is of where streams take turns, and how much a stream's loss weighs as a run goes on.

The original's loop: in an iteration every stream has one update of its own, in an order drawn again each time, and
weights ("0:1,100000:0.1,300000:0") are functions of the iteration. A stream whose weight is 0 has no update. All of it
is known in closed form for any step.

A difference: the original draws the directions of its supervised updates with replacement, so one may come twice in
an iteration and another not at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from xlm_train.data.permutation import permute
from xlm_train.runtime.errors import ConfigError


@dataclass(frozen=True)
class Weight:
    """A weight that is piecewise linear in the iteration, and holds its last value from the last point on.

    Args:
        points: (iteration, value), the first at iteration 0.
    """

    points: tuple[tuple[int, float], ...] = ((0, 1.0),)

    @classmethod
    def parse(cls, value: float | str) -> Weight:
        """Read a number, or "0:1,100000:0.1,300000:0".

        Raises:
            ConfigError: It is neither.
        """
        try:
            parts = [part.split(":") for part in str(value).split(",")]
            if len(parts) == 1 and len(parts[0]) == 1:
                points = [(0, float(parts[0][0]))]
            else:
                points = [(int(at), float(weight)) for at, weight in parts]
        except ValueError:
            points = []
        rising = all(a < b for (a, _), (b, _) in pairwise(points))
        if not points or points[0][0] != 0 or not rising or not all(0 <= weight < math.inf for _, weight in points):
            raise ConfigError(
                f"{value}: a weight is a number from 0, or points iteration:weight with rising iterations, the first 0,"
                " such as '0:1,100000:0.1,300000:0'"
            )
        return cls(tuple(points))

    def at(self, iteration: int) -> float:
        """The value at an iteration."""
        for (start, before), (end, after) in pairwise(self.points):
            if start <= iteration < end:
                return before + (after - before) * (iteration - start) / (end - start)
        return self.points[-1][1]


UNWEIGHTED = Weight()


@dataclass(frozen=True)
class Segment:
    """Iterations in which the same streams have a weight above 0.

    Args:
        iteration: The first one.
        step: The first step.
        streams: Those that take turns.
        before: How many steps each stream had earlier.
    """

    iteration: int
    step: int
    streams: tuple[str, ...]
    before: Mapping[str, int]


class Turns:
    """The stream of each step.

    Args:
        groups: Group of streams -> stream -> its weight. In an iteration one group comes after the other; within a group
            the order is drawn.
        seed: Of the draws.

    Raises:
        ConfigError: From some iteration on every weight is 0.
    """

    def __init__(self, groups: Mapping[str, Mapping[str, Weight]], seed: int) -> None:
        self.groups = {name: tuple(streams) for name, streams in groups.items()}
        self.weights = {stream: weight for streams in groups.values() for stream, weight in streams.items()}
        self.seed = seed
        # A weight is 0 or not all the way between two of its points; at a point itself it may be.
        bounds = sorted({at + after for weight in self.weights.values() for at, _ in weight.points for after in (0, 1)})
        self._drawn: tuple[int, Sequence[str]] = (-1, ())  # the last iteration's order
        self.segments: list[Segment] = []
        step, before = 0, dict.fromkeys(self.weights, 0)
        idle_from: int | None = None
        for start, end in zip(bounds, [*bounds[1:], None], strict=True):
            active = tuple(name for name, weight in self.weights.items() if weight.at(start) > 0)
            idle_from = None if active else idle_from if idle_from is not None else start
            if active:
                self.segments.append(Segment(start, step, active, before))
            if end is not None:
                step += (end - start) * len(active)
                before = {name: count + (end - start) * (name in active) for name, count in before.items()}
        if idle_from is not None:
            raise ConfigError(
                f"objective.weights: all are 0 from iteration {idle_from:,} on: nothing is left to learn from"
            )

    def _segment(self, step: int) -> Segment:
        return next(segment for segment in reversed(self.segments) if segment.step <= step)

    def _iteration(self, segment: Segment, number: int) -> Sequence[str]:
        """The streams of an iteration in their order."""
        if self._drawn[0] != number:
            found: list[str] = []
            for group, streams in self.groups.items():
                places = permute(np.arange(len(streams)), len(streams), key=(self.seed, f"turns of {group}", number))
                found += [streams[place] for place in places if streams[place] in segment.streams]
            self._drawn = number, found
        return self._drawn[1]

    def at(self, step: int) -> tuple[str, float]:
        """The stream of a step, and its weight."""
        segment = self._segment(step)
        iterations, place = divmod(step - segment.step, len(segment.streams))
        number = segment.iteration + iterations
        stream = self._iteration(segment, number)[place]
        return stream, self.weights[stream].at(number)

    def before(self, step: int) -> dict[str, int]:
        """Count the steps that each stream has had in steps 0 .. step-1."""
        segment = self._segment(step)
        iterations, place = divmod(step - segment.step, len(segment.streams))
        begun = self._iteration(segment, segment.iteration + iterations)[:place]
        return {
            name: count + iterations * (name in segment.streams) + (name in begun)
            for name, count in segment.before.items()
        }
