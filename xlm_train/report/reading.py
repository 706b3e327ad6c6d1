"""What a run folder holds, read whatever state it is in: running, failed, damaged or nearly empty."""

from __future__ import annotations

import difflib
import json
import math
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from xlm_train.config.parts import translates
from xlm_train.config.renamed import with_new_names
from xlm_train.evaluation import loss_of
from xlm_train.runtime.errors import ConfigError, UserError
from xlm_train.runtime.files import as_number, read_json
from xlm_train.runtime.run_folder import flatten, parse_config

# What earlier versions wrote under other names.
METRICS = {"speed/share_of_peak": "speed/mfu"}
SIGNS_OF_A_RUN = ("config.yaml", "status.json", "metrics.jsonl")


@dataclass(frozen=True)
class Column:
    """One metric: its values and the steps they were reported at."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class CheckpointFile:
    """A file of the checkpoints folder. damaged: set aside as such by a resume."""

    name: str
    step: int
    size: int
    time: float
    best: bool
    damaged: bool


@dataclass
class Run:
    """A run folder's contents.

    Args:
        path: The folder.
        config: config.yaml as it was written; `leaves` has today's names.
        status: status.json.
        environment: environment.json.
        energy: energy.json.
        columns: The metrics by name.
        events: events.jsonl: of each at least "event" and "step".
        samples: samples.jsonl: step and translations of each validation that shows some.
        generated: What `xlm-generate` left beside the run, in files called generated*.jsonl.
        checkpoints: The files of the checkpoints folder.
        newest_sha256: The checksum that the newest of them ends with, as hex.
        parent_sha256: The same of the checkpoint that the run was started from.
        evaluations: What `xlm-eval` left beside the run.
        manifest: The corpus's: the run's copy, else where the config says.
        last_report: When the last metrics were written, in seconds since 1970.
        problems: What is missing or damaged, in words.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    energy: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    samples: list[tuple[int, list[Mapping[str, Any]]]] = field(default_factory=list)
    generated: list[Mapping[str, Any]] = field(default_factory=list)
    checkpoints: list[CheckpointFile] = field(default_factory=list)
    newest_sha256: str | None = None
    parent_sha256: str | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    last_report: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.config.get("run_name") or self.path.name)

    @cached_property
    def leaves(self) -> dict[str, Any]:
        """The config by dotted keys, in today's names."""
        return flatten(with_new_names(self.config))

    def setting(self, key: str) -> Any:
        """The value of a dotted key of the config, or None."""
        return self.leaves.get(key)

    @property
    def masked_parts(self) -> list[Mapping[str, Any]]:
        """The objective, or the parts that it joins, as far as they predict hidden words."""
        objective = self.config.get("objective")
        objective = objective if isinstance(objective, dict) else {}
        parts = objective.get("parts")
        found = [objective, *(parts.values() if isinstance(parts, dict) else [])]
        return [part for part in found if isinstance(part, dict) and "mask_share" in part]

    @property
    def masked(self) -> bool:
        """Whether hidden words are predicted: perplexities are of these alone."""
        return bool(self.masked_parts)

    @property
    def reads_pairs(self) -> bool:
        """Whether pairs of sentences are read."""
        return any("pairs" in part for part in self.masked_parts)

    @property
    def translates(self) -> bool:
        """Whether the model is of an encoder and a decoder; objectives that are not installed here are of one model."""
        try:
            return translates(self.config.get("objective") or {})
        except (ImportError, AttributeError, TypeError, ValueError):  # damaged, or of another program
            return False

    @property
    def languages(self) -> list[str]:
        """Codes of the languages, and names of the pairs, that metrics were reported for, sorted."""
        found = {key.rpartition("_")[2] for key in self.columns if key.startswith(("train/loss_", "val/loss_"))}
        return sorted(found)

    @property
    def directions(self) -> list[str]:
        """Directions of translation that BLEU was reported for, as "de-en", sorted."""
        return sorted(key.rpartition("_")[2] for key in self.columns if key.startswith("val/bleu_"))

    @property
    def restarts(self) -> list[dict[str, Any]]:
        """The starts that went on from a checkpoint."""
        return [event for event in self.events if event["event"] == "start" and event["step"] > 0]

    @property
    def tokens_per_step(self) -> int | None:
        """Tokens that a step reads, over all processes: as reported, else as windows make them up."""
        if told := self.columns.get("progress/tokens"):  # batches of sentences are not all of one size
            return round(told.values[-1] / max(1, told.steps[-1]))
        sizes = [self.setting(f"data.{key}") for key in ("slots", "slot_streams", "bptt")]
        return math.prod(sizes) if all(isinstance(size, int) for size in sizes) else None

    @property
    def processes(self) -> int | None:
        """Processes of the run, over all nodes."""
        sizes = [self.setting(f"trainer.{key}") for key in ("devices", "nodes")]
        return math.prod(sizes) if all(isinstance(size, int) for size in sizes) else None

    @property
    def hours(self) -> float | None:
        """Hours in training steps, of all starts together."""
        column = self.columns.get("speed/seconds_per_step")
        if not column:
            return None
        before = [0, *column.steps[:-1]]
        return sum(s * (n - b) for s, n, b in zip(column.values, column.steps, before, strict=True)) / 3600

    def last(self, name: str) -> float | None:
        """The value of a metric that was reported last."""
        column = self.columns.get(name)
        return column.values[-1] if column else None

    def at(self, name: str, step: int | None) -> float | None:
        """The value of a metric reported at exactly this step."""
        column = self.columns.get(name)
        if column is None or step is None or step not in column.steps:
            return None
        return column.values[column.steps.index(step)]

    @property
    def monitor(self) -> str:
        """The metric that decides which validation is the best."""
        name = self.setting("callbacks.validation.monitor")
        return name if isinstance(name, str) and name in self.columns else "val/ppl"

    @property
    def best_step(self) -> int | None:
        """The step of the best validation, by the run's monitor."""
        column = self.columns.get(self.monitor)
        if not column:
            return None
        losses = [loss_of(self.monitor, value) for value in column.values]
        return min(zip(losses, column.steps, strict=True))[1]


