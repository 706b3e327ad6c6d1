"""What every HTML page of this project has in common: the frame, the look in light and dark, tables.

A page is one file: style, drawings and script stand in it, and a content security policy forbids it to fetch anything.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Cell:
    """A table's cell. tone: "good" or "bad" colours what the text says as well; "" does not."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under a head, with a caption. The first cell of a row is its head. words: cells of text, not of figures."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: bool = False

    def html(self) -> str:
        """The table in a box that scrolls by itself, reachable by keyboard."""
        head = "".join(f'<th scope="col">{escape(title)}</th>' for title in self.head)
        rows = "".join(f"<tr>{''.join(_cells(row))}</tr>" for row in self.rows)
        kind = ' class="words"' if self.words else ""
        caption = (
            f'<p class="muted">{escape(self.caption)}</p>' if self.caption else ""
        )  # does not scroll with the table
        label = escape(self.caption or ", ".join(self.head))
        return (
            f'{caption}<div class="scroll" role="region" aria-label="{label}" tabindex="0">'
            f'<table{kind} aria-label="{label}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        )

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _cells(row: Sequence[str | Cell]) -> Iterable[str]:
    for number, value in enumerate(row):
        cell = value if isinstance(value, Cell) else Cell(value)
        tone = f' class="{cell.tone}"' if cell.tone else ""
        name = 'th scope="row"' if number == 0 else "td"
        yield f"<{name}{tone}>{escape(cell.text)}</{name[:2]}>"


def _plain(value: str | Cell) -> str:
    text = value.text if isinstance(value, Cell) else value
    return markdown_text(text).replace("|", "\\|")


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: no markup and no HTML in it takes effect."""
    for sign in "\\`*_<[":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")


def document(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page. `title` is escaped; `body`, `style` and `script` are markup."""
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
