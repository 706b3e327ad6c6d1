"""Counts of text, and the warnings they lead to."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from data_prep import report, statistics
from data_prep.binarise import Binarised
from data_prep.statistics import RawCounts

GERMAN = "Der Hund und die Katze sind nicht auf dem Dach , und das ist auch gut so ."
ENGLISH = "The dog and the cat are not on the roof , and that is just as it was for you ."


def counts_of(text: str, tokenised: list[str] | None = None, raw: bytes | None = None) -> RawCounts:
    lines = text.split("\n")
    return RawCounts.of(raw or text.encode(), text, sum(not line for line in lines[:-1]), tokenised or lines)


def entry(**changes: Any) -> dict[str, Any]:
    clean = {"lines": 1000, "empty": 0, "duplicates": 0, "dropped": {"too_long": 0}, "unknown_rate": 0.0}
    return clean | changes


def test_characters_are_counted_by_script() -> None:
    counts = dict(
        zip(statistics.SCRIPT_NAMES, statistics.script_counts("aßÉ1 .дЯ αב 字あア한ก ა\U0001f600é"), strict=True)
    )
    expected = {"Latin": 4, "Cyrillic": 2, "Greek": 1, "Hebrew": 1, "Han": 1, "Hiragana": 1, "Katakana": 1}
    expected |= {"Hangul": 1, "Thai": 1, "other letters": 1, "no letters": 7, "Arabic": 0, "Devanagari": 0}
    assert counts == expected


def test_raw_counts() -> None:
    raw = b"Gr\xfc\xdfe\x00 \x07\r\n\n\xef\xbf\xbd vorher\n"
    text = raw.decode(errors="replace")
    counts = counts_of(text, raw=raw)
    assert counts.lines == 3
    assert counts.characters == len(text) - 3
    assert counts.replaced == 2  # the U+FFFD that was in the file is not one
    assert counts.control == 2
    assert counts.crlf == 1
    assert counts.empty == 1
    both = counts_of(text, raw=raw)
    both.add(counts)
    assert (both.lines, both.replaced, both.scripts["Latin"]) == (6, 4, 2 * counts.scripts["Latin"])


@pytest.mark.parametrize("word", ["Grüße", "café", "Übel", "Äpfel", "Öl", "“quoted”", "it’s", "naïve", "à"])
def test_mojibake_is_seen_and_sound_text_is_not(word: str) -> None:
    assert counts_of(f"{word}\n").mojibake == 0
    broken = word.encode().decode("cp1252", errors="ignore")
    if word[0] != "“":
        assert counts_of(f"{broken}\n").mojibake >= 1


def test_sound_text_has_no_warnings() -> None:
    raw = counts_of(f"{GERMAN}\n" * 100)
    assert statistics.warnings_for("train.de", "de", raw, entry(), "why") == []


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        (f"{ENGLISH}\n" * 20, {}, "looks like en, not de"),
        ("Der GrÃ¼ne und die SchÃ¶ne\n" * 20, {}, "look like mojibake"),
        ("Он не знает , что и как\n" * 20, {}, "most of its letters are Cyrillic"),
        (f"{GERMAN} Но это не всё .\n" * 20, {}, "letters of several scripts: Latin"),
        (f"{GERMAN}\n", {"duplicates": 300}, "30% of the lines repeat an earlier one"),
        (f"{GERMAN}\n", {"unknown_rate": 0.05}, "5.0% of the tokens are unknown: why"),
        (f"{GERMAN}\x01\n" * 20, {}, "20 control characters: is this text?"),
        (f"{GERMAN}\n", {"empty": 300}, "30% of the lines are empty"),
        (f"{GERMAN}\n", {"overlap": {"lines_in_train": 100}}, "10% of the lines are in the training text too"),
        (f"{GERMAN}\n", {"overlap": {"lines_in_valid": 1}}, "1 of 1,000 lines in the validation text too"),
    ],
)
def test_what_looks_wrong_is_said(text: str, changes: dict[str, Any], expected: str) -> None:
    found = statistics.warnings_for("train.de", "de", counts_of(text), entry(**changes), "why")
    assert any(warning.startswith("train.de: ") and expected in warning for warning in found), found


def test_duplicates_that_were_left_out_are_no_warning() -> None:
    raw = counts_of(f"{GERMAN}\n" * 100)
    removed = entry(duplicates=300, dropped={"too_long": 0, "duplicates": 290})
    assert statistics.warnings_for("train.de", "de", raw, removed, "why") == []


def test_percentiles_are_lengths_that_occur() -> None:
    lengths = [3] * 50 + [10] * 45 + [200] * 5
    found = statistics.percentiles(np.bincount(lengths))
    assert (found["p1"], found["p50"], found["p75"], found["p95"], found["p99"]) == (3, 3, 10, 10, 200)
    assert found["p100"] == 200
    assert statistics.percentiles(np.bincount([0, 0])) == {f"p{p}": 0 for p in statistics.PERCENTILES}
    assert statistics.percentiles(np.zeros(5, dtype=np.int64)) == {}


def test_the_table_is_aligned_under_its_titles() -> None:
    text = statistics.table([{"": "train.de", "lines": "1,000"}, {"": "a", "lines": "7"}])
    assert text == "          lines\ntrain.de  1,000\na             7"


def test_the_page_shows_every_number_and_no_markup_of_the_text() -> None:
    lengths = np.bincount([1] * 5 + [9] * 3 + [700] * 2)
    counts = {"lines": 12, "sentences": 10, "words": 77, "tokens": 1500, "tokens_per_word": 1.5, "unknown_rate": 0.01}
    counts |= {"length": statistics.percentiles(lengths), "duplicates": 3, "duplicates_exact": False, "empty": 1}
    counts |= {"dropped": {"too_long": 2}, "scripts": {"Latin": 0.8, "no letters": 0.2}}
    found = {"shards": [], "inputs": [{"path": "<b>.txt", "bytes": 5, "sha256": "abc"}], **counts}
    manifest = {"splits": {"train": {"de": found}}, "warnings": ["a < b"], "lineage": "feed"}
    manifest |= {"vocabulary": {"entries": 99}, "codes": {"merges": 60}}
    html = report.page(manifest, {("train", "de"): Binarised([], lengths)})
    for expected in (
        "train.de",
        "1,500",
        "~3",
        "a &lt; b",
        "&lt;b&gt;.txt",
        "feed",
        "sentences, 12 lengths to a bar",
    ):
        assert expected in html
    assert "<b>" not in html
    assert bars_of(html) == {0: 8, 696: 2}
    heights = html.partition('<div class="ys"')[2].partition("</div>")[0]
    assert re.findall(r">([\d,.]+)<", heights) == ["0", "2.5", "5", "7.5"]
    for drawing in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(drawing)


def bars_of(html: str) -> dict[int, int]:
    """Bars of the first histogram that are not empty: where they begin, and their sentences."""
    (curve,) = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', html)[0])["curves"]
    return {x: y for x, y in zip(curve["x"], curve["y"], strict=True) if y}


def test_a_histogram_is_highest_where_most_sentences_are() -> None:
    """Lengths on a linear axis, each bar of as many; a long tail does not squeeze the others."""
    lengths = np.bincount([10] * 200 + [20] * 400 + [30] * 390 + [60_000] * 10)
    figure = report._histogram("train.de", lengths)
    (curve,) = figure.curves
    assert dict(zip(curve.x, curve.y, strict=True))[20] == max(curve.y) == 400
    assert (figure.across.low, figure.across.high, figure.across.log) == (0, 31, False)
    assert report._histogram("empty", np.zeros(5, dtype=np.int64)).curves[0].y == [0]