def find_runs(runs: Path, names: Sequence[str]) -> list[Path]:
    """Find the folders of runs.

    Args:
        runs: The folder that has them all.
        names: Names of runs, below that folder.

    Returns:
        Their folders.

    Raises:
        UserError: Every name there is no run of, with the nearest that exist.
    """
    if not runs.is_dir():
        raise UserError(f"paths.runs={runs}: there is no such folder; paths.runs=FOLDER says where the runs are")
    folders = [runs / name for name in names]
    missing = [name for name, folder in zip(names, folders, strict=True) if not _is_run(folder)]
    problems = []
    if missing:
        files = (file for sign in SIGNS_OF_A_RUN for depth in ("*", "*/*") for file in runs.glob(f"{depth}/{sign}"))
        known = sorted({str(file.parent.relative_to(runs)) for file in files})
        for name in missing:
            key = "run_name" if name == names[0] else "compare"
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known[:20]) or 'none'}"
            problems.append(f"{key}={name}: there is no run of that name in {runs}; {hint}")
    problems += [f"compare={name}: is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        raise UserError(problems)
    return folders


def _is_run(folder: Path) -> bool:
    return any((folder / sign).is_file() for sign in SIGNS_OF_A_RUN)


def read_run(path: Path) -> Run:
    """Read everything that a report tells of a run.

    Args:
        path: The run's folder, in whatever state it is.

    Returns:
        The run. For what is missing or damaged nothing is raised: `problems` names it.
    """
    run = Run(path)
    run.config = _read_config(path / "config.yaml", run.problems)
    run.status = _read_object(path / "status.json", run.problems, expected=True)
    run.environment = _read_object(path / "environment.json", run.problems, expected=bool(run.config))
    run.energy = _read_object(path / "energy.json", run.problems)
    for line in _read_lines(path / "metrics.jsonl", run.problems, expected=True):
        run.last_report = as_number(line.get("time"))
        for key, value in line.items():
            if "/" in key and (figure := as_number(value)) is not None:
                column = run.columns.setdefault(METRICS.get(key, key), Column())
                column.steps.append(line["step"])
                column.values.append(figure)
    run.events = [
        {**line, "event": str(line["event"])}
        for line in _read_lines(path / "events.jsonl", run.problems)
        if line.get("event")
    ]
    run.samples = [
        (line["step"], [sample for sample in line["samples"] if isinstance(sample, dict)])
        for line in _read_lines(path / "samples.jsonl", run.problems)
        if isinstance(line.get("samples"), list)
    ]
    for file in sorted(path.glob("generated*.jsonl")):
        run.generated += _read_lines(file, run.problems, wanted=lambda line: isinstance(line.get("text"), str))
    _read_checkpoints(run)
    for file in [path / "evaluation.json", *sorted((path / "checkpoints").glob("*.json"))]:
        result = _read_object(file, run.problems)
        if isinstance(result.get("languages", result.get("directions")), dict):
            run.evaluations.append(result)
    corpus = run.setting("data.path")
    for file in [path / "corpus.json", *([Path(corpus) / "manifest.json"] if isinstance(corpus, str) else [])]:
        manifest = {} if run.manifest else _read_object(file, run.problems)
        if manifest and manifest.get("lineage") == run.config.get("corpus_lineage"):
            run.manifest = manifest
    return run


def _read_config(file: Path, problems: list[str]) -> dict[str, Any]:
    if not file.is_file():
        problems.append(f"{file.name} is not there: the run has not got as far as its first step")
        return {}
    try:
        return parse_config(file.read_bytes(), file.name)
    except ConfigError as error:
        problems += error.problems
        return {}


def _read_object(file: Path, problems: list[str], expected: bool = False) -> dict[str, Any]:
    if not file.is_file():
        if expected:
            problems.append(f"{file.name} is not there")
        return {}
    try:
        found = read_json(file)
    except UserError as error:
        problems.append(str(error).replace(str(file), file.name))
        return {}
    if not isinstance(found, dict):
        problems.append(f"{file.name} is damaged: it is not a JSON object")
        return {}
    return found


def _has_step(line: Mapping[str, Any]) -> bool:
    return isinstance(line.get("step"), int) and 0 <= line["step"] < 2**53


def _read_lines(
    file: Path, problems: list[str], expected: bool = False, wanted: Callable[[Mapping[str, Any]], bool] = _has_step
) -> Iterator[Mapping[str, Any]]:
    """The wanted JSON objects of a file, line by line; a last line that is being written is left out silently."""
    if not file.is_file():
        if expected:
            problems.append(f"{file.name} is not there")
        return
    damaged = 0
    try:
        with open(file, "rb") as lines:
            for text in lines:
                try:
                    found = json.loads(text)
                except (ValueError, RecursionError):
                    damaged += text.endswith(b"\n")
                    continue
                if isinstance(found, dict) and wanted(found):
                    yield found
                else:
                    damaged += 1
    except OSError as error:
        problems.append(f"{file.name}: cannot be read: {error.strerror or error}")
    if damaged:
        problems.append(f"{file.name}: {damaged:,} line{'s' if damaged > 1 else ''} damaged and left out")


def _read_checkpoints(run: Run) -> None:
    """Names, sizes and times, and the checksum that ends the newest file; no tensor is loaded."""
    from xlm_train.runtime import checkpoint_file

    folder = run.path / "checkpoints"
    best = folder / "best.pt"
    best_name = best.resolve().name if best.is_symlink() else None
    for file in sorted(folder.glob("step-*.pt*")):
        found = checkpoint_file.NAME.match(file.name)
        if found is None or file.suffix not in (".pt", ".damaged"):
            continue
        try:
            stat = file.stat()
        except FileNotFoundError:  # removed by a run that goes on
            continue
        damaged = file.suffix == ".damaged"
        run.checkpoints.append(
            CheckpointFile(
                file.name, int(found[1]), stat.st_size, stat.st_mtime, not damaged and file.name == best_name, damaged
            )
        )
    whole = [file for file in run.checkpoints if not file.damaged]
    if best_name is not None and best_name not in [file.name for file in whole]:
        run.problems.append(f"checkpoints/best.pt points to {best_name}, which is not there")
    if whole:
        newest = max(whole, key=lambda file: file.step)
        run.newest_sha256 = checkpoint_file.peek(folder / newest.name)
        if run.newest_sha256 is None:
            run.problems.append(f"checkpoints/{newest.name} does not end as a checkpoint: it is damaged")
    parent = run.config.get("init_from")
    starts = [event["parents"] for event in run.events if event["event"] == "start" and event.get("parents")]
    if starts and isinstance(starts[0], list):
        run.parent_sha256 = str(starts[0][-1])
    elif isinstance(parent, str) and (file := checkpoint_file.of_run(parent)).is_file():
        run.parent_sha256 = checkpoint_file.peek(file)


def when(seconds: float) -> str:
    """A moment in words, UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):  # damaged
        return "not a time"
