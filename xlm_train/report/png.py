"""Figures as one PNG, for places that show no HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xlm_train.report.figures import MARK_COLOURS, MARKS, Figure, number
from xlm_train.report.html import PALETTE
from xlm_train.runtime.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
LETTERS = 55  # of the legend, in the width of a plot
MOST_LETTERS = 40  # of the labels below a plot; longer ones are set at an angle
SHAPES = {"start": ":", "skip": "|", "bad_batch": "o", "rollback": "s", "no_score": "x"}
HEIGHTS = {"skip": 0.02}  # of marks in the plot, from 0 to 1


def draw(figures: Sequence[Figure], path: Path) -> None:
    """Draw figures beside each other.

    Args:
        figures: Of which each has a point at least; none gives an empty picture.
        path: The PNG, replaced as a whole.
    """
    from matplotlib.figure import Figure as Sheet

    columns = max(1, min(COLUMNS, len(figures)))
    rows = max(1, math.ceil(len(figures) / columns))
    sheet = Sheet(figsize=(max(6.5, 4.5 * columns), max(4.5, 3.4 * rows)), layout="constrained")
    for place, figure in enumerate(figures, 1):
        _draw(sheet.add_subplot(rows, columns, place), figure)
    keys = {
        label: handle for axes in sheet.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if len(keys) > 1:  # one legend below, where it hides nothing
        ncols = max(1, LETTERS * columns // (max(map(len, keys)) + 8))
        sheet.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=ncols, fontsize=9)
    with atomic_write(path) as file:
        sheet.savefig(file, format="png", dpi=110)


def _draw(axes: Axes, figure: Figure) -> None:
    if figure.across.log:
        axes.set_xscale("log")
    if figure.up.log:
        axes.set_yscale("log")
    for curve, points in figure.drawn:
        colour = PALETTE[curve.colour][0]
        if curve.bars is not None:
            axes.bar(points.x, points.mean, width=0.9 * curve.bars, align="edge", color=colour, label=curve.label)
            continue
        if (points.high > points.low).any():
            axes.fill_between(points.x, points.low, points.high, color=colour, alpha=0.28, linewidth=0)
        axes.plot(
            points.x, points.mean, color=colour, linewidth=1.2, label=curve.label,
            linestyle="none" if not curve.line else "--" if curve.dots else "-",
            marker="o" if curve.dotted(len(points.x)) else "", markersize=4, clip_on=not curve.dots,
        )  # fmt: skip
    for mark in figure.marks_apart:
        colour = PALETTE[mark.shown_colour][0]
        if mark.kind == "start":
            axes.axvline(mark.x, color=colour, linestyle=":", linewidth=1.2)
        else:
            height = HEIGHTS.get(mark.kind, 0.97)
            axes.plot([mark.x], [height], SHAPES[mark.kind], color=colour, transform=axes.get_xaxis_transform())
    for kind in figure.mark_counts:
        axes.plot([], [], SHAPES[kind], color=PALETTE[MARK_COLOURS[kind]][0], label=MARKS[kind])
    places, labels = zip(*figure.labels_across, strict=True)
    axes.set(
        title=figure.title, xlabel=figure.x_label, ylabel=figure.unit_and_scale,
        xlim=(figure.across.low, figure.across.high), ylim=(figure.up.low, figure.up.high),
    )  # fmt: skip
    axes.set_xticks(places, labels)
    if sum(map(len, labels)) > MOST_LETTERS:
        for label in axes.get_xticklabels():
            label.set(rotation=25, ha="right")
    axes.set_yticks(figure.up.ticks(), [number(tick) for tick in figure.up.ticks()])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
