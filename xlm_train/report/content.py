"""What a report says, as sections of text, tables and figures; writing.py gives them their form."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xlm_train.report import recipe
from xlm_train.report.curves import figures
from xlm_train.report.figures import MARKS, Figure
from xlm_train.report.html import Cell, Table
from xlm_train.report.reading import Run, when
from xlm_train.runtime.console import compact, counted, duration

MOST_ROWS = 100  # of a table; the figures show everything
MOST_OPEN = 20  # rows of a table that a reader need not open
PACKAGES = (
    "xlm_train",
    "torch",
    "pytorch-lightning",
    "hydra-core",
    "numpy",
    "transformers",
    "tokenizers",
    "sacremoses",
)
NONE = "-"


@dataclass(frozen=True)
class Paragraph:
    """Text. warning: something is missing or wrong."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Folded:
    """Something long that a reader opens."""

    title: str
    content: str | Table


Block = Paragraph | Table | Figure | Folded


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


def sections(runs: Sequence[Run]) -> list[Section]:
    """The report of a run, or of several side by side, in reading order. The first section has no title of its own."""
    found = [
        Section("", [*_states(runs), *_problems(runs), _summary(runs)]),
        Section("Curves", _curves(runs)),
        Section("Results", [*_results(runs), *_evaluations(runs)]),
        Section("Validation", _validations(runs)),
        Section("Starts and incidents", _events(runs)),
        Section("Checkpoints kept", _checkpoints(runs)),
        Section("Against the original's recipe", _recipe(runs)),
    ]
    if len(runs) > 1:
        found.append(Section("Differences between the configs", _differences(runs)))
    found += [
        Section("Lineage", [_by_run(runs, LINEAGE, "Hashes")]),
        Section("Energy", _energy(runs)),
        Section("Software and machine", [_by_run(runs, MACHINE, "")]),
        Section("Configuration", [Folded(f"config.yaml of {run.name}", _yaml(run)) for run in runs if run.config]),
    ]
    return [section for section in found if section.blocks]


def _states(runs: Sequence[Run]) -> list[Paragraph]:
    now = time.time()
    found = []
    for run in runs:
        status = str(run.status.get("status", "unknown"))
        text = f"{run.name}: {status}" if len(runs) > 1 else f"Status: {status}"
        step, updates = run.status.get("step"), run.status.get("updates")
        if isinstance(step, int) and isinstance(updates, int):
            text += f" after {counted(step, 'step')}, {counted(updates, 'update')}"
        if run.status.get("reason"):
            text += f" ({run.status['reason']})"
        if status == "running" and run.last_report is not None:
            steps = run.last("progress/steps")
            text += f" at the last report, {duration(now - run.last_report)} before this page was written: step {_last_step(run):,}"
            text += f" of {steps:,.0f}" if steps else ""
            left = run.last("progress/seconds_left")
            text += f", {duration(left)} left by then" if left is not None else ""
        if run.status.get("error"):
            text += f": {run.status['error']}"
        found.append(Paragraph(f"{text}.", warning=status in ("failed", "unknown")))
        if not run.columns:
            found.append(Paragraph(f"{run.name} has reported no metrics yet: there is nothing to draw.", warning=True))
    return found


def _problems(runs: Sequence[Run]) -> list[Paragraph]:
    many = len(runs) > 1
    return [Paragraph(f"{run.name}: {p}" if many else p, warning=True) for run in runs for p in run.problems]


def _last_step(run: Run) -> int:
    return max((column.steps[-1] for column in run.columns.values()), default=0)


def _by_run(runs: Sequence[Run], rows: Sequence[tuple[str, Callable[[Run], str]]], caption: str) -> Table:
    """A table with a column for each run."""
    head = ["what", *(run.name for run in runs)] if len(runs) > 1 else ["what", "value"]
    return Table(caption, head, [[title, *(value(run) for run in runs)] for title, value in rows], words=True)


def _listed(
    caption: str, head: Sequence[str], rows: Sequence[tuple[Run, Sequence[str | Cell]]], words: bool = False
) -> Table:
    """A table whose rows are of one run each; which one is said where there are several."""
    many = len({run.path for run, _ in rows}) > 1
    body = [[run.name, *cells] if many else cells for run, cells in rows]
    return Table(caption, ["run", *head] if many else head, body, words)


