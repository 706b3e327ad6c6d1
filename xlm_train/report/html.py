"""What every page of this project has in common: the frame, the look in light and dark, tables and paragraphs.

A page is one file: style, drawings and script stand in it, and a content security policy forbids it to fetch anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

# Of curves and bars, in light and in dark: at least 3:1 against the page (WCAG 2.2, 1.4.11).
PALETTE = (
    ("#1b6ca8", "#6cb2eb"),
    ("#c2410c", "#fb923c"),
    ("#2e7d4f", "#6fcf97"),
    ("#7b4fa3", "#c4a1e8"),
    ("#8a6d1d", "#e0c056"),
    ("#b4235a", "#f48fb1"),
    ("#0f766e", "#5fd3c4"),
    ("#5b6470", "#aab4c0"),
)
GREY = len(PALETTE) - 1  # of what stands beside languages or jobs: all of them together


@dataclass(frozen=True)
class Cell:
    """A table's cell.

    Args:
        text: What it says.
        tone: "good" or "bad" colours that as well; "" does not.
        link: Address of a page that tells more, relative to this one.
    """

    text: str
    tone: str = ""
    link: str = ""

    def html(self) -> str:
        """The text, as a link where there is one."""
        return f'<a href="{escape(self.link)}">{escape(self.text)}</a>' if self.link else escape(self.text)


@dataclass(frozen=True)
class Table:
    """Rows under a head. The first cell of a row is its head.

    Args:
        caption: Above the table; "" for none.
        head: Titles of the columns; none for a table that needs none.
        rows: The cells, as many in each row as there are columns.
        words: Whether the cells are text; otherwise they are figures, which stand to the right.
        sentences: Whether they are text to be read: columns stay wide where the screen is not.
        note: Below the table, in text and Markdown.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: bool = False
    note: str = ""
    sentences: bool = False

    def html(self) -> str:
        """The table in a box that scrolls by itself, reachable by keyboard."""
        head = "".join(f'<th scope="col">{_head(title)}</th>' for title in self.head)
        rows = "".join(f"<tr>{''.join(_cells(row))}</tr>" for row in self.rows)
        kind = ' class="words sentences"' if self.sentences else ' class="words"' if self.words else ""
        label = escape(self.caption or ", ".join(self.head))
        caption = f'<p class="muted">{escape(self.caption)}</p>' if self.caption else ""  # does not scroll
        return (
            f'{caption}<div class="scroll" role="region" aria-label="{label}" tabindex="0">'
            f'<table{kind} aria-label="{label}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        )

    def markdown(self) -> str:
        """The table, with its caption above and its note below."""
        columns = len(self.rows[0]) if self.rows else len(self.head)
        head = self.head or [""] * columns
        under = ["---", *["---" if self.words else "---:"] * (columns - 1)]
        lines = ["| " + " | ".join(_plain(cell) for cell in line) + " |" for line in (head, under, *self.rows)]
        caption = [f"{markdown_text(self.caption)}:"] if self.caption else []
        return "\n\n".join([*caption, "\n".join(lines), *([markdown_text(self.note)] if self.note else [])])

    def text(self) -> str:
        """The table for a terminal, without its caption: columns of equal width, the note in a line of its own."""
        lines = [[_text(cell) for cell in line] for line in ([self.head] if self.head else []) + list(self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines = [
            [cell.ljust(width) if self.words or place == 0 else cell.rjust(width)
             for place, (cell, width) in enumerate(zip(line, widths, strict=True))]
            for line in lines
        ]  # fmt: skip
        return "\n".join(["  ".join(line).rstrip() for line in lines] + ([self.note] if self.note else []))


def _head(title: str) -> str:
    """A column's title, which may break between words and behind the parts of a metric's name, but not in a direction's."""
    return re.sub(r"(?<=[._/ ])(?=\w)", "<wbr>", escape(title))


def _cells(row: Sequence[str | Cell]) -> Iterable[str]:
    for number, value in enumerate(row):
        cell = value if isinstance(value, Cell) else Cell(value)
        tone = f' class="{cell.tone}"' if cell.tone else ""
        name = 'th scope="row"' if number == 0 else "td"
        yield f"<{name}{tone}>{cell.html()}</{name[:2]}>"


def _text(value: str | Cell) -> str:
    return value.text if isinstance(value, Cell) else value


def _plain(value: str | Cell) -> str:
    text = markdown_text(_text(value)).replace("|", "\\|")
    return f"[{text}]({value.link})" if isinstance(value, Cell) and value.link else text


@dataclass(frozen=True)
class Paragraph:
    """Text. warning: something is missing or wrong."""

    text: str
    warning: bool = False

    def html(self) -> str:
        """The text as a paragraph, a warning in its colours."""
        kind = ' class="warning"' if self.warning else ""
        return f"<p{kind}>{escape(self.text)}</p>"

    def markdown(self) -> str:
        """The text, a warning in bold."""
        return f"**{markdown_text(self.text)}**" if self.warning else markdown_text(self.text)


@dataclass(frozen=True)
class Folded:
    """Something long that a reader opens."""

    title: str
    content: str | Table

    def html(self) -> str:
        """The title, which opens the content."""
        inside = self.content.html() if isinstance(self.content, Table) else f"<pre>{escape(self.content)}</pre>"
        return f"<details><summary>{escape(self.title)}</summary>{inside}</details>"

    def markdown(self) -> str:
        """A table as it is; of text nothing, which lies in a file beside the report."""
        return self.content.markdown() if isinstance(self.content, Table) else ""


Block = Paragraph | Table | Folded


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: no markup and no HTML in it takes effect."""
    for sign in "\\`*_<[":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")


def document(title: str, body: str, style: str = "", script: str = "") -> str:
    """Put a whole page together.

    Args:
        title: Text, which is escaped.
        body: Markup.
        style: CSS besides what every page has.
        script: JavaScript.

    Returns:
        A page that fetches nothing.
    """
    light, dark = ("".join(f"--c{n}:{pair[mode]};" for n, pair in enumerate(PALETTE)) for mode in (0, 1))
    colours = f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    common = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{colours}\n{common}{style}</style>\n</head>\n<body>\n{body}\n"
        + (f"<script>\n{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )
