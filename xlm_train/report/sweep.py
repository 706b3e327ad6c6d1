"""What has come out of a sweep: one row a job, as text, Markdown, JSON, a picture and a page."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from xlm_train.evaluation import loss_of
from xlm_train.report.content import Section
from xlm_train.report.html import PALETTE, Cell, Paragraph, Table
from xlm_train.report.png import draw
from xlm_train.report.reading import Run, read_run
from xlm_train.report.results import rounded, without_a_model
from xlm_train.report.sweep_figures import figures, job_curves
from xlm_train.report.sweep_rows import (
    DONE,
    SEED,
    Row,
    Spread,
    averaged,
    by_seed,
    keys_of,
    label_of,
    row_of,
    score_names,
    short,
    spread,
    without_seed,
)
from xlm_train.report.writing import as_html
from xlm_train.runtime.console import log, show
from xlm_train.runtime.errors import EXIT_PREEMPTED, UserError
from xlm_train.runtime.files import atomic_write, read_json, write_json

RECORD = {"start", "job", "varied", "run", "command", "status", "exit_status"}  # what a job's record has


def _record(file: Path) -> dict[str, Any] | None:
    """A job's record; None, and a warning, where the file is none."""
    try:
        found = read_json(file)
    except UserError as error:
        found = None
        log(f"warning: {error}")
    if isinstance(found, dict) and found.keys() >= RECORD:
        return found
    log(f"warning: {file}: is no record of a job, and left out")
    return None


def conclude(folder: Path, start: str) -> list[int]:
    """Write sweep.html, table.md, sweep.json and sweep.png into the sweep's folder, and print the table.

    They have every job that ever ran under the sweep's name.

    Args:
        folder: The sweep's folder.
        start: Names this start of the sweep in the jobs' records.

    Returns:
        The exit statuses of the jobs of this start.
    """
    records = [record for file in sorted((folder / "jobs").glob("*.json")) if (record := _record(file)) is not None]
    current = [record for record in records if record["start"] == start]
    if not records:
        return []
    ordered = sorted(records, key=lambda record: (record["start"] != start, record["job"]))
    runs = [read_run(folder / record["run"]) for record in ordered]
    rows = [row_of(record, run) for record, run in zip(ordered, runs, strict=True)]
    failed = [row for row in rows if row.status == "failed"]
    write_json(folder / "sweep.json", {"sweep": folder.name, "jobs": [asdict(row) for row in rows], **_averages(rows)})
    links = {id(row): link for row, run in zip(rows, runs, strict=True) if (link := _link(folder, run))}
    for name, text in (
        ("table.md", _markdown(folder.name, rows, links, without_a_model(runs))),
        ("sweep.html", page(folder, rows, runs, links)),
    ):
        with atomic_write(folder / name) as file:
            file.write(text.encode())
    if plots := figures(rows):
        draw(plots, folder / "sweep.png")
    shown = [table(rows).text(), without_a_model(runs), *(one.text() for one in seeds(rows))]
    show("\n\n".join(filter(None, shown)))
    for row in failed:
        print(f"\nfailed: {row.run}: {row.problems[0]}\n  alone: {row.command}", file=sys.stderr)
    left = sum(record["exit_status"] == EXIT_PREEMPTED for record in current)
    print(
        f"\n{_done(rows)}"
        + (f", {left} have steps left; the same command goes on" if left else "")
        + f"; page, table and plot in {folder}",
        file=sys.stderr,
        flush=True,
    )
    return [int(record["exit_status"]) for record in current]


def _done(rows: Sequence[Row]) -> str:
    failed = sum(row.status == "failed" for row in rows)
    text = f"{sum(row.status in DONE for row in rows)} of {len(rows)} jobs are done"
    return f"{text}, {failed} failed" if failed else text


def _link(folder: Path, run: Run) -> str:
    """Where a run's report is, seen from the sweep's folder; nothing where there is none."""
    report = run.path / "report.html"
    return quote(os.path.relpath(report, folder)) if report.is_file() else ""


def _best_first(rows: Sequence[Row]) -> list[Row]:
    """Those that are done first, the best of them on top."""
    return sorted(rows, key=lambda row: (row.status not in DONE, *_rank(row)))


def _rank(row: Row) -> tuple[float, float]:
    """Smaller is better: by the run's monitor, then by the perplexity."""
    best = float("inf") if row.best is None else loss_of(row.monitor, row.best)
    return best, row.perplexity or float("inf")


