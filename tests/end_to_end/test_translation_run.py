"""Runs of translation keep every promise of the others: resume, processes, precision, guard, starts, refusals."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import train_here
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
from xlm_train.model.seq2seq import SIDES
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.device import cpu_multiplies_bfloat16
from xlm_train.runtime.errors import ConfigError, UserError
from xlm_train.training.anomaly import TrainingStopped

Config = Callable[..., dict[str, Any]]
FLOAT16 = ("trainer.precision=16-mixed", "debug.cpu_fp16=true")
SHORT = ("data.slots=4", "data.tokens_per_slot=150", "data.max_len=40", "callbacks.validation=null")
# denoising ends at iteration 3: steps 0-11 are 4 an iteration, then 2
WEIGHTS = ("objective.weights.ae='0:1,3:0'", "trainer.max_steps=16")


@pytest.fixture(scope="module")
def config(compose: Config, paired_corpus: Path, runs: Path) -> Config:
    """config(run name, objective, *overrides) of experiment=smoke with dropout: steps of 4 slots of about 150 tokens."""

    def composed(name: str, objective: str, *overrides: str) -> dict[str, Any]:
        where = (f"data.path={paired_corpus}", f"paths.runs={runs}", f"run_name={name}", f"objective={objective}")
        words = ("callbacks.checkpointing.every_n_steps=3", "callbacks.metrics.every_n_steps=1", "trainer.max_steps=9")
        return compose("train", "experiment=smoke", *SHORT, *words, *where, *overrides)

    return composed


@pytest.fixture(scope="module")
def undisturbed(config: Config) -> Path:
    """One run of objective=umt; back-translations have words in them."""
    return train_on(1, config("undisturbed", "umt", *WEIGHTS))


@pytest.fixture(scope="module")
def pretrained(config: Config) -> Path:
    """A masked language model of the same shape and text."""
    folder = train_on(1, config("mlm", "mlm", "data.slot_streams=4", "trainer.max_steps=3"))
    return folder / "checkpoints/step-00000003.pt"


def streams(run: Path) -> list[str]:
    """The stream of each step."""
    found = sorted((step, name) for step, name, _ in reported(run, "train/loss_"))
    assert [step for step, _ in found] == list(range(1, len(found) + 1))
    return [name.removeprefix("train/loss_") for _, name in found]


def problems(config: dict[str, Any]) -> list[str]:
    """What reading a config tells, before anything starts."""
    with pytest.raises(ConfigError) as error:
        read_train_config(OmegaConf.create(config))
    return error.value.problems


# -- resume ----------------------------------------------------------------------------------------------------------------


def test_a_killed_run_becomes_the_undisturbed_one(config: Config, undisturbed: Path, runs: Path) -> None:
    """Killed before a slot of denoising, and in the middle of a translation; denoising ends at its third iteration."""
    taken = streams(undisturbed)
    assert [sorted(name[:2] for name in taken[at : at + 4]) for at in (0, 4, 8)] == [["ae", "ae", "bt", "bt"]] * 3
    assert {name[:2] for name in taken[12:]} == {"bt"}
    denoised = next(step for step in (4, 5) if taken[step].startswith("ae"))
    translated = next(step for step in (6, 7) if taken[step].startswith("bt"))
    for death in (Death(denoised, slot=2), Death(translated, slot=1, decoded=3), Death(13, slot=3, decoded=1)):
        assert -signal.SIGKILL in start(config("killed", "umt", *WEIGHTS), 1, death)
    train_on(1, config("killed", "umt", *WEIGHTS))
    assert_same_run(undisturbed, runs / "killed")


@pytest.mark.slow
def test_killed_at_many_moments(config: Config, runs: Path) -> None:
    """Of objective=mt, and of one whose step has denoising, back-translation at once (quota), each step another moment."""
    quota = ("objective.order=quota", "+objective.shares={ae: 1, bt: 1}", "objective.weights.ae=1")
    for objective, words in (("mt", ()), ("umt", quota)):
        whole = train_on(1, config(f"whole_{objective}", objective, *words))
        settings = config(f"often_{objective}", objective, *words)
        for step in range(1, 9):
            decoded = 1 if objective == "umt" and step % 2 else 0
            # by quota the last two slots of a step are back-translation's
            assert -signal.SIGKILL in start(settings, 1, Death(step, slot=3, decoded=decoded))
        assert_same_run(whole, train_on(1, settings))


# -- processes -------------------------------------------------------------------------------------------------------------


def test_two_processes_are_one(config: Config, undisturbed: Path) -> None:
    """The same sentences and losses; the encoder's output bias has no gradient, and DDP does not wait for it."""
    two = train_on(2, config("two", "umt", *WEIGHTS))
    wanted = [(slot.step, slot.slot, slot.tokens) for slot in slots_trained(undisturbed)]
    assert [(slot.step, slot.slot, slot.tokens) for slot in slots_trained(two)] == wanted
    assert {slot.buckets for slot in slots_trained(two)} >= {1}
    assert largest_difference(undisturbed, two) < 1e-5
    earlier, later = (checkpoint_file.load(two / f"checkpoints/step-{step:08}.pt")["model"] for step in (12, 16))
    moved = {side: not torch.equal(earlier[name], later[name]) for side in SIDES for name in [f"{side}.output_bias"]}
    assert moved == {"encoder": False, "decoder": True}


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["umt", "mt"])
def test_100_steps_on_1_2_4_and_7_processes(objective: str, config: Config) -> None:
    words = ("trainer.max_steps=100", "data.slots=7", "callbacks.checkpointing.every_n_steps=50")
    one = train_on(1, config(f"100_{objective}_1", objective, *words))
    wanted = [(slot.step, slot.slot, slot.tokens) for slot in slots_trained(one)]
    assert len(wanted) == 700
    for processes in (2, 4, 7):
        several = train_on(processes, config(f"100_{objective}_{processes}", objective, *words))
        assert [(slot.step, slot.slot, slot.tokens) for slot in slots_trained(several)] == wanted
        assert largest_difference(one, several) < 1e-5, processes


