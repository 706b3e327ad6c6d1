"""Which curves a report draws: one run's languages, or several runs over each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from xlm_train.report.figures import MARKS, Curve, Figure, Mark
from xlm_train.report.html import GREY, PALETTE
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
    """The figures of a report; those that no run has values for are left out."""
    scales = scales_of(runs)
    x_label = "tokens" if set(scales) != {1} else "step"
    marks = [mark for i, run in enumerate(runs) for mark in _marks(run, scales[i], _hue(i) if len(runs) > 1 else None)]
    found = []
    token = "hidden word" if all(run.masked for run in runs) else "token"
    for title, unit, change in (("Loss", f"nats per {token}", float), ("Perplexity", f"per {token}", perplexity)):
        for lang in [None] if len(runs) == 1 else sorted({lang for run in runs for lang in run.languages}):
            curves = [c for i, run in enumerate(runs) for c in _losses(run, i, scales[i], lang, change)]
            log = change is perplexity  # it begins at the size of the vocabulary and ends far below
            found.append(Figure(f"{title}, {lang}" if lang else title, unit, curves, marks, x_label, log))
    bleu = [curve for i, run in enumerate(runs) for curve in _bleu(run, i, scales[i], len(runs) > 1)]
    found.append(Figure("BLEU of validation", "0 to 100", bleu, marks, x_label, from_zero=True))
    for title, unit, metric, log, from_zero in SINGLE:
        curves = [
            Curve(run.name if len(runs) > 1 else "all languages", _x(run.columns[metric], scale),
                  run.columns[metric].values, _hue(i) if len(runs) > 1 else GREY)
            for i, (run, scale) in enumerate(zip(runs, scales, strict=True))
            if metric in run.columns
        ]  # fmt: skip
        log = log or any(_wide(run.columns.get(metric)) for run in runs if from_zero)
        found.append(Figure(title, unit, curves, marks, x_label, log, from_zero and not log))
    return [figure for figure in found if figure.drawn]


def lead_of(curves: Sequence[Figure]) -> list[Figure]:
    """The figure that tells most, for a report's beginning: none where there are no curves."""
    return [figure for title in ("BLEU", "Perplexity", "") for figure in curves if figure.title.startswith(title)][:1]


def perplexity(loss: float) -> float:
    """The perplexity of a mean loss in nats per token, bounded so that no loss is too large for it."""
    return math.exp(min(loss, 700.0))


def _hue(number: int) -> int:
    return number % len(PALETTE)


def scales_of(runs: Sequence[Run]) -> list[int]:
    """What steps are multiplied with: runs with steps of different sizes compare by tokens."""
    sizes = [run.tokens_per_step for run in runs]
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(runs) and len(set(known)) > 1 else [1] * len(runs)


def _x(column: Column, scale: int) -> list[int]:
    return [step * scale for step in column.steps]


def _losses(run: Run, number: int, scale: int, lang: str | None, change: Callable[[float], float]) -> list[Curve]:
    """Training and validation curves: of all languages in their colours, or of one in the run's colour."""
    found = []
    for place, code in enumerate(run.languages):
        if lang in (None, code):
            for metric, words in (("train", "training"), ("val", "validation")):
                column = run.columns.get(f"{metric}/loss_{code}")
                if column:
                    label = f"{code} {words}" if lang is None else f"{run.name}, {words}"
                    values = [change(value) for value in column.values]
                    hue = _hue(place if lang is None else number)
                    found.append(Curve(label, _x(column, scale), values, hue, dots=metric == "val"))
    return found


def _bleu(run: Run, number: int, scale: int, several: bool) -> list[Curve]:
    """Each direction's curve, and beside it those of the best constant sentence and of the copied source."""
    found = []
    for place, name in enumerate(run.directions):
        hue, whose = (_hue(number), f"{run.name}, {name}") if several else (_hue(place), name)
        without = (("constant", f"{whose}, best constant sentence"), ("copied", f"{whose}, copied source"))
        for kind, label in (("bleu", whose), *without):
            if column := run.columns.get(f"val/{kind}_{name}"):
                found.append(Curve(label, _x(column, scale), column.values, hue, dots=kind == "bleu"))
    return found


def _marks(run: Run, scale: int, colour: int | None) -> list[Mark]:
    found = []
    for event in run.events:
        kind, step = event["event"], event["step"]
        if kind in MARKS and (kind != "start" or step > 0):
            found.append(Mark(step * scale, kind, f"{run.name}: {MARKS[kind]} at step {step:,}", colour))
    return found


def _wide(column: Column | None) -> bool:
    values = sorted(value for value in column.values if value > 0) if column else []
    return bool(values) and values[-1] > SPREAD * values[len(values) // 2]