def table(rows: Sequence[Row], links: dict[int, str] | None = None, caption: str = "") -> Table:
    """The jobs as a table, the best first among those that are done, then the others.

    Args:
        rows: The jobs.
        links: Address of a job's report, by the row's id().
        caption: Above it.
    """
    keys, names = keys_of(rows), score_names(rows)
    cells: list[list[str | Cell]] = []
    for row in _best_first(rows):
        line = [*(short(row.varied.get(key, "")) for key in keys), row.status]
        line += ["" if value is None else f"{value:,}" for value in (row.steps, row.best_step)]
        line += ["" if (value := row.scores.get(name)) is None else f"{value:,.5g}" for name in names]
        line += ["" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"]
        line += ["" if row.hours is None else f"{row.hours:.3g}"]
        link = (links or {}).get(id(row))
        cells.append([Cell(line[0], link=link), *line[1:]] if link else [*line])
    return Table(caption, [*keys, "status", "steps", "best step", *names, "tokens/s", "hours"], cells)


def seeds(rows: Sequence[Row]) -> list[Table]:
    """Mean and standard deviation over the seeds, where some jobs differ by nothing else."""
    groups = sorted(by_seed(rows), key=lambda group: _rank(averaged(group)))
    if all(len(group) == 1 for group in groups):
        return []
    keys, names = [key for key in keys_of(rows) if key != SEED], score_names(rows)
    cells = []
    for group in groups:
        done = sum(row.status in DONE for row in group)
        count = f"{done}" if done == len(group) else f"{done} of {len(group)}"
        values = [_said(spread(group, name)) for name in names]
        cells.append([*(short(group[0].varied.get(key, "")) for key in keys), count, *values])
    caption = "Mean and sample standard deviation (n - 1) over the seeds of jobs that are done"
    return [Table(caption, [*keys, "seeds", *names], cells)]


def _said(found: Spread | None) -> str:
    if found is None:
        return ""
    return rounded(found.mean, 4) + ("" if found.deviation is None else f" ± {rounded(found.deviation, 2)}")


def _averages(rows: Sequence[Row]) -> dict[str, Any]:
    """What sweep.json says of jobs that differ by the seed alone."""
    names = score_names(rows)
    found = [
        {
            "varied": without_seed(group[0]),
            "runs": [row.run for row in group],
            "scores": {name: over._asdict() for name in names if (over := spread(group, name))},
        }
        for group in by_seed(rows)
        if len(group) > 1
    ]
    return {"over_seeds": found} if found else {}


def _failures(rows: Sequence[Row]) -> list[str]:
    return [f"{row.run}: {'; '.join(row.problems)}" for row in rows if row.problems]


def _markdown(name: str, rows: Sequence[Row], links: dict[int, str], caption: str) -> str:
    failures = [f"- `{row.run}`: {'; '.join(row.problems)}\n  alone: `{row.command}`" for row in rows if row.problems]
    parts = [f"# Sweep {name}", *(one.markdown() for one in (table(rows, links, caption), *seeds(rows)))]
    return "\n\n".join([*parts, *(["Failed:", "\n".join(failures)] if failures else [])]) + "\n"


def page(folder: Path, rows: Sequence[Row], runs: Sequence[Run], links: dict[int, str]) -> str:
    """The sweep's page: what is in table.md, and all figures.

    Args:
        folder: The sweep's, whose name is in the title.
        rows: The jobs.
        runs: Their runs, in the same order.
        links: Address of a job's report, by the row's id().
    """
    run_of = {row.run: run for row, run in zip(rows, runs, strict=True)}
    reported = [row for row in _best_first(rows) if run_of[row.run].columns]
    groups = by_seed(reported)
    if len(groups) == 1:  # nothing but the seed was varied
        groups = [[row] for row in reported]
    drawn = groups[: len(PALETTE)]
    best, over_seeds = _best_first(rows)[0], seeds(rows)
    texts = [Paragraph(f"{_done(rows)}.")]
    if best.status in DONE and best.varied and not over_seeds:
        texts.append(Paragraph(f"The best: {label_of(best)}."))
    texts += [Paragraph(f"Failed: {text}", warning=True) for text in _failures(rows)]
    plots = figures(rows)
    note = []
    if len(drawn) < len(groups):
        note = [Paragraph(f"The best {len(drawn)} of {len(groups)}.")]
    sections = [
        Section("", [*texts, *over_seeds, *plots[:1]]),
        Section("Jobs", [table(rows, links, without_a_model(runs))]),
        Section("By what was varied", plots[1:]),
        Section("Curves", [*note, *job_curves(drawn, run_of)]),
    ]
    return as_html(f"Sweep {folder.name}", [section for section in sections if section.blocks])
