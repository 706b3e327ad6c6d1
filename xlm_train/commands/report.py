"""`xlm-report`: what a run was and did, as one HTML page and as Markdown; several runs side by side."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from xlm_train.config.command import command
from xlm_train.config.schema import read_config
from xlm_train.report import write_report
from xlm_train.runtime.console import show


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
        "xlm-report run_name=demo paths.runs=s3://BUCKET/runs   (fetched into the cache)",
    ],
    read=functools.partial(read_config, ReportConfig),
)
def main(settings: ReportConfig) -> int:
    """Write the report and print where it is. Returns the exit status."""
    from xlm_train.report.reading import find_runs
    from xlm_train.runtime.run_store import fetch_records
    from xlm_train.runtime.storage import is_url

    runs, names = settings.paths.runs, [*map(str, [settings.run_name, *settings.compare])]
    run, *others = find_runs(fetch_records(runs, names) if is_url(runs) else Path(runs), names)
    write_report(run, others)
    show(f"{run / 'report.html'}\n{run / 'report.md'}")
    return 0


if __name__ == "__main__":
    main()
