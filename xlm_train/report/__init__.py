"""What a run was and did, as one HTML page and as Markdown; several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xlm_train.runtime.console import log
from xlm_train.runtime.errors import UserError


def write_report(run: Path, compare: Sequence[Path] = ()) -> None:
    """Write `report.html`, `report.md` and `plots/curves.png` into the folder of a run.

    What a folder lacks, and what in it is damaged, is named on the page.

    Args:
        run: The run's folder.
        compare: Folders of other runs, shown beside it.

    Raises:
        UserError: A file cannot be written.
    """
    from xlm_train.report.content import sections
    from xlm_train.report.curves import figures
    from xlm_train.report.png import draw
    from xlm_train.report.reading import read_run
    from xlm_train.report.writing import as_html, as_markdown, title_of
    from xlm_train.runtime.files import atomic_write

    runs = [read_run(path) for path in (run, *compare)]
    try:
        (run / "plots").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{run / 'plots'}: cannot be made: {error.strerror}") from error
    draw(figures(runs), run / "plots" / "curves.png")
    title, content = title_of(runs), sections(runs)
    pages = {"report.html": as_html(title, content), "report.md": as_markdown(title, content, "plots/curves.png")}
    for name, text in pages.items():
        with atomic_write(run / name) as file:
            file.write(text.encode())


def leave_report(run: Path) -> None:
    """Write a run's report at its end; whatever goes wrong there does not undo the run."""
    try:
        write_report(run)
    except Exception as error:
        log(f"warning: no report was written: {type(error).__name__}: {error}; xlm-report writes it again")
