"""Metrics as JSON lines in the run folder, and progress on the console: two Lightning loggers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger

from xlm_train.runtime.console import columns_of, compact, counted, duration, fitted, log
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import append_line, atomic_write
from xlm_train.runtime.processes import is_first_process
from xlm_train.runtime.run_folder import RunFolder


class LocalLogger(Logger):
    """Logs nothing: the base of both loggers here, and the logger of every process but the first.

    (Stock callbacks ask for a logger on every process.)
    """

    @property
    def name(self) -> str:
        """Empty: stock callbacks put it into paths below the run's folder."""
        return ""

    @property
    def version(self) -> str:
        """Empty, for the same reason."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Ignore them."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Ignore them: hyperparameters are in config.yaml."""


class JsonLines:
    """A file with a line {"step": .., "time": .., name: value, ...} for each report.

    A killed run loses at most the line being written.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def rewind(self, step: int) -> None:
        """Remove lines after a step, and one that a kill cut off: the resumed run writes them again."""
        lines = _lines(self.path)
        if lost := lines[:-1].count(None):
            log(f"warning: {self.path}: {counted(lost, 'line')} of it cannot be read: reports are lost")
        with atomic_write(self.path) as file:
            for line in lines:
                if line is not None and line["step"] <= step:
                    file.write(json.dumps(line).encode() + b"\n")

    def append(self, step: int | None, values: Mapping[str, Any]) -> None:
        """Append a line."""
        line = json.dumps({"step": step, "time": round(time.time(), 3), **values})
        try:
            append_line(self.path, line)
        except (
            OSError
        ) as error:  # training is worth more than its record; the next report may find room on the disk again
            log(f"warning: {self.path}: the report of step {step:,} is lost: {error.strerror or error}")


class JsonLinesLogger(LocalLogger):
    """Writes every report to a file of JSON lines.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.lines = JsonLines(path)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line."""
        self.lines.append(step, metrics)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file, without those that a kill cut off or a disk damaged.

    Args:
        path: a run's metrics.jsonl.

    Returns:
        One dict a line, oldest first; none where there is no file.
    """
    return [line for line in _lines(path) if line is not None]


def _lines(path: str | Path) -> list[dict[str, Any] | None]:
    """Each line of a metrics file, None where it cannot be read; the last is what stands behind the last line end."""
    data = Path(path).read_bytes() if Path(path).is_file() else b""
    return [_report(line) for line in data.split(b"\n")]


def _report(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("step"), int) else None


def make_loggers(entries: Mapping[str, Any], config: dict[str, Any], run: RunFolder, step: int) -> list[Logger]:
    """Instantiate the loggers of this process, each to continue after `step`.

    A logger that cannot start is left out with a warning: training matters more than its record.

    Args:
        entries: name -> mapping with `_target_`, as in configs/logger.
        config: the run's resolved config, for trackers that show it.
        run: the run's folder, which knows its id at a tracking service.
        step: of the checkpoint that the run resumes from.

    Returns:
        At least one; on all processes but the first, one that logs nothing.

    Raises:
        UserError: a metrics file cannot be written.
    """
    import hydra.utils

    loggers: list[Logger] = []
    if not is_first_process():
        return [LocalLogger()]
    for name, entry in entries.items():
        more: dict[str, Any] = {}
        if entry["_target_"].endswith("WandbLogger"):
            more = {"id": run.tracking_id(), "resume": "allow", "config": config}
        elif entry["_target_"].endswith("TensorBoardLogger"):
            more = {"purge_step": step + 1}
        try:
            logger = hydra.utils.instantiate(entry, _partial_=True, _convert_="all")(**more)
            if isinstance(logger, JsonLinesLogger):
                logger.lines.rewind(step)
            elif not isinstance(logger, LocalLogger):
                logger.experiment  # noqa: B018 - trackers start when they are first looked at
        except UserError:
            raise
        except Exception as error:  # whatever a tracker raises
            log(f"warning: logger.{name} cannot start and is left out: {type(error).__name__}: {error}")
            continue
        loggers.append(logger)
    return loggers or [LocalLogger()]


class ConsoleLogger(LocalLogger):
    """Shows step, tokens, losses, tokens/s and time left: one line redrawn on a terminal, plain lines elsewhere.

    Args:
        seconds: between two lines where there is no terminal.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.terminal = sys.stderr.isatty()
        self.last = 0.0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Show a report or a validation; what other callbacks log is not shown."""
        if "val/ppl" in metrics:
            bleu = f", {describe(metrics, 'val/bleu')}{without_a_model(metrics)}" if "val/bleu" in metrics else ""
            self._print(
                f"step {step:,}: validation {describe(metrics, 'val/ppl')}, {describe(metrics, 'val/acc')} %{bleu}",
                keep=True,
            )
        elif "train/loss" in metrics and (
            self.terminal or time.monotonic() - self.last >= self.seconds or step == metrics["progress/steps"]
        ):
            self.last = time.monotonic()
            self._print(progress_line(step or 0, metrics, columns_of(sys.stderr)))

    def _print(self, text: str, keep: bool = False) -> None:
        if self.terminal:
            print(f"\r\x1b[K{text}", end="\n" if keep else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def finalize(self, status: str) -> None:
        """End the line that was redrawn."""
        if self.terminal:
            print(file=sys.stderr)


def progress_line(step: int, metrics: Mapping[str, float], columns: int | None) -> str:
    """Format a report, the most important first; where the line is too narrow, the rest is left out.

    Args:
        step: of the report.
        metrics: by name.
        columns: of the line at most; None: no terminal, so all of it and no bar.
    """
    loss, _, languages = describe(metrics, "train/loss").partition(" (")
    parts = [
        f"step {step:,}/{metrics['progress/steps']:,.0f}",
        f"{duration(metrics['progress/seconds_left'])} left",
        loss,
        f"{metrics['speed/tokens_per_second']:,.0f} tokens/s",
        *([f"({languages}"] if languages else []),
        f"{compact(metrics['progress/tokens'])} tokens",
        f"lr {metrics['optim/lr']:.2e}",
    ]
    if columns is not None:
        parts.append(progress_bar(step / metrics["progress/steps"]))
    return fitted(parts, columns)


def without_a_model(metrics: Mapping[str, float]) -> str:
    """Format what BLEU is to be compared with, of each direction in the order of their names."""
    found = []
    for kind, words in (("constant", "best constant sentence"), ("copied", "copied source")):
        values = [f"{value:.4g}" for key, value in sorted(metrics.items()) if key.startswith(f"val/{kind}_")]
        found.append(f"{words} {', '.join(values)}")
    return f" [without a model: {'; '.join(found)}]"


def progress_bar(share: float, width: int = 20) -> str:
    """Draw a share from 0 to 1 as `[####....]`, `width` characters between the brackets."""
    full = round(width * share)
    return "[" + "#" * full + "." * (width - full) + "]"


def describe(metrics: Mapping[str, float], name: str) -> str:
    """Format a metric with its parts per language, such as `loss 3.21 (de 3.30, en 3.12)`.

    Args:
        metrics: by name; those of a language end with `_` and its code.
        name: of the whole, such as `train/loss`.
    """
    parts = [
        f"{key[len(name) + 1 :]} {value:.4g}" for key, value in sorted(metrics.items()) if key.startswith(f"{name}_")
    ]
    return f"{name.split('/')[1]} {metrics.get(name, float('nan')):.4g}" + (f" ({', '.join(parts)})" if parts else "")