def _median(run: Run, name: str) -> float | None:
    column = run.columns.get(name)
    return statistics.median(column.values) if column else None


def _figure(value: float | None, form: str = ",.4g", unit: str = "") -> str:
    return NONE if value is None else f"{value:{form}}{unit}"


def _tokens(run: Run) -> str:
    tokens = run.last("progress/tokens")
    return NONE if tokens is None else f"{compact(tokens)} ({tokens:,.0f})"


def _best(run: Run) -> str:
    step = run.best_step
    return NONE if step is None else f"{run.at('val/ppl', step):,.4g} at step {step:,}"


def _hours(run: Run) -> str:
    return NONE if run.hours is None else duration(run.hours * 3600)


def _skipped(run: Run) -> str:
    skipped = run.status.get("skipped")
    count = float(len(skipped)) if isinstance(skipped, list) else run.last("optim/skipped_steps")
    return NONE if count is None else f"{count:,.0f}"


def _parameters(run: Run) -> str:
    count = recipe.n_parameters(run)
    return NONE if count is None else f"{count:,}"


def _share(run: Run) -> str:
    share = _median(run, "speed/share_of_peak")
    return NONE if share is None else f"{share:.1%}"


SUMMARY: Sequence[tuple[str, Callable[[Run], str]]] = (
    ("steps", lambda run: f"{_last_step(run):,}"),
    ("tokens read", _tokens),
    ("parameters", _parameters),
    ("lowest mean validation perplexity", _best),
    ("training time (steps only)", _hours),
    ("tokens/s, median", lambda run: _figure(_median(run, "speed/tokens_per_second"), ",.0f")),
    ("share of the device's peak, median", _share),
    ("peak memory of a process, GB", lambda run: _figure(run.last("memory/peak_gb"), ".3g")),
    ("restarts", lambda run: f"{len(run.restarts)}" if run.events else "not recorded"),
    ("updates skipped", _skipped),
    ("best checkpoint", lambda run: next((file.name for file in run.checkpoints if file.best), NONE)),
)


def _summary(runs: Sequence[Run]) -> Table:
    rows = [(title, value) for title, value in SUMMARY if any(value(run) != NONE for run in runs)]
    return _by_run(runs, rows, "")


def _curves(runs: Sequence[Run]) -> list[Block]:
    found: list[Block] = list(figures(runs))
    if found and any(figure.x_label == "tokens" for figure in found if isinstance(figure, Figure)):
        found.insert(0, Paragraph("The runs' steps are of different sizes: the curves are drawn over the tokens read."))
    return found


def _results(runs: Sequence[Run]) -> list[Block]:
    """Per language: the last training loss, and validation at the end and at its best."""
    head = ["language", "train loss", "train ppl", "val loss", "val ppl", "val acc, %", "best val ppl", "its acc, %"]
    rows = []
    for run in runs:
        for lang in [*run.languages, None]:
            part = f"_{lang}" if lang else ""
            loss = run.last(f"train/loss{part}")
            perplexity = None if loss is None or lang is None else math.exp(min(loss, 700.0))
            cells = [lang or "all", _figure(loss), _figure(perplexity)]
            cells += [_figure(run.last(f"val/{name}{part}")) for name in ("loss", "ppl", "acc")]
            cells += [_figure(run.at(f"val/{name}{part}", run.best_step)) for name in ("ppl", "acc")]
            rows.append((run, cells))
    if not any(run.columns for run in runs):
        return []
    caption = "The last report of each, and validation where the mean over languages (of perplexities, as the original's) was lowest"
    return [_listed(caption, head, rows)]


def _evaluations(runs: Sequence[Run]) -> list[Block]:
    rows = []
    for run in runs:
        for result in run.evaluations:
            checkpoint = result.get("checkpoint")
            step = checkpoint.get("step") if isinstance(checkpoint, dict) else None
            for lang, scores in [*result["languages"].items(), ("mean", result.get("mean"))]:
                if isinstance(scores, dict):
                    figures_ = [_figure(_of(scores, key)) for key in ("perplexity", "accuracy", "bits_per_character")]
                    start = f"{step:,}" if isinstance(step, int) else NONE
                    rows.append((run, [str(result.get("split", "text")), start, str(lang), *figures_]))
    head = ["split", "checkpoint's step", "language", "perplexity", "accuracy, %", "bits per character"]
    return [_listed("Results of xlm-eval found beside the run", head, rows)] if rows else []


