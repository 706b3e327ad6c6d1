"""What a figure shows, and the rules that both of its drawings follow: svg.py's in a page and png.py's in a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

BUCKETS = 300  # of a curve: one for every two pixels of a wide plot
MOST_DOTS = 40  # of a line: more would run into each other
MARKS = {
    "start": "restart",
    "rollback": "rollback",
    "bad_batch": "bad batch",
    "skip": "skipped update",
    "no_score": "no score",
}
MARK_COLOURS = {"start": 7, "rollback": 3, "bad_batch": 5, "skip": 4, "no_score": 5}  # in the palette


@dataclass(frozen=True)
class Reduced:
    """A curve in at most 2 x BUCKETS points: mean, lowest and highest value around each x."""

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def reduce(x: ArrayLike, y: ArrayLike, buckets: int = BUCKETS) -> Reduced:
    """Reduce a curve of any length to what a plot can show.

    Args:
        x: Places, in any order.
        y: The values there.
        buckets: Width of the plot in points. Up to twice as many points stay as they are.

    Returns:
        The points by increasing x.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    order = np.argsort(xs, kind="stable")
    xs, ys = xs[order], ys[order]
    if len(xs) <= 2 * buckets:
        return Reduced(xs, ys, ys, ys)
    starts = np.unique(np.searchsorted(xs, np.linspace(xs[0], xs[-1], buckets, endpoint=False)))
    counts = np.diff([*starts, len(xs)])
    return Reduced(
        np.add.reduceat(xs, starts) / counts,
        np.add.reduceat(ys, starts) / counts,
        np.minimum.reduceat(ys, starts),
        np.maximum.reduceat(ys, starts),
    )


@dataclass(frozen=True)
class Curve:
    """One curve of a figure.

    Args:
        label: Its name in the legend.
        x: Places, in the figure's unit.
        y: The values there.
        colour: Its number in the palette.
        dots: Few points, each of which counts: they are marked, on a dashed line.
        line: Whether the points are connected.
        bars: Instead of a line, bars of this width in the unit of x, from each x on.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dots: bool = False
    line: bool = True
    bars: float | None = None

    def dotted(self, n_points: int) -> bool:
        """Whether each of the points that are drawn gets a dot."""
        return self.bars is None and (not self.line or n_points == 1 or (self.dots and n_points <= MOST_DOTS))


@dataclass(frozen=True)
class Mark:
    """Something that happened at x.

    Args:
        x: Where, in the figure's unit.
        kind: A key of MARKS.
        text: What happened.
        colour: The palette's number of the run it happened to, where there are several.
    """

    x: float
    kind: str
    text: str
    colour: int | None = None

    @property
    def shown_colour(self) -> int:
        """Its number in the palette: the run's, or the kind's."""
        return MARK_COLOURS[self.kind] if self.colour is None else self.colour


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value stands, from 0 to 1."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Three to eight round values on the axis."""
        if not self.log:
            step = round_step((self.high - self.low) / 4)
            first = math.ceil(self.low / step - 1e-9)
            return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
            found = [f * 10.0**d for d in decades for f in factors]
            found = [value for value in found if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
            if len(found) >= 3:
                return found[:: math.ceil(len(found) / 8)]
        return [self.low, self.high]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


def number(value: float) -> str:
    """A figure for an axis or a readout: 4 digits that count, thousands shortened."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-2:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= scale * (1 - 1e-12):
            return f"{value / (1e3 if unit == 'k' else scale):.4g} {unit}"
    return f"{value:,.4g}" if size < 1000 else f"{value:,.0f}"


def roomy_axis(low: float, high: float, log: bool = False, from_zero: bool = False) -> Axis:
    """An axis that holds the values from `low` to `high` with a little room, also around a single value.

    Args:
        low: The lowest value; on a logarithmic axis above 0.
        high: The highest value.
        log: The axis is logarithmic; then `from_zero` does not count.
        from_zero: The axis begins at 0, or at `low` where that is negative.
    """
    if log:
        room = max(1.08, (high / low) ** 0.03) if high / low > 1.01 else 2.0
        return Axis(low / room, high * room, True)
    if from_zero:
        return Axis(min(0.0, low), high * 1.06 if high > 0 else 1.0)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(low - room, high + room)


@dataclass(frozen=True)
class Figure:
    """Curves over one axis.

    Args:
        title: What is shown.
        unit: Of the values.
        curves: The curves; what of them is not finite is left out, and on a logarithmic axis what is not positive.
        marks: Events.
        x_label: Unit of x.
        log: Values on a logarithmic axis.
        from_zero: The axis of values begins at 0.
        x_axis: The axis of x; otherwise from 0 to the last point or mark.
        x_ticks: The ticks of x with their labels; otherwise round values.
    """

    title: str
    unit: str
    curves: Sequence[Curve]
    marks: Sequence[Mark] = ()
    x_label: str = "step"
    log: bool = False
    from_zero: bool = False
    x_axis: Axis | None = None
    x_ticks: Sequence[tuple[float, str]] = ()

    @property
    def unit_and_scale(self) -> str:
        """The unit, and whether its axis is logarithmic."""
        return ", ".join(part for part in (self.unit, "logarithmic" if self.log else "") if part)

    @cached_property
    def drawn(self) -> list[tuple[Curve, Reduced]]:
        """The curves that have points, and these."""
        found = []
        for curve in self.curves:
            x, y = np.asarray(curve.x, dtype=np.float64), np.asarray(curve.y, dtype=np.float64)
            keep = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not self.log))
            if keep.any():
                found.append((curve, reduce(x[keep], y[keep])))
        return found

    @cached_property
    def across(self) -> Axis:
        """The axis of x."""
        last = [float(points.x[-1]) for _, points in self.drawn] + [mark.x for mark in self.marks]
        return self.x_axis or Axis(0.0, max(1.0, *last))

    @cached_property
    def up(self) -> Axis:
        """The axis of values."""
        low = min(float(points.low.min()) for _, points in self.drawn)
        high = max(float(points.high.max()) for _, points in self.drawn)
        return roomy_axis(low, high, self.log, self.from_zero)

    @cached_property
    def labels_across(self) -> list[tuple[float, str]]:
        """The ticks of x with their labels."""
        return list(self.x_ticks) or [(tick, number(tick)) for tick in self.across.ticks()]

    @cached_property
    def mark_counts(self) -> dict[str, int]:
        """How many marks there are of each kind that there is."""
        counts = {kind: sum(mark.kind == kind for mark in self.marks) for kind in MARKS}
        return {kind: count for kind, count in counts.items() if count}

    @cached_property
    def marks_apart(self) -> list[Mark]:
        """The marks, of each kind at most one in a bucket of the axis."""
        return list(
            {(mark.kind, mark.colour, int(self.across.at(mark.x) * BUCKETS)): mark for mark in self.marks}.values()
        )
