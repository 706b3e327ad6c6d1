"""A report's sections as one HTML page, and as Markdown."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from xlm_train.report.content import Section
from xlm_train.report.figures import Figure
from xlm_train.report.html import document, markdown_text
from xlm_train.report.reading import Run, when
from xlm_train.report.svg import figure_html


def as_html(runs: Sequence[Run], sections: Sequence[Section]) -> str:
    """Write the sections as one page with everything in it."""
    here = Path(__file__).parent
    parts = [f"<h1>{escape(_title(runs))}</h1>"]
    for number, section in enumerate(sections):
        if section.title:
            parts.append(f"<h2>{escape(section.title)}</h2>")
        parts += [block.html() for block in section.blocks if not isinstance(block, Figure)]
        figures = [block for block in section.blocks if isinstance(block, Figure)]
        if figures:
            plots = (figure_html(figure, f"f{number}-{place}") for place, figure in enumerate(figures))
            parts.append(f'<div class="plots">{"".join(plots)}</div>')
    parts.append(f'<p class="muted">Written by xlm-report, {when(time.time())}.</p>')
    style = (here / "report.css").read_text(encoding="utf-8")
    script = (here / "readout.js").read_text(encoding="utf-8")
    return document(_title(runs), "\n".join(parts), style, script)


def as_markdown(runs: Sequence[Run], sections: Sequence[Section]) -> str:
    """Write the sections as Markdown, with the picture where the figures are."""
    parts = [f"# {markdown_text(_title(runs))}"]
    for section in sections:
        texts = [block.markdown() for block in section.blocks if not isinstance(block, Figure)]
        blocks = [text for text in texts if text]
        if any(isinstance(block, Figure) for block in section.blocks):
            blocks.append("![curves](plots/curves.png)")
        if blocks:
            parts += [f"## {markdown_text(section.title)}"] if section.title else []
            parts += blocks
    return "\n\n".join(parts) + "\n"


def _title(runs: Sequence[Run]) -> str:
    return f"Run {runs[0].name}" if len(runs) == 1 else "Runs " + ", ".join(run.name for run in runs)
