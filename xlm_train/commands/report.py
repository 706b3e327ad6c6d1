"""`xlm-report`: what a run was and did, as one HTML page and as Markdown; several runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xlm_train.config.command import command
from xlm_train.config.schema import read_config

if TYPE_CHECKING:
    from omegaconf import DictConfig
from xlm_train.report import write_report


@dataclass
class Paths:
    runs: str


@dataclass
class ReportConfig:
    run_name: str
    compare: list[str]
    paths: Paths


@command(
    "report",
    "Report on a run, finished or not: RUN/report.html (one page that fetches nothing), report.md and plots/curves.png.",
    [
        "xlm-report run_name=first",
        "xlm-report run_name=first compare=[second,third]",
        "xlm-report run_name=demo paths.runs=demo/runs",
    ],
)
def main(config: DictConfig) -> int:
    settings = read_config(ReportConfig, config)
    from xlm_train.report.reading import find_runs

    run, *others = find_runs(Path(settings.paths.runs), [settings.run_name, *map(str, settings.compare)])
    write_report(run, others)
    print(f"{run / 'report.html'}\n{run / 'report.md'}")
    return 0


if __name__ == "__main__":
    main()
