"""One page about a corpus: the table, what looks wrong, and plots. Plain HTML with the drawings in it."""

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
from xlm_train.report.html import PALETTE, Table, document

WIDTH, HEIGHT = 560, 180

STYLE = """
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem 2rem } figure { margin: 0 } figcaption { font-weight: 600 }
svg { font-size: 11px; max-width: 100%; height: auto; overflow: visible; fill: var(--text); text-anchor: middle } rect { fill: var(--c0) }
@media (max-width: 40rem) { svg { font-size: 19px } }
.bar { display: flex; height: 1.1rem; margin-bottom: .5rem; max-width: 40rem }
.key { margin-right: 1rem; white-space: nowrap }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem }
"""


def page(manifest: Mapping[str, Any], corpus: Mapping[Key, Binarised]) -> str:
    """The page of a finished corpus. The same corpus gives the same page."""
    tables = rows(manifest), pair_rows(manifest)
    body = [
        "<h1>Corpus report</h1>",
        f"<p>{manifest['vocabulary']['entries']:,} vocabulary entries, {manifest['codes']['merges']:,} BPE codes, "
        f"lineage <code>{manifest['lineage']}</code></p>",
        *(f'<p class="warning">{escape(warning)}</p>' for warning in manifest["warnings"]),
        *(Table("", list(cells[0]), [list(row.values()) for row in cells]).html() for cells in tables if cells),
        "<h2>Scripts</h2><p>Share of all characters of the raw text.</p>",
        _scripts(manifest),
        "<h2>Lengths</h2><p>Sentences by number of BPE tokens; a bar over several lengths shows their mean.</p>",
        '<div class="plots">',
        *(_histogram(".".join(key), corpus[key].lengths) for key in corpus),
        "</div>",
        "<h2>Inputs</h2>",
        _inputs(manifest),
    ]
    return document("Corpus report", "\n".join(body), STYLE)


def _scripts(manifest: Mapping[str, Any]) -> str:
    shares = {name: entry["scripts"] for name, entry in entries(manifest) if entry["scripts"]}
    most = {name: max(share.get(name, 0) for share in shares.values()) for share in shares.values() for name in share}
    names = sorted(most, key=lambda name: (-most[name], name))
    colour = {name: f"var(--c{number % len(PALETTE)})" for number, name in enumerate(names)}
    swatch = '<span class="swatch" style="background:{}"></span>'
    legend = "".join(f'<span class="key">{swatch.format(colour[name])}{escape(name)}</span>' for name in names)
    bars = []
    for key, share in shares.items():
        parts = "".join(
            f'<span style="width:{part:.4%};background:{colour[name]}" title="{escape(name)} {part:.4%}"></span>'
            for name, part in share.items()
        )
        bars.append(f'{escape(key)}<div class="bar">{parts}</div>')
    return f"<p>{legend}</p>{''.join(bars)}"


def _histogram(name: str, counts: NDArray[np.int64]) -> str:
    """Bars over lengths that double with each bar's group of four: 0, 1, 2, 3, 4, 5, 6, 7, 8-9, 10-11, ..."""
    edges = [*range(8)]
    while edges[-1] < len(counts):
        edges += [edges[-4] * 2, edges[-3] * 2, edges[-2] * 2, edges[-1] * 2] if len(edges) > 8 else [8, 10, 12, 14]
    values = np.add.reduceat(counts, [edge for edge in edges if edge < len(counts)])
    last = int(np.flatnonzero(values)[-1]) + 1 if values.any() else 1
    values, labels = values[:last], edges[:last]
    means = values / np.diff(edges)[:last]  # a bar over more lengths is not higher for it
    top, width = max(float(means.max()), 1e-9), WIDTH / len(values)
    parts = []
    for number, (value, label) in enumerate(zip(values, labels, strict=True)):
        x, height = number * width, means[number] / top * HEIGHT
        parts.append(
            f'<rect x="{x:.1f}" y="{HEIGHT - height:.1f}" width="{width - 1:.1f}" height="{height:.1f}"><title>'
            f"from {label}: {int(value):,}</title></rect>"
        )
        if number % 4 == 0:
            parts.append(f'<text x="{x + width / 2:.1f}" y="{HEIGHT + 17}">{label}</text>')
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 22}" width="{WIDTH}" role="img">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(name)}</figcaption>{drawing}</figure>"


def _inputs(manifest: Mapping[str, Any]) -> str:
    lines = [
        (name, source["path"], f"{source['bytes']:,}", source["sha256"])
        for name, entry in entries(manifest)
        for source in entry["inputs"]
    ]
    return Table("", ["of", "input", "bytes", "sha256"], lines).html()
