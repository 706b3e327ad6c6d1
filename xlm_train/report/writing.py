"""A report's sections as one HTML page, and as Markdown."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from xlm_train.report import figures
from xlm_train.report.content import Block, Folded, Paragraph, Section
from xlm_train.report.figures import Figure
from xlm_train.report.html import Table, document, markdown_text
from xlm_train.report.reading import Run, when


def title_of(runs: Sequence[Run]) -> str:
    return f"Run {runs[0].name}" if len(runs) == 1 else "Runs " + ", ".join(run.name for run in runs)


def as_html(runs: Sequence[Run], sections: Sequence[Section]) -> str:
    """One page with everything in it."""
    here = Path(__file__).parent
    parts = [f"<h1>{escape(title_of(runs))}</h1>"]
    for number, section in enumerate(sections):
        if section.title:
            parts.append(f"<h2>{escape(section.title)}</h2>")
        drawn = [block for block in section.blocks if isinstance(block, Figure)]
        parts += [_html(block) for block in section.blocks if not isinstance(block, Figure)]
        if drawn:
            plots = (figures.html(figure, f"f{number}-{place}") for place, figure in enumerate(drawn))
            parts.append(f'<div class="plots">{"".join(plots)}</div>')
    parts.append(f'<p class="muted">Written by xlm-report, {when(time.time())}.</p>')
    style = (here / "report.css").read_text(encoding="utf-8")
    script = (here / "readout.js").read_text(encoding="utf-8")
    return document(title_of(runs), "\n".join(parts), style, script)


def _html(block: Paragraph | Table | Folded) -> str:
    if isinstance(block, Table):
        return block.html()
    if isinstance(block, Folded):
        inside = block.content.html() if isinstance(block.content, Table) else f"<pre>{escape(block.content)}</pre>"
        return f"<details><summary>{escape(block.title)}</summary>{inside}</details>"
    kind = ' class="warning"' if block.warning else ""
    return f"<p{kind}>{escape(block.text)}</p>"


def as_markdown(runs: Sequence[Run], sections: Sequence[Section]) -> str:
    """The same as Markdown; for the figures stands the picture of the first run's curves."""
    parts = [f"# {markdown_text(title_of(runs))}"]
    for section in sections:
        blocks = [text for block in section.blocks if (text := _markdown(block))]
        if any(isinstance(block, Figure) for block in section.blocks):
            blocks.append("![curves](plots/curves.png)")
        if blocks:
            parts += [f"## {markdown_text(section.title)}"] if section.title else []
            parts += blocks
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Table):
        caption = f"{markdown_text(block.caption)}:\n\n" if block.caption else ""
        return caption + block.markdown()
    if isinstance(block, Folded) and isinstance(block.content, Table):
        return _markdown(block.content)
    if isinstance(block, Paragraph):
        return f"**{markdown_text(block.text)}**" if block.warning else markdown_text(block.text)
    return ""  # figures are a picture; the config lies beside the report