@pytest.mark.slow
def test_four_processes_killed_while_translating_and_resumed_on_one(config: Config, undisturbed: Path) -> None:
    assert -signal.SIGKILL in start(config("moved", "umt", *WEIGHTS), 4, Death(14, slot=3, decoded=1))
    assert largest_difference(undisturbed, train_on(1, config("moved", "umt", *WEIGHTS))) < 1e-5


# -- precision and guard ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            ("trainer.precision=bf16-mixed",),
            marks=pytest.mark.skipif(not cpu_multiplies_bfloat16(), reason="bfloat16 is refused on this processor"),
        ),
        pytest.param(FLOAT16, marks=pytest.mark.slow),
    ],
)
def test_low_precision_trains_and_resumes(words: tuple[str, ...], config: Config, undisturbed: Path) -> None:
    name = words[0].replace("=", "_").replace(".", "_")
    low = train_on(1, config(name, "umt", *WEIGHTS, *words))
    assert 0 < largest_difference(undisturbed, low) < 0.03
    settings = config(f"{name}_killed", "umt", *WEIGHTS, *words)
    assert -signal.SIGKILL in start(settings, 1, Death(13, slot=2, decoded=1))
    assert_same_run(low, train_on(1, settings))


@pytest.mark.slow
def test_bad_steps_are_skipped_or_rolled_back(config: Config, runs: Path) -> None:
    for policy in ("skip", "rollback"):
        words = (*WEIGHTS, f"callbacks.guard.policy={policy}", "debug.nan_steps=[5,13]")
        assert last(train_on(1, config(policy, "umt", *words)))["progress"]["skipped"] == [5, 13]
        text = (runs / policy / "bad_batches/step-00000005.txt").read_text()
        assert re.search(r"## slot 0: (ae|bt)-", text)
        assert "### sentence " in text
    with pytest.raises(TrainingStopped, match="step 2: the loss of slot 0 is not finite"):
        train_here(config("bad", "umt", "debug.nan_steps=[2]"))


# -- starts ----------------------------------------------------------------------------------------------------------------


