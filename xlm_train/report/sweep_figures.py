"""Pictures of a sweep: the best score against what was varied, and the curves of its jobs over one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from xlm_train.evaluation import loss_of
from xlm_train.report.curves import scales_of
from xlm_train.report.figures import Axis, Curve, Figure, Mark, roomy_axis
from xlm_train.report.html import GREY, PALETTE
from xlm_train.report.reading import Run
from xlm_train.report.sweep_rows import SEED, Row, as_number, averaged, by_seed, keys_of, label_of, short

OCHRE = 4  # in the palette
MOST_LINES = 6  # of a panel
LEAST_APART = 1 / 8  # of a panel's width: labels of values that are nearer would run into each other
WIDE_SPREAD = 10  # highest to lowest perplexity: from there the axis is logarithmic
TITLES = {"val/ppl": "Best validation perplexity", "val/bleu": "Best validation BLEU"}
# title, unit, metric, logarithmic
METRICS = (
    ("Training loss", "nats per token", "train/loss", False),
    ("Validation perplexity", "mean of the languages", "val/ppl", True),
    ("Validation BLEU", "mean of the directions", "val/bleu", False),
)


class Line(NamedTuple):
    """Jobs with a figure each, in the colour `hue`; connected: by a line in the order of what is varied."""

    label: str
    points: Sequence[tuple[Row, float]]
    hue: int
    connected: bool = True


def figures(rows: Sequence[Row]) -> list[Figure]:
    """Show the best validation perplexity, or BLEU where that is monitored, against what was varied; seeds are dots.

    Args:
        rows: The jobs. Those without a score are marked.

    Returns:
        None where no job has a score, or nothing was varied. For one key: a line per language or direction and their mean.
        For two, of which one has few values: a line for each of these. Otherwise one figure a key: a dot a job, and a line
        through the best of each value where there are few.
    """
    scored = [row for row in rows if row.best is not None]  # what others monitor is not known
    metric = "val/bleu" if scored and all(row.monitor.startswith("val/bleu") for row in scored) else "val/ppl"
    keys = [key for key in keys_of(rows) if key != SEED] or [SEED]
    seeds = SEED in keys_of(rows) and keys != [SEED]
    shown = [averaged(group) for group in by_seed(rows)] if seeds else rows
    counts = {key: len({_value(row, key) for row in shown}) for key in keys}
    means, jobs = _scored(shown, metric), _scored(rows, metric)
    if not jobs or not rows[0].varied:
        return []
    each = [Line("each seed", jobs, OCHRE, connected=False)] if seeds else []
    if len(keys) == 1:
        connected = keys != [SEED]
        parts = sorted({name for row, _ in means for name in row.scores if name.startswith(f"{metric}_")})
        lines = [Line("mean", means, GREY, connected)]
        for hue, part in enumerate(parts):
            lines.append(Line(part.removeprefix(f"{metric}_"), _scored(shown, part), hue, connected))
        return [_figure(metric, keys[0], rows, [*lines, *each])]
    across, *others = sorted(keys, key=lambda key: (not _is_numeric(rows, key), -counts[key]))
    if len(keys) == 2 and counts[others[0]] <= MOST_LINES:
        values = _in_order({_value(row, others[0]) for row, _ in means})
        lines = [
            Line(f"{others[0]}={short(value)}", [pair for pair in means if _value(pair[0], others[0]) == value], hue)
            for hue, value in enumerate(values)
        ]
        return [_figure(metric, across, rows, [*lines, *each])]
    found = []
    for key in keys:
        lines = [Line("each job", jobs, GREY, connected=False)]
        if counts[key] <= MOST_LINES:
            worst_first = sorted(means, key=lambda pair: -loss_of(metric, pair[1]))
            best = {_value(row, key): (row, y) for row, y in worst_first}
            lines.append(Line("best of each value", list(best.values()), 0))
        found.append(_figure(metric, key, rows, lines))
    return found


def job_curves(groups: Sequence[Sequence[Row]], runs: Mapping[str, Run]) -> list[Figure]:
    """The curves of jobs over one another.

    Args:
        groups: Jobs, those of a group in one colour under one label; as many groups as there are colours at most.
        runs: Theirs, by their names.
    """
    jobs = [(hue, row, runs[row.run]) for hue, group in enumerate(groups) for row in group]
    scales = scales_of([run for _, _, run in jobs])
    found = []
    for title, unit, metric, log in METRICS:
        curves = [
            Curve(
                label_of(row) if len(groups[hue]) == 1 else label_of(averaged(groups[hue])),
                [step * scale for step in run.columns[metric].steps],
                run.columns[metric].values,
                hue,
                dots=metric.startswith("val/"),
            )
            for (hue, row, run), scale in zip(jobs, scales, strict=True)
            if metric in run.columns
        ]
        found.append(Figure(title, unit, curves, x_label="tokens" if set(scales) != {1} else "step", log=log))
    return [figure for figure in found if figure.drawn]


def _scored(rows: Sequence[Row], metric: str) -> list[tuple[Row, float]]:
    return [(row, score) for row in rows if (score := row.scores.get(metric)) is not None]


def _figure(metric: str, key: str, rows: Sequence[Row], lines: Sequence[Line]) -> Figure:
    """The lines against the values of a key: numbers to scale (logarithmic where they span much), words side by side."""
    values = _in_order({_value(row, key) for row in rows})
    if _is_numeric(rows, key):
        places = {value: float(value) for value in values}
        low, high = min(places.values()), max(places.values())
        axis = roomy_axis(low, high, log=low > 0 and (key.endswith("lr") or high >= 4 * low))
        shares = [axis.at(place) for place in places.values()]
        labelled = all(after - before >= LEAST_APART for before, after in pairwise(shares))
    else:
        places = {value: float(place) for place, value in enumerate(values)}
        axis, labelled = Axis(-0.5, len(values) - 0.5), True
    curves = []
    for line in lines:
        x, y = [places[_value(row, key)] for row, _ in line.points], [y for _, y in line.points]
        curves.append(Curve(line.label, x, y, line.hue % len(PALETTE), dots=True, line=line.connected))
    lost = [Mark(places[_value(row, key)], "no_score", row.run) for row in rows if row.scores.get(metric) is None]
    measured = [score for _, score in _scored(rows, metric)]
    log = metric == "val/ppl" and 0 < WIDE_SPREAD * min(measured) < max(measured)
    ticks = [(place, short(value)) for value, place in places.items()] if labelled else []
    return Figure(TITLES[metric], "", curves, lost, key, log, x_axis=axis, x_ticks=ticks)


def _value(row: Row, key: str) -> str:
    return row.varied.get(key, "")


def _is_numeric(rows: Sequence[Row], key: str) -> bool:
    return all(as_number(_value(row, key)) is not None for row in rows)


def _in_order(values: set[str]) -> list[str]:
    """Numbers by size, then words by letter."""
    return sorted(values, key=lambda value: (as_number(value) is None, as_number(value) or 0.0, value))