def _of(values: dict[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, int | float) else None


def _validations(runs: Sequence[Run]) -> list[Block]:
    """Every validation of a run, or the mean perplexities of several by step."""
    measured = [run for run in runs if "val/ppl" in run.columns]
    if not measured:
        return []
    if len(runs) == 1:
        run = runs[0]
        steps = list(run.columns["val/ppl"].steps)
        names = sorted((key for key in run.columns if key.startswith("val/")), key=lambda key: (key.split("_")[0], key))
        head = ["step", *(name.removeprefix("val/") for name in names)]
    else:
        steps = sorted({step for run in measured for step in run.columns["val/ppl"].steps})
        names, head = ["val/ppl"], ["step", *(run.name for run in measured)]
    best = {id(run): run.best_step for run in measured}
    kept = thinned(steps, MOST_ROWS, keep=[step for step in best.values() if step is not None])
    rows = []
    for step in kept:
        cells: list[str | Cell] = [f"{step:,}"]
        for run in measured:
            for name in names:
                value = run.at(name, step)
                top = name == "val/ppl" and step == best[id(run)]
                cells.append(Cell(f"{_figure(value)} (best)", "good") if top else _figure(value))
        rows.append(cells)
    caption = "" if len(runs) == 1 else "Mean perplexity over the languages"
    if len(kept) < len(steps):
        caption = f"{caption} {len(kept)} of {len(steps):,} validations; the others are in metrics.jsonl".strip()
    table = Table(caption, head, rows)
    return [table] if len(rows) <= MOST_OPEN else [Folded(f"{len(steps):,} validations", table)]


def thinned(steps: Sequence[int], most: int, keep: Sequence[int]) -> list[int]:
    """At most `most` steps at even distances, first and last among them, and besides them those to keep."""
    if len(steps) <= most:
        return list(steps)
    chosen = {steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)}
    return sorted(chosen | set(keep))


def _events(runs: Sequence[Run]) -> list[Block]:
    rows, left_out = [], 0
    for run in runs:
        told = [event for event in run.events if event["event"] not in ("checkpoint", "skip")]
        left_out += max(0, len(told) - MOST_ROWS)
        for event in told[-MOST_ROWS:]:
            known = {key: value for key, value in event.items() if key not in ("time", "step", "event")}
            moment = event.get("time")
            start = when(float(moment)) if isinstance(moment, int | float) else NONE
            rows.append((run, [f"{event['step']:,}", start, str(event["event"]).replace("_", " "), _details(known)]))
    if not rows:
        return [Paragraph("No events were recorded: restarts cannot be marked.")]
    counts = [
        f"{run.name}: "
        + ", ".join(
            f"{MARKS.get(kind, kind)} {n:,}" for kind, n in _counts(run).items() if kind not in ("start", "finished")
        )
        for run in runs
        if any(kind not in ("start", "finished") for kind in _counts(run))
    ]
    blocks: list[Block] = [Paragraph(f"Counted: {'; '.join(counts)}.")] if counts else []
    if left_out:
        blocks.append(Paragraph(f"{left_out:,} earlier events are left out here; events.jsonl has them."))
    return [*blocks, _listed("", ["step", "time", "what", "details"], rows, words=True)]


def _counts(run: Run) -> dict[str, int]:
    kinds = [event["event"] for event in run.events]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def _details(known: dict[str, Any]) -> str:
    words = [
        f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in known.items()
        if value not in (None, [], "")
    ]
    return "; ".join(words)[:600]


def _checkpoints(runs: Sequence[Run]) -> list[Block]:
    rows: list[tuple[Run, list[str | Cell]]] = []
    for run in runs:
        for file in run.checkpoints:
            mark = Cell("best", "good") if file.best else Cell("damaged", "bad") if file.damaged else ""
            size = f"{file.size / 1e6:,.1f}"
            rows.append((run, [file.name, f"{file.step:,}", size, when(file.time), mark]))
    if not rows:
        return [Paragraph("None is there.")]
    return [_listed("", ["file", "step", "size, MB", "written", "mark"], rows)]


TONES = {"same": "good", "differs": "bad", "unknown": ""}


