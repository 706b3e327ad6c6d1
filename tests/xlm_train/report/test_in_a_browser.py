"""Pages in a real browser: nothing wider than the screen, nothing fetched, the script runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import report as corpus_report
from data_prep.binarise import Binarised
from data_prep.statistics import percentiles
from tests.conftest import PATIENCE, REPOSITORY
from tests.launch.test_table2 import FOUND
from tests.xlm_train.report.test_report import lines_of, written
from xlm_train.report import sweep
from xlm_train.report.reading import read_run
from xlm_train.report.sweep_rows import row_of

PROBE = """
addEventListener("load", () => {
  const svg = document.querySelector(".area > svg"), box = svg.getBoundingClientRect();
  const height = document.documentElement.scrollHeight;
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 5}));
  const wide = [...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, pre, svg, details:not([open])") &&
    e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map((e) => e.tagName + "." + e.className);
  const small = [...document.querySelectorAll("figure span, td, th, p")].map((e) => parseFloat(getComputedStyle(e).fontSize));
  parent.postMessage({
    grown: document.documentElement.scrollHeight - height, overflow: getComputedStyle(svg).overflow,
    width: document.documentElement.clientWidth, scroll: document.documentElement.scrollWidth, wide,
    back: getComputedStyle(document.body).backgroundColor, smallest: Math.min(...small),
    beside: !!document.querySelector(".lead") && document.querySelector(".lead > .plot").getBoundingClientRect().left > 400,
    readout: document.querySelector(".readout").textContent, fetched: performance.getEntriesByType("resource").map((e) => e.name),
  }, "*");
});
"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on PATH: the page's look is not tested here (Debian's package chromium has it)")
    return found


def measured(browser: str, page: str, folder: Path, width: int, dark: bool = False) -> dict[str, Any]:
    """What PROBE finds in a copy of the page, within a frame of the wanted width."""
    (folder / "copy.html").write_text(page.replace("</body>", f"<script>{PROBE}</script></body>"))
    (folder / "frame.html").write_text(
        f'<iframe src="copy.html" style="border:0;width:{width}px;height:900px"></iframe><pre id="said"></pre><script>'
        'addEventListener("message", (e) => { document.getElementById("said").textContent = JSON.stringify(e.data) })</script>'
    )
    options = "--headless --hide-scrollbars --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    options += " --disable-sync --disable-dev-shm-usage"
    options += (
        f" --disable-component-update --window-size=1400,1000 --blink-settings=preferredColorScheme={0 if dark else 1}"
    )
    options += f" --user-data-dir={folder / 'profile'} --virtual-time-budget=3000 --dump-dom"
    result = subprocess.run(
        [browser, *options.split(), (folder / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="said">(.+?)</pre>', result.stdout)
    assert found, result.stderr[-2000:]
    said: dict[str, Any] = json.loads(unescape(found[1]))
    assert said["width"] == said["scroll"] == width
    assert said["wide"] == []
    assert said["fetched"] == []
    assert said["grown"] == 0  # the readout moves nothing
    assert said["overflow"] == "visible"  # dots at the edges are whole
    assert said["smallest"] >= 12
    assert said["back"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    return said


@pytest.mark.parametrize(("width", "dark"), [(375, False), (375, True), (1280, False)])
def test_a_report(browser: str, make_run: Callable[..., Path], tmp_path: Path, width: int, dark: bool) -> None:
    events = [{"step": 100, "time": 1.0, "event": "start", "devices": ["x" * 90], "changes": ["y" * 200]}]
    long = "a_very_long_run_name_without_any_space_" * 3
    folders = [make_run(name, lines_of(200, 5, validate=20), events=events) for name in ("r", long)]
    said = measured(browser, written(*folders), tmp_path, width, dark)
    assert re.match(r"step 100\n\d[\d.]* r, training\n", said["readout"])
    assert said["beside"] == (width > 1000)  # the first figure stands beside the summary where there is room


def test_the_page_of_a_sweep(browser: str, make_run: Callable[..., Path], tmp_path: Path) -> None:
    jobs = [(rate, seed) for rate in ("0.00012345678", "0.001", "0.01") for seed in ("1", "2")]
    runs = [read_run(make_run(f"r{rate},{seed}", lines_of(200, 5, validate=20))) for rate, seed in jobs]
    rows = [
        row_of({"varied": {"optimizer.lr": rate, "seed": seed}, "status": "finished", "command": "x"}, run)
        for (rate, seed), run in zip(jobs, runs, strict=True)
    ]
    text = sweep.page(tmp_path, rows, runs, {id(rows[0]): "r/report.html"})
    said = measured(browser, text, tmp_path, 375)
    assert said["readout"].startswith("optimizer.lr 0.001\n")


def test_the_page_of_a_corpus(browser: str, tmp_path: Path) -> None:
    lengths = np.bincount([*range(1, 80)] * 2)
    part = {"shards": [], "inputs": [{"path": "x" * 200, "bytes": 5, "sha256": "a" * 64}], "scripts": {"Latin": 1.0}}
    part |= {
        "lines": 1,
        "sentences": 1,
        "words": 1,
        "tokens": 1,
        "tokens_per_word": 1.0,
        "unknown_rate": 0.0,
        "length": {},
    }
    part |= {"length": percentiles(lengths), "duplicates": 0, "duplicates_exact": True, "empty": 0, "dropped": {}}
    manifest: dict[str, Any] = {"splits": {"train": {"de": part}}, "warnings": ["w" * 300], "lineage": "f" * 64}
    manifest |= {"vocabulary": {"entries": 99}, "codes": {"merges": 60}}
    page = corpus_report.page(manifest, {("train", "de"): Binarised([], lengths)})
    assert re.match(r"BPE tokens \d+\n4 sentences$", measured(browser, page, tmp_path, 375)["readout"])


def test_the_page_of_table_2(browser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "launch")
    import table2_page

    table2_page.write_page(tmp_path, FOUND)
    said = measured(browser, (tmp_path / "table2.html").read_text("utf-8"), tmp_path, 375)
    assert said["readout"].startswith("steps 20\n")
