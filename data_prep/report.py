"""One page about a corpus: the table, what looks wrong, and plots, drawn as those of a run."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.binarise import Binarised
from data_prep.settings import Key
from data_prep.statistics import pair_rows, rows
from xlm_train.data.manifest import entries
from xlm_train.report.figures import Axis, Curve, Figure
from xlm_train.report.html import PALETTE, Table
from xlm_train.report.svg import figure_html
from xlm_train.report.writing import page as written

MOST_BARS = 60  # of a histogram

STYLE = """
.bar { display: flex; height: 1.1rem; margin-bottom: .5rem; max-width: 40rem }
.script { margin-right: 1rem; white-space: nowrap }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem }
"""


def page(manifest: Mapping[str, Any], corpus: Mapping[Key, Binarised]) -> str:
    """The page of a finished corpus. The same corpus gives the same page."""
    tables = rows(manifest), pair_rows(manifest)
    body = [
        f"<p>{manifest['vocabulary']['entries']:,} vocabulary entries, {manifest['codes']['merges']:,} BPE codes, "
        f"lineage <code>{manifest['lineage']}</code></p>",
        *(f'<p class="warning">{escape(warning)}</p>' for warning in manifest["warnings"]),
        *(Table("", list(cells[0]), [list(row.values()) for row in cells]).html() for cells in tables if cells),
        "<h2>Scripts</h2><p>Share of all characters of the raw text.</p>",
        _scripts(manifest),
        "<h2>Lengths</h2><p>Sentences by number of BPE tokens; the longest hundredth of them is left out.</p>",
        '<div class="plots">',
        *(figure_html(_histogram(".".join(key), corpus[key].lengths), f"f{n}") for n, key in enumerate(corpus)),
        "</div>",
        "<h2>Inputs</h2>",
        _inputs(manifest),
    ]
    return written("Corpus report", "\n".join(body), STYLE)


def _scripts(manifest: Mapping[str, Any]) -> str:
    shares = {name: entry["scripts"] for name, entry in entries(manifest) if entry["scripts"]}
    most = {name: max(share.get(name, 0) for share in shares.values()) for share in shares.values() for name in share}
    names = sorted(most, key=lambda name: (-most[name], name))
    colour = {name: f"var(--c{number % len(PALETTE)})" for number, name in enumerate(names)}
    swatch = '<span class="swatch" style="background:{}"></span>'
    legend = "".join(f'<span class="script">{swatch.format(colour[name])}{escape(name)}</span>' for name in names)
    bars = []
    for key, share in shares.items():
        parts = "".join(
            f'<span style="width:{part:.4%};background:{colour[name]}" title="{escape(name)} {part:.4%}"></span>'
            for name, part in share.items()
        )
        bars.append(f'{escape(key)}<div class="bar">{parts}</div>')
    return f"<p>{legend}</p>{''.join(bars)}"


def _histogram(name: str, counts: NDArray[np.int64]) -> Figure:
    """Bars of one width over the lengths that all but the longest hundredth of the sentences have.

    Args:
        name: Of the text.
        counts: Sentences by their length in tokens.
    """
    reached = np.cumsum(counts)
    longest = int(np.searchsorted(reached, np.ceil(0.99 * reached[-1]))) if reached[-1] else 0
    width = longest // MOST_BARS + 1
    starts = np.arange(0, longest + 1, width)
    sentences = np.add.reduceat(counts[: starts[-1] + width], starts)
    bars = Curve("sentences", starts.tolist(), sentences.tolist(), bars=width)
    unit = "sentences" + (f", {width} lengths to a bar" if width > 1 else "")
    axis = Axis(0.0, float(starts[-1] + width))
    return Figure(name, unit, [bars], x_label="BPE tokens", from_zero=True, x_axis=axis)


def _inputs(manifest: Mapping[str, Any]) -> str:
    lines = [
        (name, source["path"], f"{source['bytes']:,}", source["sha256"])
        for name, entry in entries(manifest)
        for source in entry["inputs"]
    ]
    return Table("", ["of", "input", "bytes", "sha256"], lines).html()
