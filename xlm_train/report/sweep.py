"""What has come out of a sweep: one row a job, as text, Markdown, JSON and a picture."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from xlm_train.report.figures import Axis, Curve, Figure, Mark, roomy_axis
from xlm_train.report.html import PALETTE, Table
from xlm_train.report.png import draw
from xlm_train.report.reading import Run, read_run
from xlm_train.runtime.console import show
from xlm_train.runtime.errors import EXIT_PREEMPTED
from xlm_train.runtime.files import atomic_write, read_json, write_json

GREY = len(PALETTE) - 1
MOST_LINES = 6  # of a panel
LEAST_APART = 1 / 8  # of a panel's width: labels of values that are nearer would run into each other
WIDE_SPREAD = 10  # highest to lowest perplexity: from there the axis is logarithmic


@dataclass(frozen=True)
class Row:
    """A job of a sweep; figures are None where its run has none (yet).

    Args:
        run: Name of the run's folder.
        varied: What the sweep varies, and this job's values.
        status: "finished", "failed", "preempted", "stopped", "not started" ...
        problems: Why it failed.
        command: The command that runs the job alone.
        steps: Steps that metrics were reported for.
        best_step: Step of the best validation, by the run's monitor.
        perplexity: The mean over the languages there, or over the directions of translation.
        perplexities: Of each of them there.
        bleu: The mean over the directions there.
        bleus: Of each direction there.
        train_loss: In nats per token, as last reported.
        tokens_per_second: Median over the run.
        hours: In training steps.
    """

    run: str
    varied: dict[str, str]
    status: str
    problems: list[str]
    command: str
    steps: int | None
    best_step: int | None
    perplexity: float | None
    perplexities: dict[str, float | None]
    bleu: float | None
    bleus: dict[str, float | None]
    train_loss: float | None
    tokens_per_second: float | None
    hours: float | None


def conclude(folder: Path, start: str) -> list[int]:
    """Write table.md, sweep.json and sweep.png into the sweep's folder, and print the table.

    The table has every job that ever ran under the sweep's name.

    Args:
        folder: The sweep's folder.
        start: Names this start of the sweep in the jobs' records.

    Returns:
        The exit statuses of the jobs of this start.
    """
    records = [read_json(file) for file in sorted((folder / "jobs").glob("*.json"))]
    current = [record for record in records if record["start"] == start]
    if not records:
        return []
    ordered = sorted(records, key=lambda record: (record["start"] != start, record["job"]))
    rows = [read_row(record) for record in ordered]
    cells = table(rows)
    failed = [row for row in rows if row.status == "failed"]
    write_json(folder / "sweep.json", {"sweep": folder.name, "jobs": [asdict(row) for row in rows]})
    with atomic_write(folder / "table.md") as file:
        file.write(_markdown(folder.name, cells, rows).encode())
    if any(row.perplexity is not None for row in rows) and rows[0].varied:
        draw(figures(rows), folder / "sweep.png")
    show(cells.text())
    for row in failed:
        print(f"\nfailed: {row.run}: {row.problems[0]}\n  alone: {row.command}", file=sys.stderr)
    left = sum(record["exit_status"] == EXIT_PREEMPTED for record in current)
    done = sum(row.status in ("finished", "stopped") for row in rows)
    print(
        f"\n{done} of {len(rows)} jobs are done"
        + (f", {len(failed)} failed" if failed else "")
        + (f", {left} have steps left; the same command goes on" if left else "")
        + f"; table, figures and plot in {folder}",
        file=sys.stderr,
        flush=True,
    )
    return [int(record["exit_status"]) for record in current]


def read_row(record: dict[str, Any]) -> Row:
    """A job's row, from its record and its run's folder."""
    run = read_run(Path(record["run"]))
    best = run.best_step
    speed = run.columns.get("speed/tokens_per_second")
    # the launcher has come back, and the job has not
    lost = ["has not said how it ended: killed, or still at work"] if record["status"] == "running" else []
    return Row(
        run=run.path.name,
        varied=record["varied"],
        status="failed" if lost else record["status"],
        problems=record.get("problems", lost),
        command=record["command"],
        steps=run.columns["train/loss"].steps[-1] if "train/loss" in run.columns else None,
        best_step=best,
        perplexity=run.at("val/ppl", best),
        perplexities=_by_text(run, "val/ppl_"),
        bleu=run.at("val/bleu", best),
        bleus=_by_text(run, "val/bleu_"),
        train_loss=run.last("train/loss"),
        tokens_per_second=median(speed.values) if speed else None,
        hours=run.hours,
    )


def _by_text(run: Run, prefix: str) -> dict[str, float | None]:
    """A metric of each language, pair or direction, at the run's best step."""
    return {name.removeprefix(prefix): run.at(name, run.best_step) for name in run.columns if name.startswith(prefix)}


class Line(NamedTuple):
    """Jobs with a figure each, in the colour `hue`; connected: by a line in the order of what is varied."""

    label: str
    points: Sequence[tuple[Row, float]]
    hue: int
    connected: bool = True