def test_a_start_from_pretrained_sides(
    config: Config, pretrained: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (f"init_encoder={pretrained}", f"init_decoder={pretrained}")
    train_here(config("started", "umt", *given, "trainer.max_steps=2"))
    log = capsys.readouterr().err
    assert f"encoder: {pretrained}: 30 tensors loaded\n" in log
    assert f"decoder: {pretrained}: 30 tensors loaded; random: blocks.0.source_attention.q.weight, " in log
    content = last(runs / "started")
    assert content["lineage"]["parents"] == [last(runs / "mlm")["sha256"]]
    # another start is another run; the same may go on without the file
    with pytest.raises(UserError, match=f"init_encoder: was {pretrained}, now None"):
        train_here(config("started", "umt", given[1], "trainer.max_steps=3"))
    train_here(config("started", "umt", *given, "trainer.max_steps=3"))
    # a translation model starts another one, whole or a side
    whole = runs / "started/checkpoints/step-00000003.pt"
    train_here(config("from_whole", "mt", f"init_from={whole}", "trainer.max_steps=1"))
    train_here(config("from_side", "mt", f"init_encoder={whole}", "trainer.max_steps=1"))
    assert len(last(runs / "from_whole")["lineage"]["parents"]) == 2
    learned = last(runs / "started")["model"]["encoder.lang_embeddings.weight"]
    for name in ("from_whole", "from_side"):  # the first update's rate is 1e-7
        assert (last(runs / name)["model"]["encoder.lang_embeddings.weight"] - learned).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("objective", "words", "message"),
    [
        ("umt", ("init_from={mlm}",), "is a language model, and this run trains a translation model: init_encoder={mlm}"),
        ("clm", ("init_from={whole}",), "is a translation model, and this run trains a language model"),
        ("umt", ("init_encoder={mlm}", "model.ffn_dim=64"), "its model has ffn_dim=128, this run 64; set model.ffn_dim=128"),
        ("umt", ("init_decoder={mlm}", "data.path={other}"), "its vocabulary has "),
    ],
)  # fmt: skip
def test_starts_that_do_not_fit_are_refused(
    objective: str, words: tuple[str, ...], message: str, config: Config, undisturbed: Path, pretrained: Path,
    corpus_folder: Path,
) -> None:  # fmt: skip
    places = {"mlm": pretrained, "whole": undisturbed / "checkpoints/step-00000016.pt", "other": corpus_folder}
    with pytest.raises(UserError) as error:
        train_here(config("refused", objective, "data.slot_streams=4", *(word.format(**places) for word in words)))
    assert message.format(**places) in str(error.value)


def test_back_translation_alone_warns(config: Config, pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_here(config("babble", "bt", "trainer.max_steps=1"))
    assert "warning: back-translation alone cannot begin from random weights" in capsys.readouterr().err
    train_here(config("begun", "bt", "trainer.max_steps=1", f"init_decoder={pretrained}"))
    assert "back-translation alone" not in capsys.readouterr().err


# -- mistakes --------------------------------------------------------------------------------------------------------------


def test_mistakes_are_told_together_before_anything_starts(
    config: Config, corpus_folder: Path, pretrained: Path
) -> None:
    assert problems(config("wrong", "umt", "init_encoder=/none", "init_decoder=/nor/this", "init_from=x")) == [
        "init_encoder=/none: init_from=x gives both sides their weights: leave one of them out",
        "init_decoder=/nor/this: init_from=x gives both sides their weights: leave one of them out",
        "init_from=x: there is no such file or folder",
        "init_encoder=/none: there is no such file or folder",
        "init_decoder=/nor/this: there is no such file or folder",
    ]
    assert problems(config("wrong", "clm", "model.share=embeddings", f"init_encoder={pretrained}")) == [
        f"init_encoder={pretrained}: only a translation model has two sides, as under objective=umt",
        "model.share=embeddings: only a translation model has two sides, as under objective=umt",
    ]
    parts = ("+objective.weights.mt=1", "objective.weights.ae=x", "objective.parts.bt.directions=[de-fr-de]")
    assert problems(config("wrong", "umt", *parts, "objective.parts.ae.languages=[fr]")) == [
        "objective.weights.mt: there is no such part among ae, bt",
        "objective.weights.ae=x: a weight is a number from 0, or points iteration:weight with rising iterations, the first 0,"
        " such as '0:1,100000:0.1,300000:0'",
        "objective.parts.ae.languages: fr does not name 1 language of the corpus, which has de, en; write it as de",
        "objective.parts.bt.directions: de-fr-de does not name 3 languages of the corpus, which has de, en; write it as"
        " de-en-de",
    ]
    assert problems(config("wrong", "umt", "objective.weights.ae=0", "objective.weights.bt=0")) == [
        "objective.weights: all are 0 from iteration 0 on: nothing is left to learn from"
    ]
    (line,) = problems(config("wrong", "mt", f"data.path={corpus_folder}"))
    assert (
        "has no parallel text train.de-en (it has none); prepare it with it: xlm-prep ... 'pairs.de-en.train=" in line
    )
    (line,) = problems(config("wrong", "umt", "data.max_len=80"))
    assert line.startswith("data.max_len=80 with eos on both ends is longer than model.max_positions=64")
