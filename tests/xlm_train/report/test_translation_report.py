"""Reports on translation runs: compared with the README's translation command, not with the language model's recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.xlm_train.report.test_report import lines_of, written
from xlm_train.report.advice import advice
from xlm_train.report.masking import points_of
from xlm_train.report.reading import read_run
from xlm_train.report.recipe import POINTS, n_parameters

MakeRun = Callable[..., Path]


def verdicts(folder: Path) -> dict[str, str]:
    run = read_run(folder)
    return {point.name.partition(" (")[0]: point.compare(run)[1] for point in points_of([run])}


def test_the_experiment_is_the_command_but_for_what_is_said(make_run: MakeRun) -> None:
    folder = make_run("umt", lines_of(20, 5), "experiment=umt_ende_1024", "init_encoder=m.pth", "init_decoder=m.pth")
    found = verdicts(folder)
    differing = {name for name, verdict in found.items() if verdict == "differs"}
    assert differing == {"optimizer", "seed"}
    assert found["start"] == "unknown"  # whose weights they are is in the checkpoint, not in the config
    for name in (
        "what is learned",
        "weight of denoising by iteration",
        "words blanked",
        "tokens an update",
        "precision",
    ):
        assert found[name] == "same"
    assert "window, tokens" not in found
    text = written(folder)
    assert "s unsupervised translation" in text
    assert "xlm-clm-ende-1024" not in text


def test_what_a_run_changes_differs(make_run: MakeRun) -> None:
    words = ("objective.weights.ae=1", "objective.parts.ae.noise.drop=0.2", "data.slots=4", "model.share=embeddings")
    found = verdicts(make_run("umt", [], "experiment=umt_ende_1024", *words))
    for name in ("weight of denoising by iteration", "words left out", "tokens an update", "start"):
        assert found[name] == "differs", name
    assert found["what the two sides share"] == "differs"


def test_supervised_translation_has_no_noise_to_compare(make_run: MakeRun) -> None:
    folder = make_run("mt", [], "experiment=mt_ende_1024")
    found = verdicts(folder)
    assert found["what is learned"] == found["evaluation, steps"] == "same"
    assert "words blanked" not in found
    assert "supervised translation as its author advised" in written(folder)


def test_beside_a_language_model_that_one_s_recipe_is_shown(make_run: MakeRun) -> None:
    runs = [read_run(make_run("a", [])), read_run(make_run("b", [], "experiment=umt_ende_1024"))]
    assert [run.translates for run in runs] == [False, True]
    assert points_of(runs) == [*POINTS]


def test_parameters_of_both_sides(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    manifest = {"vocabulary": {"entries": 64699}, "languages": {"de": 0, "en": 1}, "lineage": "c0ffee"}
    (tmp_path / "corpus/manifest.json").write_text(json.dumps(manifest))
    run = read_run(make_run("umt", [], "experiment=umt_ende_1024", f"data.path={tmp_path / 'corpus'}"))
    attention = 6 * (4 * (1024 * 1024 + 1024) + 2 * 1024)  # over the source, and its norm
    assert n_parameters(run) == 2 * 142_422_203 + attention


def test_advice_knows_the_batch_of_translation(compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("train", "experiment=umt_ende_1024", "data.path=x")
    assert advice(config, 16_000) == []
    (warning,) = advice(config, 2_000)
    assert "the recipe's 16,000" in warning
    assert "data.slots=64" in warning
