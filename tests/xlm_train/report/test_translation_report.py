"""A translation run's report: BLEU beside what needs no model, its curves, and samples that are shown as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xlm_train.report import write_report
from xlm_train.report.curves import figures
from xlm_train.report.reading import read_run
from xlm_train.report.results import evaluations, samples, translations


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    """Five validations; the best by BLEU is not the one with the lowest perplexity."""
    metrics = [
        {"step": step, "time": 1.0, "val/ppl": ppl, "val/bleu": bleu, "val/bleu_de-en": bleu, "val/chrf_de-en": 2 * bleu,
         "val/constant_de-en": 4.5, "val/copied_de-en": 1.25}
        for step, ppl, bleu in ((4, 90.0, 1.0), (8, 80.0, 9.0), (12, 70.0, 7.0), (16, 60.0, 8.0), (20, 50.0, 6.0))
    ]  # fmt: skip
    folder = make_run("umt", metrics, "objective=umt", "callbacks.validation.monitor=val/bleu_de-en")
    lines = [
        {"step": line["step"], "samples": [{
            "direction": "de-en", "source": "a | b", "translation": f"<script>alert({line['step']})</script>",
            "reference": "*c*"}]}
        for line in metrics
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "samples.jsonl").write_text(text + '{"step": 24, "sam')
    return folder


def test_bleu_stands_beside_the_baselines(run: Path) -> None:
    found = read_run(run)
    assert found.best_step == 8
    (table,) = translations([found])
    assert table.rows == [["de-en", "6.00", "12.00", "9.00", "4.50", "1.25"]]  # type: ignore[union-attr]
    (figure,) = (figure for figure in figures([found]) if figure.title == "BLEU of validation")
    assert [(curve.label, list(curve.y)) for curve in figure.curves] == [
        ("de-en", [1.0, 9.0, 7.0, 8.0, 6.0]),
        ("de-en, best constant sentence", [4.5] * 5),
    ]


def test_samples_of_the_first_a_middle_and_the_last_validation(run: Path) -> None:
    blocks: list[Any] = samples([read_run(run)])
    assert [block.caption for block in blocks] == ["Step 4", "Step 12", "Step 20"]
    write_report(run)
    page, text = ((run / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert "<h2>Samples</h2>" in page
    assert "&lt;script&gt;alert(12)&lt;/script&gt;" in page
    assert "<script>alert" not in page
    assert "## Samples" in text
    assert "a \\| b" in text
    assert "<script>alert" not in text.replace("\\<", "")


@pytest.mark.parametrize("content", ["", "nothing\n", '{"step": 4, "samples": 3}\n{"step": 4, "samples": ["x"]}\n'])
def test_damaged_samples_are_left_out(run: Path, content: str) -> None:
    (run / "samples.jsonl").write_text(content)
    assert samples([read_run(run)]) == []
    write_report(run)
    assert "Samples" not in (run / "report.md").read_text(encoding="utf-8")


def test_results_of_xlm_eval_beside_the_run(run: Path) -> None:
    bleu = {"value": 21.5, "mean": 21.4, "interval": 1.25, "signature": "x", "constant": 4.0, "copied": 1.0}
    damaged = {"en-de": 3, "en-fr": {"bleu": "x"}}
    result = {"split": "test", "directions": {"de-en": {"sentences": 3, "bleu": bleu}, **damaged}}
    (run / "checkpoints/best.test.json").write_text(json.dumps(result))
    (table,) = evaluations([read_run(run)])
    assert table.rows == [["test", "de-en", "sacrebleu", "21.50", "1.25", "4.00", "1.00"]]  # type: ignore[union-attr]