def table(rows: Sequence[Row]) -> Table:
    """The jobs as a table, the best first among those that are done, then the others."""
    keys = _keys(rows)
    languages = sorted({lang for row in rows for lang in row.perplexities})
    directions = sorted({direction for row in rows for direction in row.bleus})
    scores = ["val/bleu", *(f"val/bleu_{direction}" for direction in directions)] if directions else []
    figures = [*scores, "val/ppl", *(f"val/ppl_{lang}" for lang in languages), "train/loss", "tokens/s", "hours"]
    cells = []
    for row in sorted(
        rows,
        key=lambda row: (
            row.status not in ("finished", "stopped"),
            -(row.bleu or 0.0),
            row.perplexity or float("inf"),
        ),
    ):
        values = [row.bleu, *(row.bleus.get(direction) for direction in directions)] if directions else []
        values += [row.perplexity, *(row.perplexities.get(lang) for lang in languages), row.train_loss]
        cells.append(
            [*(_short(_value(row, key)) for key in keys), row.status]
            + ["" if value is None else f"{value:,}" for value in (row.steps, row.best_step)]
            + ["" if value is None else f"{value:,.5g}" for value in values]
            + ["" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"]
            + ["" if row.hours is None else f"{row.hours:.3g}"]
        )
    return Table("", [*keys, "status", "steps", "best step", *figures], cells)


def _keys(rows: Sequence[Row]) -> list[str]:
    """Everything that some job varies, in the order of the command line."""
    return list(dict.fromkeys(key for row in rows for key in row.varied))


def _value(row: Row, key: str) -> str:
    return row.varied.get(key, "")


def _markdown(name: str, cells: Table, rows: Sequence[Row]) -> str:
    failures = [f"- `{row.run}`: {'; '.join(row.problems)}\n  alone: `{row.command}`" for row in rows if row.problems]
    parts = [f"# Sweep {name}", cells.markdown(), *(["Failed:", "\n".join(failures)] if failures else [])]
    return "\n\n".join(parts) + "\n"


def figures(rows: Sequence[Row]) -> list[Figure]:
    """Show the best validation perplexity against what was varied.

    Args:
        rows: The jobs, of which one has a perplexity at least. Those without are marked.

    Returns:
        For one key: a line per language and their mean. For two, of which one has few values: a line for each of these.
        Otherwise one figure a key: a dot a job, and a line through the best of each value where there are few.
    """
    keys = _keys(rows)
    counts = {key: len({_value(row, key) for row in rows}) for key in keys}
    means = [(row, row.perplexity) for row in rows if row.perplexity is not None]
    if len(keys) == 1:
        languages = sorted({lang for row, _ in means for lang in row.perplexities})
        lines = [Line("mean", means, GREY)]
        for hue, lang in enumerate(languages):
            lines.append(
                Line(lang, [(row, y) for row, _ in means if (y := row.perplexities.get(lang)) is not None], hue)
            )
        return [_figure(keys[0], rows, lines)]
    across, *others = sorted(keys, key=lambda key: (not _is_numeric(rows, key), -counts[key]))
    if len(keys) == 2 and counts[others[0]] <= MOST_LINES:
        values = _in_order({_value(row, others[0]) for row, _ in means})
        lines = [
            Line(f"{others[0]}={_short(value)}", [pair for pair in means if _value(pair[0], others[0]) == value], hue)
            for hue, value in enumerate(values)
        ]
        return [_figure(across, rows, lines)]
    found = []
    for key in keys:
        lines = [Line("each job", means, GREY, connected=False)]
        if counts[key] <= MOST_LINES:
            best = {_value(row, key): (row, y) for row, y in sorted(means, key=lambda pair: -pair[1])}
            lines.append(Line("best of each value", list(best.values()), 0))
        found.append(_figure(key, rows, lines))
    return found


def _figure(key: str, rows: Sequence[Row], lines: Sequence[Line]) -> Figure:
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
    lost = [Mark(places[_value(row, key)], "no_perplexity", row.run) for row in rows if row.perplexity is None]
    measured = [row.perplexity for row in rows if row.perplexity is not None]
    log = 0 < WIDE_SPREAD * min(measured) < max(measured)
    ticks = [(place, _short(value)) for value, place in places.items()] if labelled else []
    return Figure("", "best validation perplexity", curves, lost, key, log, x_axis=axis, x_ticks=ticks)


def _is_numeric(rows: Sequence[Row], key: str) -> bool:
    return all(_number(_value(row, key)) is not None for row in rows)


def _short(value: str) -> str:
    """A value that a search has chosen, in four digits."""
    number = _number(value)
    return value if number is None or len(value) <= 8 else f"{number:.4g}"


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _in_order(values: set[str]) -> list[str]:
    """Numbers by size, then words by letter."""
    return sorted(values, key=lambda value: (_number(value) is None, _number(value) or 0.0, value))
