"""Which curves a report draws: one run's languages, or several runs over each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from xlm_train.report.figures import MARKS, Curve, Figure, Mark
from xlm_train.report.reading import Column, Run

# title, unit, metric, logarithmic, from zero; of what has one curve a run
SINGLE = (
    ("Learning rate", "", "optim/lr", False, True),
    ("Gradient norm", "before clipping", "optim/grad_norm", False, True),
    ("Loss scale", "of float16", "optim/loss_scale", True, False),
    ("Throughput", "tokens/s, all processes", "speed/tokens_per_second", False, True),
)
SPREAD = 20.0  # a highest value so many times the median is shown on a logarithmic axis


def figures(runs: Sequence[Run]) -> list[Figure]:
    """The figures of a report; those that no run has figures for are left out."""
    scales = _scales(runs)
    x_label = "tokens" if set(scales) != {1} else "step"
    marks = [mark for i, run in enumerate(runs) for mark in _marks(run, scales[i], i % 8 if len(runs) > 1 else None)]
    found = []
    for title, unit, change in (("Loss", "nats per token", float), ("Perplexity", "per token", _perplexity)):
        for lang in [None] if len(runs) == 1 else sorted({lang for run in runs for lang in run.languages}):
            curves = [c for i, run in enumerate(runs) for c in _losses(run, i, scales[i], lang, change)]
            where = f"{title}, {lang}" if lang else title
            top = _late_top(curves) if change is _perplexity else None
            cut = "" if top is None else ", its first fall cut off"
            found.append(Figure(where, unit + cut, curves, marks, x_label, top=top))
    for title, unit, metric, log, from_zero in SINGLE:
        curves = [
            Curve(_label(run, runs), _x(run.columns[metric], scale), run.columns[metric].values, i % 8)
            for i, (run, scale) in enumerate(zip(runs, scales, strict=True))
            if metric in run.columns
        ]
        log = log or any(_wide(run.columns.get(metric)) for run in runs if from_zero)
        found.append(Figure(title, unit, curves, marks, x_label, log=log, from_zero=from_zero and not log))
    return [figure for figure in found if any(len(curve.x) for curve in figure.curves)]


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


def _late_top(curves: Sequence[Curve]) -> float | None:
    """The highest value in the second half of the curves, where the first half is far above it: the loss shows that."""
    end = max((x for curve in curves for x in curve.x), default=0)
    values = [(x, y) for curve in curves for x, y in zip(curve.x, curve.y, strict=True)]
    late = [y for x, y in values if x > end / 2]
    return max(late) if late and len(values) > 20 and max(y for _, y in values) > 2 * max(late) else None


def _scales(runs: Sequence[Run]) -> list[int]:
    """What steps are multiplied with: runs with steps of different sizes compare by tokens."""
    sizes = [run.tokens_per_step for run in runs]
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(runs) and len(set(known)) > 1 else [1] * len(runs)


def _x(column: Column, scale: int) -> list[int]:
    return [step * scale for step in column.steps]


def _label(run: Run, runs: Sequence[Run]) -> str:
    return run.name if len(runs) > 1 else "all languages"


def _losses(run: Run, number: int, scale: int, lang: str | None, change: Callable[[float], float]) -> list[Curve]:
    """Training and validation curves: of all languages in their colours, or of one in the run's colour."""
    found = []
    for colour, code in enumerate(run.languages):
        if lang in (None, code):
            for metric, words in (("train", "training"), ("val", "validation")):
                column = run.columns.get(f"{metric}/loss_{code}")
                if column:
                    label = f"{code} {words}" if lang is None else f"{run.name}, {words}"
                    values = [change(value) for value in column.values]
                    shown = colour if lang is None else number
                    found.append(Curve(label, _x(column, scale), values, shown % 8, dots=metric == "val"))
    return found


def _marks(run: Run, scale: int, colour: int | None) -> list[Mark]:
    found = []
    for event in run.events:
        kind, step = event["event"], event["step"]
        if kind in MARKS and (kind != "start" or step > 0):
            found.append(Mark(step * scale, kind, f"{run.name}: {MARKS[kind]} at step {step:,}", colour))
    return found


def _wide(column: Any) -> bool:
    if not column:
        return False
    values = sorted(value for value in column.values if value > 0)
    return bool(values) and values[-1] > SPREAD * values[len(values) // 2]
