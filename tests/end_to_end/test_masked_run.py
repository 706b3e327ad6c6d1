"""Runs of objective=mlm keep every promise of the causal ones: resume, processes, validation, guard, refusals."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import command, train_here
from tests.end_to_end.worlds import (
    Death,
    assert_same_run,
    largest_difference,
    last,
    reported,
    slots_trained,
    start,
    train_on,
)
from xlm_train.config.train import read_train_config
from xlm_train.data.corpus import Corpus
from xlm_train.data.order import Order
from xlm_train.data.training_text import TrainingText
from xlm_train.evaluation.corpus import evaluate, score_text, table
from xlm_train.model.pretrained import open_checkpoint
from xlm_train.runtime.errors import CheckpointError, ConfigError
from xlm_train.training.anomaly import TrainingStopped

Config = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def config(compose: Config, corpus_folder: Path, runs: Path) -> Config:
    """config(run name, *overrides) of experiment=smoke objective=mlm: 9 steps of 4 slots, with dropout."""

    def composed(name: str, *overrides: str) -> dict[str, Any]:
        where = (f"data.path={corpus_folder}", f"paths.runs={runs}", f"run_name={name}")
        words = ("data.slots=4", "trainer.max_steps=9", "callbacks.checkpointing.every_n_steps=3")
        words += ("callbacks.metrics.every_n_steps=1", "callbacks.validation.every_n_steps=3")
        return compose("train", "experiment=smoke", "objective=mlm", *words, *where, *overrides)

    return composed


@pytest.fixture(scope="module")
def undisturbed(config: Config) -> Path:
    return train_on(1, config("undisturbed"))


def test_a_killed_run_becomes_the_undisturbed_one(config: Config, undisturbed: Path, runs: Path) -> None:
    for death in (Death(step=4, slot=2), Death(step=7, slot=0)):
        assert -signal.SIGKILL in start(config("killed"), 1, death)
    train_on(1, config("killed"))
    assert_same_run(undisturbed, runs / "killed")


def test_two_processes_are_one(config: Config, undisturbed: Path) -> None:
    """The same masked tokens, losses and validations; 4 processes, of which one is killed, are in the slow tests."""
    two = train_on(2, config("two"))
    wanted = [(slot.step, slot.slot, slot.tokens) for slot in slots_trained(undisturbed)]
    assert [(slot.step, slot.slot, slot.tokens) for slot in slots_trained(two)] == wanted
    assert largest_difference(undisturbed, two) < 1e-5
    predicted = [value for _, name, value in reported(undisturbed, "val/acc") if name == "val/acc"]
    assert [v for _, name, v in reported(two, "val/acc") if name == "val/acc"] == pytest.approx(predicted, rel=1e-9)


@pytest.mark.slow
def test_four_processes_killed_and_resumed_on_one(config: Config, undisturbed: Path, runs: Path) -> None:
    assert -signal.SIGKILL in start(config("moved"), 4, Death(step=5, slot=3))
    train_on(1, config("moved"))
    assert largest_difference(undisturbed, runs / "moved") < 1e-5


def test_a_checkpoint_is_scored_as_its_run_was(undisturbed: Path, corpus_folder: Path, tmp_path: Path) -> None:
    trained = open_checkpoint(undisturbed / "checkpoints/step-00000009.pt", "cpu")
    result = evaluate(trained, Corpus(corpus_folder), "valid")
    validation = last(undisturbed)["metrics"]
    assert result["evaluation"] == "masked"
    for lang, scores in result["languages"].items():
        assert scores["perplexity"] == pytest.approx(validation[f"val/ppl_{lang}"], rel=1e-6)
        assert scores["predicted_tokens"] < 0.2 * scores["tokens"]
        assert scores["perplexity_per_word"] is scores["bits_per_character"] is None
    assert "not known" in table(result)
    with pytest.raises(CheckpointError, match="baselines=true"):
        evaluate(trained, Corpus(corpus_folder), "valid", baselines=True)
    with pytest.raises(
        CheckpointError, match="scoring raw text needs a causal model; this one was trained to fill gaps"
    ):
        score_text(trained, {"en": str(corpus_folder / "vocab")}, tmp_path / "scores.json")
    with pytest.raises(CheckpointError, match="scoring a line needs a causal model"):
        trained.score("The king was dead.", "en")


def test_a_masked_model_continues_no_text(undisturbed: Path) -> None:
    checkpoint = undisturbed / "checkpoints/step-00000009.pt"
    refused = command("xlm_train.commands.generate", f"checkpoint={checkpoint}", "lang=en", "prompt=the", status=2)
    assert "continuing a text needs a causal model; this one was trained to fill gaps" in refused.stderr
    assert "(MaskedLM, evaluation masked)" in refused.stderr


def test_another_objective_may_not_resume_the_run(config: Config, undisturbed: Path) -> None:
    with pytest.raises(ConfigError) as error:
        train_here(config("undisturbed", "objective=clm"))
    text = "\n".join(error.value.problems)
    assert "objective._target_: was xlm_train.objectives.masked.MaskedLM, now xlm_train.objectives.clm.CausalLM" in text
    with pytest.raises(ConfigError, match=r"objective\.mask_share: was 0\.15, now 0\.2"):
        train_here(config("undisturbed", "objective.mask_share=0.2"))


def test_a_bad_step_shows_the_text_without_gaps(config: Config, runs: Path, corpus_folder: Path) -> None:
    with pytest.raises(TrainingStopped, match="step 2: the loss of slot 0 is not finite"):
        train_here(config("bad", "debug.nan_steps=[2]"))
    text = (runs / "bad/bad_batches/step-00000002.txt").read_text()
    settings = config("bad")["data"]
    streams = TrainingText(Corpus(corpus_folder), settings["bptt"], settings["slot_streams"]).language_streams()
    slot = Order(streams, slots=4, seed=0).step(2)[0]
    assert "## slot 0: de" in text
    assert [f"### window {unit} of pass 0" in text for unit in slot.units] == [True] * 4
    assert "<special1>" not in text


def test_mistakes_are_told_early(compose: Config, corpus_folder: Path, runs: Path) -> None:
    from omegaconf import OmegaConf

    def problems(*overrides: str) -> list[str]:
        where = (f"data.path={corpus_folder}", f"paths.runs={runs}", "run_name=wrong")
        found = OmegaConf.create(compose("train", "experiment=smoke", "objective=mlm", *where, *overrides))
        with pytest.raises(ConfigError) as error:
            read_train_config(found)
        return error.value.problems

    assert problems("+objective.mask_shares=1", "objective.sample_alpha=x", "objective.replacements=[a]") == [
        "objective.mask_shares=1: xlm_train.objectives.masked.MaskedLM takes no 'mask_shares' (did you mean mask_share?)",
        "objective.sample_alpha=x: must be a number",
        "objective.replacements=['a']: must be a list of numbers, as [1,2]",
    ]
    assert problems("objective.mask_share=1", "objective.replacements=[1,2]") == [
        "objective.mask_share=1: must be above 0 and below 1",
        "objective.replacements=[1, 2]: must be three shares that add up to 1: mask, keep, random word",
    ]


def test_frequency_choice_and_float16_train(config: Config, runs: Path) -> None:
    """sample_alpha 0.5 under float16, where the chosen positions of a slot are a multiple of 8."""
    precision = ("trainer.precision=16-mixed", "debug.cpu_fp16=true")
    train_here(config("alpha", "objective.sample_alpha=0.5", *precision, "trainer.max_steps=3"))
    assert json.loads((runs / "alpha/status.json").read_text())["status"] == "finished"


@pytest.mark.usefixtures("undisturbed")
def test_losses_fall(runs: Path) -> None:
    losses = [value for _, name, value in reported(runs / "undisturbed", "train/loss") if name == "train/loss"]
    assert losses[-1] < losses[0]
