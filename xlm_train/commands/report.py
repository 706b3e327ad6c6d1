"""`xlm-report`: what a run was and did, as one HTML page and as Markdown; several runs side by side."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from xlm_train.config.command import command
from xlm_train.config.schema import read_config
from xlm_train.report import write_report


@dataclass
class Paths:
    """The folder of runs."""

    runs: str


@dataclass
class ReportConfig:
    """configs/report.yaml. A run's name may be a number."""

    run_name: str | int | float
    compare: list[str | int | float]
    paths: Paths


@command(
    "report",
    "Report on a run, finished or not: RUN/report.html (one page that fetches nothing), report.md and plots/curves.png.",
    [
        "xlm-report run_name=first",
        "xlm-report run_name=first compare=[second,third]",
        "xlm-report run_name=demo paths.runs=demo/runs",
    ],
    read=functools.partial(read_config, ReportConfig),
)
def main(settings: ReportConfig) -> int:
    """Write the report and print where it is. Returns the exit status."""
    from xlm_train.report.reading import find_runs

    run, *others = find_runs(Path(settings.paths.runs), [*map(str, [settings.run_name, *settings.compare])])
    write_report(run, others)
    print(f"{run / 'report.html'}\n{run / 'report.md'}")
    return 0


if __name__ == "__main__":
    main()