def _recipe(runs: Sequence[Run]) -> list[Block]:
    """Point by point; each run's column says whether it had what the original had, and what it had."""
    judged = [[point.judge(run) for point in recipe.POINTS] for run in runs]
    blocks: list[Block] = []
    for run, points in zip(runs, judged, strict=True):
        count = {kind: sum(verdict == kind for _, verdict in points) for kind in TONES}
        name = f"{run.name}: " if len(runs) > 1 else ""
        told = f"{count['same']} points are the same, {count['differs']} differ, {count['unknown']} cannot be told."
        blocks.append(Paragraph(name + told))
    blocks.append(Paragraph("Differences of method that no setting shows are listed in docs/differences.md."))
    rows: list[list[str | Cell]] = [
        [point.name, point.original, *(Cell(f"{verdict}: {here}", TONES[verdict]) for here, verdict in columns)]
        for point, *columns in zip(recipe.POINTS, *judged, strict=True)
    ]
    return [*blocks, Table("", ["point", "xlm-clm-ende-1024", *(run.name for run in runs)], rows, words=True)]


def _differences(runs: Sequence[Run]) -> list[Block]:
    rows = recipe.config_differences(runs)
    if not rows:
        return [Paragraph("None.")]
    return [Table("", ["setting", *(run.name for run in runs)], [[key, *values] for key, values in rows], words=True)]


def _parent(run: Run) -> str:
    parent = run.config.get("init_from")
    if parent is None:
        return "none: trained from random weights" if "init_from" in run.config else "not recorded"
    return f"{parent}, {f'content sha256 {run.parent_sha256}' if run.parent_sha256 else 'a file that is not there now'}"


def _newest(run: Run) -> str:
    whole = [file for file in run.checkpoints if not file.damaged]
    if not whole or run.newest_sha256 is None:
        return "none"
    return f"{max(whole, key=lambda file: file.step).name}, content sha256 {run.newest_sha256} (as its trailer says)"


LINEAGE: Sequence[tuple[str, Callable[[Run], str]]] = (
    ("corpus", lambda run: str(run.config.get("corpus_lineage", "not recorded"))),
    ("corpus's folder", lambda run: str(run.setting("data.path") or "not recorded")),
    ("parent checkpoint", _parent),
    ("newest checkpoint", _newest),
)


def _energy(runs: Sequence[Run]) -> list[Block]:
    if not any(run.energy or "energy/kwh" in run.columns for run in runs):
        return [Paragraph("None was recorded.")]

    def used(run: Run) -> str:
        recorded = _of(run.energy, "energy_kwh")
        if recorded is None:
            recorded = run.last("energy/kwh")
        return "none was recorded" if recorded is None else f"{recorded:,.3g} kWh"

    def emitted(run: Run) -> str:
        co2 = _of(run.energy, "co2_kg")
        return "not recorded" if co2 is None else f"{co2:,.3g} kg"

    rows: list[tuple[str, Callable[[Run], str]]] = [
        ("energy", used),
        ("carbon dioxide", emitted),
        ("method", lambda run: str(run.energy.get("method", "not recorded"))),
        ("region", lambda run: str(run.energy.get("region") or "not recorded")),
    ]
    return [_by_run(runs, rows, "")]


def _devices(run: Run) -> str:
    devices = run.environment.get("devices")
    if not isinstance(devices, list) or not run.environment:
        return "not recorded"
    return ", ".join(f"{devices.count(d)} x {d}" for d in dict.fromkeys(map(str, devices))) or "none: CPU only"


def _recorded(key: str) -> Callable[[Run], str]:
    return lambda run: str(run.environment.get(key, "not recorded"))


def _command(run: Run) -> str:
    command = run.environment.get("command")
    return " ".join(map(str, command)) if isinstance(command, list) else "not recorded"


def _packages(run: Run) -> str:
    packages = run.environment.get("packages")
    if not isinstance(packages, dict):
        return "not recorded"
    return ", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages)


MACHINE: Sequence[tuple[str, Callable[[Run], str]]] = (
    ("devices", _devices),
    ("processes", lambda run: NONE if run.processes is None else f"{run.processes}"),
    ("CPU cores of the first machine", _recorded("cpus")),
    ("platform", _recorded("platform")),
    ("Python", _recorded("python")),
    ("packages", _packages),
    ("last start", _command),
)


def _yaml(run: Run) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(run.config))
