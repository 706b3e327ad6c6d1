"""Jobs of a sweep: what each varied and what came of it, and jobs that differ by their seeds alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median, stdev
from typing import Any, NamedTuple

from xlm_train.report.reading import Run
from xlm_train.runtime.run_folder import DONE

SEED = "seed"


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
        monitor: The metric that decides which validation of the run is the best.
        best_step: Step of the best validation, by the monitor.
        best: The monitor's value there.
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
    monitor: str
    best_step: int | None
    best: float | None
    perplexity: float | None
    perplexities: dict[str, float | None]
    bleu: float | None
    bleus: dict[str, float | None]
    train_loss: float | None
    tokens_per_second: float | None
    hours: float | None

    @property
    def scores(self) -> dict[str, float | None]:
        """All its scores, by the metrics' names."""
        return {
            "val/bleu": self.bleu,
            **{f"val/bleu_{name}": value for name, value in self.bleus.items()},
            "val/ppl": self.perplexity,
            **{f"val/ppl_{name}": value for name, value in self.perplexities.items()},
            "train/loss": self.train_loss,
        }


def row_of(record: dict[str, Any], run: Run) -> Row:
    """A job's row, from its record and its run."""
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
        monitor=run.monitor,
        best_step=best,
        best=run.at(run.monitor, best),
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


def keys_of(rows: Sequence[Row]) -> list[str]:
    """Everything that some job varies, in the order of the command line."""
    return list(dict.fromkeys(key for row in rows for key in row.varied))


def score_names(rows: Sequence[Row]) -> list[str]:
    """Metrics to compare jobs by: of translation first, of languages behind their mean."""
    languages = sorted({lang for row in rows for lang in row.perplexities})
    directions = sorted({direction for row in rows for direction in row.bleus})
    bleu = ["val/bleu", *(f"val/bleu_{direction}" for direction in directions)] if directions else []
    return [*bleu, "val/ppl", *(f"val/ppl_{lang}" for lang in languages), "train/loss"]


def by_seed(rows: Sequence[Row]) -> list[list[Row]]:
    """Jobs that differ by the seed alone, together, in the order of the first of each."""
    found: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(sorted(without_seed(row).items())), []).append(row)
    return list(found.values())


def without_seed(row: Row) -> dict[str, str]:
    """What a job varies besides the seed."""
    return {key: value for key, value in row.varied.items() if key != SEED}


class Spread(NamedTuple):
    """Of a score over seeds: mean, and sample standard deviation (by n - 1), which one seed does not have."""

    mean: float
    deviation: float | None


def spread(rows: Sequence[Row], name: str) -> Spread | None:
    """A score over the jobs that are done; None where none has it."""
    values = [value for row in rows if row.status in DONE and (value := row.scores.get(name)) is not None]
    return Spread(mean(values), stdev(values) if len(values) > 1 else None) if values else None


def averaged(rows: Sequence[Row]) -> Row:
    """Jobs that differ by the seed alone as one, with the mean scores of those that are done, if any is."""
    rows = [row for row in rows if row.status in DONE] or rows

    def average(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return mean(known) if known else None

    languages = dict.fromkeys(lang for row in rows for lang in row.perplexities)
    directions = dict.fromkeys(direction for row in rows for direction in row.bleus)
    return replace(
        rows[0],
        varied=without_seed(rows[0]),
        best=average([row.best for row in rows]),
        bleu=average([row.bleu for row in rows]),
        bleus={direction: average([row.bleus.get(direction) for row in rows]) for direction in directions},
        perplexity=average([row.perplexity for row in rows]),
        perplexities={lang: average([row.perplexities.get(lang) for row in rows]) for lang in languages},
    )


def short(value: str) -> str:
    """A value that a search has chosen, in four digits."""
    number = as_number(value)
    return value if number is None or len(value) <= 8 else f"{number:.4g}"


def label_of(row: Row) -> str:
    """What a job varies, in few words: a key by its last part, where no other ends so."""
    leaves = [key.rpartition(".")[2] for key in row.varied]
    names = [leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(row.varied, leaves, strict=True)]
    return (
        ", ".join(f"{name}={short(value)}" for name, value in zip(names, row.varied.values(), strict=True)) or row.run
    )


def as_number(text: str) -> float | None:
    """The number that a text is, if it is a finite one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
