"""Curves as inline SVG that stays sharp at any width: lines stretch with the page, text is HTML and does not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

SIDE = 1000  # of the drawing's own square, stretched over the plot
BUCKETS = 300  # of a curve: one for every two pixels of a wide plot
MOST_DOTS = 40  # of a curve: more would run into each other
MARKS = {"start": "restart", "rollback": "rollback", "bad_batch": "bad batch", "skip": "skipped update"}


@dataclass(frozen=True)
class Reduced:
    """A curve in at most BUCKETS points: mean, lowest and highest value around each x."""

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def reduce(x: ArrayLike, y: ArrayLike, buckets: int = BUCKETS) -> Reduced:
    """A curve of any length for a plot so many buckets wide. Up to twice as many points stay as they are."""
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
    """One line. colour: its number in the palette. dots: few points, each of which counts."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at x; kind: a key of MARKS. colour: of its run in the palette, where there are several."""

    x: float
    kind: str
    text: str
    colour: int | None = None


@dataclass(frozen=True)
class Figure:
    """Curves over steps or tokens.

    log: values on a logarithmic axis. from_zero: the axis begins at 0. top: the axis ends here, and what is above is cut off.
    """

    title: str
    unit: str
    curves: Sequence[Curve]
    marks: Sequence[Mark] = ()
    x_label: str = "step"
    log: bool = False
    from_zero: bool = False
    top: float | None = None


@dataclass(frozen=True)
class Axis:
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


def y_axis(lows: NDArray[np.float64], highs: NDArray[np.float64], log: bool, from_zero: bool) -> Axis:
    """An axis that holds everything, with a little room, also around a single value."""
    low, high = float(lows.min()), float(highs.max())
    if log:
        return Axis(low / 1.08, high * 1.08, True) if high / low > 1.01 else Axis(low / 2, high * 2, True)
    if from_zero:
        return Axis(min(0.0, low), high * 1.06 if high > 0 else 1.0)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(low - room, high + room)


def html(figure: Figure, identity: str) -> str:
    """The figure as markup. identity: of its title and description in the page.

    Without script it is whole; the script of the page adds a readout from the figures that stand in it as JSON.
    """
    reduced = []
    for curve in figure.curves:
        x, y = np.asarray(curve.x, dtype=np.float64), np.asarray(curve.y, dtype=np.float64)
        keep = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not figure.log))
        reduced.append(reduce(x[keep], y[keep]))
    shown = [(curve, points) for curve, points in zip(figure.curves, reduced, strict=True) if len(points.x)]
    if not shown:
        return ""
    last = max([x for curve, _ in shown for x in curve.x] + [mark.x for mark in figure.marks])
    lows = np.concatenate([points.low for _, points in shown])
    highs = np.concatenate([points.high for _, points in shown])
    if figure.top is not None:
        lows, highs = lows.clip(max=figure.top), highs.clip(max=figure.top)
    across = Axis(0.0, max(float(last), 1.0))
    up = y_axis(lows, highs, figure.log, figure.from_zero)
    parts = [f'<path class="grid" d="M0 {_y(up, tick)}H{SIDE}"/>' for tick in up.ticks()]
    parts += [_mark(mark, across) for mark in _apart(figure.marks, across)]
    for curve, points in shown:
        parts += _line(curve, points, across, up)
    title = f"{figure.title}, {figure.unit}" if figure.unit else figure.title
    description = "; ".join(_describe(curve, points) for curve, points in shown)
    counts = {kind: sum(mark.kind == kind for mark in figure.marks) for kind in MARKS}
    description += "".join(f"; {MARKS[kind]}: {count:,}" for kind, count in counts.items() if count)
    data = {
        "x": figure.x_label,
        "range": [across.low, across.high],
        "curves": [
            {
                "label": curve.label,
                "x": [round(float(v)) for v in points.x],
                "y": [float(f"{v:.4g}") for v in points.mean],
            }
            for curve, points in shown
        ],
    }
    embedded = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no label ends the script
    return (
        f'<figure class="plot"><figcaption>{escape(figure.title)} <span class="muted">{escape(figure.unit)}'
        f"{', logarithmic' if figure.log else ''}</span></figcaption>"
        f'<div class="legend">{_legend([curve for curve, _ in shown], [k for k, count in counts.items() if count])}</div>'
        '<div class="area"><div class="ys" aria-hidden="true">'
        + "".join(f'<span style="top:{100 - 100 * up.at(tick):.2f}%">{number(tick)}</span>' for tick in up.ticks())
        + f'</div><svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" '
        f'aria-labelledby="{identity}t {identity}d"><title id="{identity}t">{escape(title)}</title>'
        f'<desc id="{identity}d">{escape(description)}</desc>{"".join(parts)}</svg>'
        '<div class="xs" aria-hidden="true">'
        + "".join(_x_tick(tick, across) for tick in across.ticks())
        + f'</div></div><div class="under"><output class="readout"></output>'
        f'<span class="muted">{escape(figure.x_label)}</span></div>'
        f'<script type="application/json">{embedded}</script></figure>'
    )


