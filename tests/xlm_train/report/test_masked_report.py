"""Reports on runs of masked objectives: their own recipe, and words that tell their perplexities from causal ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.xlm_train.report.test_report import Page, lines_of, written
from xlm_train.report import recipe
from xlm_train.report.advice import advice
from xlm_train.report.curves import figures
from xlm_train.report.masking import MASKING, PAIRS, points_of
from xlm_train.report.reading import read_run

MakeRun = Callable[..., Path]


def metrics(tokens: int = 1000) -> list[dict[str, Any]]:
    """Of a run that reads both languages and their pairs."""
    found = lines_of(20, 5, tokens, validate=10)
    for line in found:
        if "train/loss" in line:
            line["train/loss_de-en"] = line["train/loss"] / 2
        else:
            line |= {"val/loss_de-en": 1.0, "val/ppl_de-en": math.e, "val/acc_de-en": 50.0}
    return found


def verdicts(folder: Path) -> dict[str, str]:
    run = read_run(folder)
    return {point.name.partition(" (")[0]: point.compare(run)[1] for point in points_of([run])}


def test_the_masked_experiment_is_the_original_s_recipe_but_for_what_is_said(make_run: MakeRun) -> None:
    folder = make_run("mlm", [], "experiment=mlm_ende_1024", "data.slots=256")
    (folder / "environment.json").write_text(json.dumps({"devices": ["Tesla V100-SXM2-32GB"] * 8}))
    found = verdicts(folder)
    assert found.keys() >= {point.name.partition(" (")[0] for point in MASKING}
    assert not found.keys() & {point.name.partition(" (")[0] for point in PAIRS}
    differing = {name for name, verdict in found.items() if verdict == "differs"}
    assert differing == {"choice of language", "optimizer", "seed", "evaluation"}  # twice as many tokens between them
    text = written(folder)
    assert "xlm-mlm-ende-1024" in text
    assert "xlm-clm-ende-1024" not in text
    paper = make_run("paper", [], "experiment=mlm_ende_1024", "objective.sample_alpha=0.5", "objective.mask_share=0.2")
    assert verdicts(paper)["choice of words by frequency"] == "differs"
    assert verdicts(paper)["share of the words that are predicted"] == "differs"
    assert "0.5: the paper" in written(paper)


def test_pairs_have_their_points_and_curves(make_run: MakeRun) -> None:
    run = read_run(make_run("both", metrics(tokens=700), "experiment=mlm_tlm_ende_1024"))
    assert (run.masked, run.reads_pairs, run.tokens_per_step) == (True, True, 700)
    found = verdicts(run.path)
    assert (found["share of windows and pairs"], found["longest side of a pair, tokens"]) == ("same", "same")
    assert found["what is masked"] == found["pairs of a batch"] == "differs"
    loss, perplexity = figures([run])[:2]
    assert (loss.unit, perplexity.unit) == ("nats per hidden word", "per hidden word")
    assert {curve.label for curve in perplexity.curves} >= {"de-en training", "de-en validation", "de validation"}
    text = Page(written(run.path)).text
    assert "ppl_de-en" in text
    assert "of masked words at step 20" in text
    assert "such perplexities compare with those of masked models only" in text


def test_a_causal_run_says_nothing_of_masks(make_run: MakeRun) -> None:
    folder = make_run("causal", lines_of(20, 5, validate=10))
    assert points_of([read_run(folder)]) == [*recipe.POINTS]
    text = Page(written(folder)).text
    assert "masked" not in text.split("Configuration")[0].replace("objectives.masked", "")
    assert "xlm-mlm" not in text


def test_a_masked_run_beside_a_causal_one(make_run: MakeRun) -> None:
    causal, masked = make_run("a", lines_of(20, 5)), make_run("b", lines_of(20, 5), "objective=mlm")
    text = Page(written(causal, masked)).text
    assert "Losses and perplexities of b are of hidden words" in text
    assert "a causal run: nothing is masked" in text
    assert "xlm-clm-ende-1024 or xlm-mlm-ende-1024" in text


@pytest.mark.parametrize("name", ["mlm_ende_1024", "mlm_tlm_ende_1024"])
def test_the_shipped_experiments_need_no_advice(name: str, compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("train", f"experiment={name}", "data.path=x")
    assert advice(config, 128 * 3000) == []
    (warning,) = advice(config, 128 * 1500)
    assert f"data.slots={128 * 2**20 // (128 * 1500)} gives the recipe's batch" in warning
