"""What has come out of a sweep: one row a job, as text, Markdown, JSON and a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from xlm_train.runtime.errors import EXIT_PREEMPTED
from xlm_train.runtime.files import atomic_write, read_json, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 6  # of a panel


@dataclass(frozen=True)
class Row:
    """A job. Figures are None where the run has none (yet). perplexities: per language, at best_step; hours: in steps."""

    run: str
    varied: dict[str, str]
    status: str
    problems: list[str]
    command: str
    steps: int | None
    best_step: int | None
    perplexity: float | None
    perplexities: dict[str, float | None]
    train_loss: float | None
    tokens_per_second: float | None
    hours: float | None


def conclude(folder: Path, start: str) -> list[int]:
    """Write table.md, sweep.json and sweep.png into the sweep's folder, print the table; returns the jobs' exit statuses.

    The table has every job that ever ran under the sweep's name; the exit statuses are those of this start alone.
    """
    records = [read_json(file) for file in sorted((folder / "jobs").glob("*.json"))]
    current = [record for record in records if record["start"] == start]
    if not records:
        return []
    ordered = sorted(records, key=lambda record: (record["start"] != start, record["job"]))
    rows = [read_row(record) for record in ordered]
    cells = table(rows)
    write_json(folder / "sweep.json", {"sweep": folder.name, "jobs": [asdict(row) for row in rows]})
    with atomic_write(folder / "table.md") as file:
        file.write(as_markdown(folder.name, cells, rows).encode())
    if any(row.perplexity is not None for row in rows) and rows[0].varied:
        plot(rows, folder / "sweep.png")
    print(as_text(cells), flush=True)
    failed = [row for row in rows if row.status == "failed"]
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
    from xlm_train.report.reading import read_run

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
        perplexities={lang: run.at(f"val/ppl_{lang}", best) for lang in run.languages},
        train_loss=run.last("train/loss"),
        tokens_per_second=median(speed.values) if speed else None,
        hours=run.hours,
    )


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Header and cells; the best job first among those that are done, then the others."""
    keys = keys_of(rows)
    languages = sorted({lang for row in rows for lang in row.perplexities})
    figures_of = ["val/ppl", *(f"val/ppl_{lang}" for lang in languages), "train/loss", "tokens/s", "hours"]
    cells = [[*keys, "status", "steps", "best step", *figures_of]]
    for row in sorted(
        rows, key=lambda row: (row.status not in ("finished", "stopped"), row.perplexity or float("inf"))
    ):
        figures = [row.perplexity, *(row.perplexities.get(lang) for lang in languages), row.train_loss]
        cells.append(
            [*(_short(row.varied.get(key, "")) for key in keys), row.status]
            + ["" if value is None else f"{value:,}" for value in (row.steps, row.best_step)]
            + ["" if value is None else f"{value:,.5g}" for value in figures]
            + ["" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"]
            + ["" if row.hours is None else f"{row.hours:.3g}"]
        )
    return cells


def keys_of(rows: Sequence[Row]) -> list[str]:
    """Everything that some job varies, in the order of the command line."""
    return list(dict.fromkeys(key for row in rows for key in row.varied))


def as_text(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def as_markdown(name: str, cells: Sequence[Sequence[str]], rows: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in cells]
    lines.insert(1, "|" + " ---: |" * len(cells[0]))
    failures = [f"- `{row.run}`: {'; '.join(row.problems)}\n  alone: `{row.command}`" for row in rows if row.problems]
    parts = [f"# Sweep {name}", "\n".join(lines), *(["Failed:", "\n".join(failures)] if failures else [])]
    return "\n\n".join(parts) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """The best validation perplexity against what was varied.

    One key: a line per language and their mean. Two, of which one has few values: a line for each of these. Otherwise one
    panel a key, a dot a job, a line through the best. Jobs without a perplexity are crosses at the upper edge.
    """
    from matplotlib.figure import Figure

    keys = keys_of(rows)
    counts = {key: len({row.varied.get(key, "") for row in rows}) for key in keys}
    across = sorted(keys, key=lambda key: (not _is_numeric(rows, key), -counts[key]))
    together = len(keys) == 1 or (len(keys) == 2 and counts[across[1]] <= MOST_LINES)
    shown = across[:1] if together else keys
    figure = Figure(figsize=(max(6.5, 4.5 * len(shown)), 4.5), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for panel, key in zip(panels, shown, strict=True):
        places = _across(panel, rows, key)
        measured = sorted(
            (row for row in rows if row.perplexity is not None), key=lambda row: places[row.varied.get(key, "")]
        )
        if len(keys) == 1:
            _line(panel, places, key, measured, "mean", {"color": "black", "linewidth": 2})
            for lang in sorted({lang for row in measured for lang in row.perplexities}):
                points = [
                    (places[row.varied.get(key, "")], row.perplexities[lang])
                    for row in measured
                    if lang in row.perplexities
                ]
                panel.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, label=lang)
            panel.legend()
        elif together:
            other = across[1]
            for value in _in_order({row.varied.get(other, "") for row in measured}):
                _line(panel, places, key, [row for row in measured if row.varied.get(other, "") == value], value, {})
            panel.legend(title=other)
        else:
            _line(panel, places, key, measured, "all", {"color": "0.6", "linestyle": "none"})
            best: dict[str, Row] = {}
            for row in measured:
                value = row.varied.get(key, "")
                if value not in best or (row.perplexity or 0) < (best[value].perplexity or 0):
                    best[value] = row
            if counts[key] <= MOST_LINES:
                _line(panel, places, key, list(best.values()), "best", {"color": "black"})
        lost = [places[row.varied.get(key, "")] for row in rows if row.perplexity is None]
        panel.plot(lost, [0.97] * len(lost), "x", color="firebrick", transform=panel.get_xaxis_transform())
        panel.set(xlabel=key + (" (x: no perplexity)" if lost else ""))
        panel.grid(alpha=0.25)
    values = [row.perplexity for row in rows if row.perplexity is not None]
    if max(values) > 10 * min(values):
        panels[0].set_yscale("log")
    panels[0].set(ylabel="best validation perplexity")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _line(
    panel: Axes, places: dict[str, float], key: str, rows: Sequence[Row], label: str, style: dict[str, Any]
) -> None:
    """A line through jobs that have a perplexity."""
    points = [(places[row.varied.get(key, "")], row.perplexity) for row in rows if row.perplexity is not None]
    panel.plot(*zip(*points, strict=True), marker="o", label=label, **style)


def _across(panel: Axes, rows: Sequence[Row], key: str) -> dict[str, float]:
    """Where each value of a key lies across the panel: numbers to scale (log where they span much), words side by side."""
    values = _in_order({row.varied.get(key, "") for row in rows})
    if not _is_numeric(rows, key):
        panel.set_xticks(range(len(values)), values)
        return {value: float(place) for place, value in enumerate(values)}
    places = {value: float(value) for value in values}
    low, high = min(places.values()), max(places.values())
    if low > 0 and (key.endswith("lr") or high >= 4 * low):
        panel.set_xscale("log")
    if len(values) <= MOST_LINES:
        panel.set_xticks(list(places.values()), values)
        panel.minorticks_off()
    return places


def _is_numeric(rows: Sequence[Row], key: str) -> bool:
    return all(_number(row.varied.get(key, "")) is not None for row in rows)


def _short(value: str) -> str:
    """A value that a search has chosen, in four digits."""
    number = _number(value)
    return value if number is None or len(value) <= 8 else f"{number:.4g}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _in_order(values: set[str]) -> list[str]:
    """Numbers by size, then words by letter."""
    return sorted(values, key=lambda value: (_number(value) is None, _number(value) or 0.0, value))