def _x(axis: Axis, value: float) -> str:
    return f"{SIDE * axis.at(value):.4g}"


def _y(axis: Axis, value: float) -> str:
    return f"{SIDE * (1 - axis.at(value)):.4g}"


def _x_tick(tick: float, axis: Axis) -> str:
    place = axis.at(tick)
    edge = ' class="first"' if place < 0.03 else ' class="last"' if place > 0.94 else ""
    return f'<span{edge} style="left:{100 * place:.2f}%">{number(tick)}</span>'


def _line(curve: Curve, points: Reduced, across: Axis, up: Axis) -> list[str]:
    """The band between lowest and highest where points were put together, the line of means, and dots."""
    parts = []
    if (points.high > points.low).any():
        upper = [f"{_x(across, x)} {_y(up, y)}" for x, y in zip(points.x, points.high, strict=True)]
        lower = [f"{_x(across, x)} {_y(up, y)}" for x, y in zip(points.x, points.low, strict=True)]
        parts.append(f'<path class="band k{curve.colour}" d="M{"L".join([*upper, *reversed(lower)])}Z"/>')
    places = [f"{_x(across, x)} {_y(up, y)}" for x, y in zip(points.x, points.mean, strict=True)]
    kind = "checked" if curve.dots else "line"
    parts.append(f'<path class="{kind} k{curve.colour}" d="M{"L".join(places)}"/>')
    if (curve.dots and len(places) <= MOST_DOTS) or len(places) == 1:
        parts.append(f'<path class="dots k{curve.colour}" d="{"".join(f"M{place}h0" for place in places)}"/>')
    return parts


def _apart(marks: Sequence[Mark], across: Axis) -> list[Mark]:
    """The marks of which each kind has at most one in a bucket of the axis."""
    found = {(mark.kind, mark.colour, int(across.at(mark.x) * BUCKETS)): mark for mark in marks}
    return list(found.values())


def _mark(mark: Mark, across: Axis) -> str:
    x = _x(across, mark.x)
    place = {"start": f"M{x} 0V{SIDE}", "skip": f"M{x} {SIDE}v-40"}.get(mark.kind, f"M{x} 25h0")
    kind = mark.kind if mark.colour is None else f"{mark.kind} k{mark.colour}"
    return f'<path class="mark {kind}" d="{place}"><title>{escape(mark.text)}</title></path>'


def _legend(curves: Sequence[Curve], kinds: Sequence[str]) -> str:
    drawn = {"start": "M10 0V12", "skip": "M10 4V12"}
    parts = []
    for curve in curves if len(curves) > 1 else ():
        kind = "checked" if curve.dots else "line"
        dot = f'<path class="dots k{curve.colour}" d="M10 6h0"/>' if curve.dots and len(curve.x) <= MOST_DOTS else ""
        parts.append(_key(f'<path class="{kind} k{curve.colour}" d="M0 6H20"/>{dot}', curve.label))
    parts += [_key(f'<path class="mark {kind}" d="{drawn.get(kind, "M10 6h0")}"/>', MARKS[kind]) for kind in kinds]
    return "".join(parts)


def _key(drawing: str, label: str) -> str:
    return f'<span class="key"><svg viewBox="0 0 20 12" aria-hidden="true">{drawing}</svg>{escape(label)}</span>'


def _describe(curve: Curve, points: Reduced) -> str:
    if len(points.x) == 1:
        return f"{curve.label}: {number(points.mean[0])}"
    return (
        f"{curve.label}: from {number(points.mean[0])} to {number(points.mean[-1])}, "
        f"lowest {number(points.low.min())}, highest {number(points.high.max())}"
    )
