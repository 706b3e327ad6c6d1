"""A figure in a page: inline SVG that stays sharp at any width. Lines stretch with the page, text is HTML and does not."""

from __future__ import annotations

import json
from html import escape

from xlm_train.report.figures import MARK_COLOURS, MARKS, Axis, Curve, Figure, Mark, Reduced, number

SIDE = 1000  # of the drawing's own square, stretched over the plot


def figure_html(figure: Figure, identity: str) -> str:
    """Draw a figure as markup.

    Without script it is whole; the page's script adds a readout from the values that stand in it as JSON.

    Args:
        figure: The figure, with a point at least.
        identity: Of its title and description in the page.

    Returns:
        A `figure` element.
    """
    across, up = figure.across, figure.up
    parts = [f'<path class="grid" d="M0 {_y(up, tick)}H{SIDE}"/>' for tick in up.ticks()]
    parts += [_mark(mark, across) for mark in figure.marks_apart]
    for curve, points in figure.drawn:
        parts += _line(curve, points, across, up)
    title = f"{figure.title}, {figure.unit}" if figure.unit else figure.title
    description = "; ".join(_describe(curve, points) for curve, points in figure.drawn)
    description += "".join(f"; {MARKS[kind]}: {count:,}" for kind, count in figure.mark_counts.items())
    return (
        f'<figure class="plot"><figcaption>{escape(figure.title)} <span class="muted">{escape(figure.unit_and_scale)}'
        f'</span></figcaption><div class="legend">{_legend(figure)}</div><div class="area"><div class="ys" aria-hidden="true">'
        + "".join(f'<span style="top:{100 - 100 * up.at(tick):.2f}%">{number(tick)}</span>' for tick in up.ticks())
        + f'</div><svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" '
        f'aria-labelledby="{identity}t {identity}d"><title id="{identity}t">{escape(title)}</title>'
        f'<desc id="{identity}d">{escape(description)}</desc>{"".join(parts)}</svg>'
        '<output class="readout"></output><div class="xs" aria-hidden="true">'
        + "".join(_x_tick(place, words, across) for place, words in figure.labels_across)
        + f'</div></div><div class="x-label muted">{escape(figure.x_label)}</div>'
        f'<script type="application/json">{_values(figure)}</script></figure>'
    )


def _values(figure: Figure) -> str:
    """What the readout shows, as JSON that no label can end the script of."""
    curves = [
        {
            "label": curve.label,
            "x": [_place(float(v)) for v in points.x],
            "y": [float(f"{v:.4g}") for v in points.mean],
        }
        for curve, points in figure.drawn
    ]
    across = figure.across
    values = {
        "x": figure.x_label,
        "range": [across.low, across.high],
        "log": across.log,
        "names": [[_place(place), name] for place, name in figure.x_ticks],
        "curves": curves,
    }
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")


def _place(x: float) -> float:
    """A place on the axis as the readout says it: steps are whole."""
    return round(x) if abs(x) >= 100 else float(f"{x:.4g}")


def _x(axis: Axis, value: float) -> str:
    return f"{SIDE * axis.at(value):.4g}"


def _y(axis: Axis, value: float) -> str:
    return f"{SIDE * (1 - axis.at(value)):.4g}"


def _x_tick(tick: float, words: str, axis: Axis) -> str:
    place = axis.at(tick)
    edge = ' class="first"' if place < 0.03 else ' class="last"' if place > 0.94 else ""
    return f'<span{edge} style="left:{100 * place:.2f}%">{escape(words)}</span>'


def _line(curve: Curve, points: Reduced, across: Axis, up: Axis) -> list[str]:
    """The band between lowest and highest where points were put together, the line of means, and dots."""
    parts = []
    if (points.high > points.low).any():
        upper = [f"{_x(across, x)} {_y(up, y)}" for x, y in zip(points.x, points.high, strict=True)]
        lower = [f"{_x(across, x)} {_y(up, y)}" for x, y in zip(points.x, points.low, strict=True)]
        parts.append(f'<path class="band k{curve.colour}" d="M{"L".join([*upper, *reversed(lower)])}Z"/>')
    if curve.bars is not None:
        sides = [(_x(across, x), _x(across, x + 0.9 * curve.bars)) for x in points.x]  # a little apart
        bars = (f"M{a} {SIDE}V{_y(up, y)}H{b}V{SIDE}Z" for (a, b), y in zip(sides, points.mean, strict=True))
        return [f'<path class="bars k{curve.colour}" d="{"".join(bars)}"/>']
    places = [f"{_x(across, x)} {_y(up, y)}" for x, y in zip(points.x, points.mean, strict=True)]
    if curve.line:
        kind = "dashed" if curve.dots else "line"
        parts.append(f'<path class="{kind} k{curve.colour}" d="M{"L".join(places)}"/>')
    if curve.dotted(len(places)):
        parts.append(f'<path class="dots k{curve.colour}" d="{"".join(f"M{place}h0" for place in places)}"/>')
    return parts


def _mark(mark: Mark, across: Axis) -> str:
    x = _x(across, mark.x)
    place = {"start": f"M{x} 0V{SIDE}", "skip": f"M{x} {SIDE}v-40"}.get(mark.kind, f"M{x} 25h0")
    return f'<path class="mark {mark.kind} k{mark.shown_colour}" d="{place}"><title>{escape(mark.text)}</title></path>'


def _legend(figure: Figure) -> str:
    shapes = {"start": "M10 0V12", "skip": "M10 4V12"}
    parts: list[str] = []
    for curve, points in figure.drawn if len(figure.drawn) > 1 else ():
        line = f'<path class="{"dashed" if curve.dots else "line"} k{curve.colour}" d="M0 6H20"/>' if curve.line else ""
        dot = f'<path class="dots k{curve.colour}" d="M10 6h0"/>' if curve.dotted(len(points.x)) else ""
        if (key := _key(line + dot, curve.label)) not in parts:  # curves that are of one kind
            parts.append(key)
    for kind in figure.mark_counts:
        shape = f'<path class="mark {kind} k{MARK_COLOURS[kind]}" d="{shapes.get(kind, "M10 6h0")}"/>'
        parts.append(_key(shape, MARKS[kind]))
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
