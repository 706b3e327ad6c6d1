"""What a report says, as sections of text, tables and figures; writing.py gives them their form."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xlm_train.report.curves import figures, lead_of
from xlm_train.report.figures import Figure
from xlm_train.report.html import Block, Cell, Folded, Paragraph, Table
from xlm_train.report.masking import models_of, points_of
from xlm_train.report.reading import Run
from xlm_train.report.recipe import config_differences, n_parameters
from xlm_train.report.results import (
    NONE,
    by_language,
    checkpoints,
    digits,
    evaluations,
    events,
    figure_of,
    samples,
    translations,
    validations,
)
from xlm_train.runtime.console import compact, counted, duration

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


@dataclass(frozen=True)
class Section:
    """A part of the report under a title of its own."""

    title: str
    blocks: Sequence[Block | Figure]


def sections(runs: Sequence[Run]) -> list[Section]:
    """Put a report's content together.

    Args:
        runs: The run; others to show beside it.

    Returns:
        The sections in reading order. The first has no title.
    """
    curves = figures(runs)
    lead = lead_of(curves)
    found = [
        Section("", [*_states(runs), *_problems(runs), *_remarks(runs, curves), _summary(runs), *lead]),
        Section("Curves", [figure for figure in curves if figure not in lead]),
        Section("Results", [*by_language(runs), *translations(runs), *evaluations(runs)]),
        Section("Validation", validations(runs)),
        Section("Samples", samples(runs)),
        Section("Starts and incidents", events(runs)),
        Section("Checkpoints kept", checkpoints(runs)),
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


def _median(run: Run, name: str) -> float | None:
    column = run.columns.get(name)
    return statistics.median(column.values) if column else None


def _tokens(run: Run) -> str:
    tokens = run.last("progress/tokens")
    return NONE if tokens is None else f"{compact(tokens)} ({tokens:,.0f})"


def _best(run: Run) -> str:
    step = run.best_step
    if step is None:
        return NONE
    by = "" if run.monitor == "val/ppl" else f" (by {run.monitor}: {run.at(run.monitor, step):,.4g})"
    masked = ", of masked words" if run.masked else ""
    return f"{digits(run.at('val/ppl', step), ',.4g')}{masked} at step {step:,}{by}"


def _hours(run: Run) -> str:
    return NONE if run.hours is None else duration(run.hours * 3600)


def _skipped(run: Run) -> str:
    skipped = run.status.get("skipped")
    count = float(len(skipped)) if isinstance(skipped, list) else run.last("optim/skipped_steps")
    return NONE if count is None else f"{count:,.0f}"


def _parameters(run: Run) -> str:
    count = n_parameters(run)
    return NONE if count is None else f"{count:,}"


def _mfu(run: Run) -> str:
    return digits(_median(run, "speed/mfu"), ".1%")


SUMMARY: Sequence[tuple[str, Callable[[Run], str]]] = (
    ("steps", lambda run: f"{_last_step(run):,}"),
    ("tokens read", _tokens),
    ("parameters", _parameters),
    ("mean perplexity of the best validation", _best),
    ("training time (steps only)", _hours),
    ("tokens/s, median", lambda run: digits(_median(run, "speed/tokens_per_second"), ",.0f")),
    ("model FLOPs utilisation (of the device's peak), median", _mfu),
    ("peak memory of a process, GB", lambda run: digits(run.last("memory/peak_gb"), ".3g")),
    ("restarts", lambda run: f"{len(run.restarts)}" if run.events else "not recorded"),
    ("updates skipped", _skipped),
    ("best checkpoint", lambda run: next((file.name for file in run.checkpoints if file.best), NONE)),
)


def _summary(runs: Sequence[Run]) -> Table:
    rows = [(title, value) for title, value in SUMMARY if any(value(run) != NONE for run in runs)]
    return _by_run(runs, rows, "")


def _remarks(runs: Sequence[Run], curves: Sequence[Figure]) -> list[Paragraph]:
    """What to know before reading the curves."""
    found = []
    if len({run.masked for run in runs}) > 1:
        names = ", ".join(run.name for run in runs if run.masked)
        text = f"Losses and perplexities of {names} are of hidden words, seen from both sides: they do not compare with the others'."
        found.append(Paragraph(text, warning=True))
    if any(figure.x_label == "tokens" for figure in curves):
        found.append(Paragraph("The runs' steps are of different sizes: the curves are drawn over the tokens read."))
    return found


TONES = {"same": "good", "differs": "bad", "unknown": ""}


def _recipe(runs: Sequence[Run]) -> list[Block]:
    """Point by point; each run's column says whether it had what the original had, and what it had."""
    asked = points_of(runs)
    compared = [[point.compare(run) for point in asked] for run in runs]
    blocks: list[Block] = []
    for run, points in zip(runs, compared, strict=True):
        count = {kind: sum(verdict == kind for _, verdict in points) for kind in TONES}
        name = f"{run.name}: " if len(runs) > 1 else ""
        text = f"{count['same']} points are the same, {count['differs']} differ, {count['unknown']} cannot be told."
        blocks.append(Paragraph(name + text))
    blocks.append(
        Paragraph(
            "No settings were published with the checkpoints: each point names the source of the original's value; for the"
            " optimizer that is the printed command. Differences of method that no setting shows are listed in"
            " docs/differences.md."
        )
    )
    rows: list[list[str | Cell]] = [
        [
            point.name,
            point.original,
            point.source,
            *(Cell(f"{verdict}: {here}", TONES[verdict]) for here, verdict in columns),
        ]
        for point, *columns in zip(asked, *compared, strict=True)
    ]
    return [*blocks, Table("", ["point", models_of(runs), "source", *(run.name for run in runs)], rows, words=True)]


def _differences(runs: Sequence[Run]) -> list[Block]:
    rows = config_differences(runs)
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
        recorded = figure_of(run.energy, "energy_kwh")
        if recorded is None:
            recorded = run.last("energy/kwh")
        return "none was recorded" if recorded is None else f"{recorded:,.3g} kWh"

    def emitted(run: Run) -> str:
        co2 = figure_of(run.energy, "co2_kg")
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
