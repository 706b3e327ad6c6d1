"""What a run was and did, as one HTML page and as Markdown; several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_report(run: Path, compare: Sequence[Path] = ()) -> None:
    """Write `report.html`, `report.md` and `plots/curves.png` into the folder of a run.

    compare: folders of other runs, shown beside it. Whatever a folder lacks or has damaged is said on the page.
    Raises UserError where a file cannot be written.
    """
    from xlm_train.report.content import sections
    from xlm_train.report.picture import plot_curves
    from xlm_train.report.reading import read_run
    from xlm_train.report.writing import as_html, as_markdown
    from xlm_train.runtime.files import atomic_write

    runs = [read_run(path) for path in (run, *compare)]
    (run / "plots").mkdir(exist_ok=True)
    plot_curves(runs[0], run / "plots" / "curves.png")
    found = sections(runs)
    for name, text in (("report.html", as_html(runs, found)), ("report.md", as_markdown(runs, found))):
        with atomic_write(run / name) as file:
            file.write(text.encode())
