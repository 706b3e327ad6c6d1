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


def as_html(title: str, sections: Sequence[Section]) -> str:
    """Write sections as one page with everything in it."""
    parts = []
    for number, section in enumerate(sections):
        if section.title:
            parts.append(f"<h2>{escape(section.title)}</h2>")
        texts = "\n".join(block.html() for block in section.blocks if not isinstance(block, Figure))
        figures = [block for block in section.blocks if isinstance(block, Figure)]
        plots = "".join(figure_html(figure, f"f{number}-{place}") for place, figure in enumerate(figures))
        if plots and not section.title:  # the first screen: side by side where there is room
            parts.append(f'<div class="lead"><div>{texts}</div>{plots}</div>')
        else:
            parts += [texts, *([f'<div class="plots">{plots}</div>'] if plots else [])]
    parts.append(f'<p class="muted">Written {when(time.time())}.</p>')
    return page(title, "\n".join(parts))


def page(title: str, body: str, style: str = "") -> str:
    """Put a page with figures together.

    Args:
        title: Text, also the page's heading.
        body: Markup below it.
        style: CSS besides what such pages have.
    """
    here = Path(__file__).parent
    style = (here / "report.css").read_text(encoding="utf-8") + style
    script = (here / "readout.js").read_text(encoding="utf-8")
    return document(title, f"<h1>{escape(title)}</h1>\n{body}", style, script)


def as_markdown(title: str, sections: Sequence[Section], picture: str) -> str:
    """Write sections as Markdown, with the picture of all figures where the first is.

    Args:
        title: Text of the heading.
        sections: In their order; of the figures only the picture is shown.
        picture: Its address, from where the page is.
    """
    parts, pictures = [f"# {markdown_text(title)}"], [f"![curves]({picture})"]
    for section in sections:
        texts = [block.markdown() for block in section.blocks if not isinstance(block, Figure)]
        blocks = [text for text in texts if text]
        if any(isinstance(block, Figure) for block in section.blocks):
            blocks += [pictures.pop()] if pictures else []
        if blocks:
            parts += [f"## {markdown_text(section.title)}"] if section.title else []
            parts += blocks
    return "\n\n".join(parts) + "\n"


def title_of(runs: Sequence[Run]) -> str:
    """The title of a report on runs."""
    return f"Run {runs[0].name}" if len(runs) == 1 else "Runs " + ", ".join(run.name for run in runs)
