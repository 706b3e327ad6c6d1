"""A run that died and was started again is the undisturbed run, bit for bit."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import train_here
from tests.end_to_end.worlds import (
    Death,
    assert_same,
    assert_same_run,
    copy_as_of,
    largest_difference,
    last,
    reported,
    slots_trained,
    start,
    state,
    train_on,
)
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.device import cpu_multiplies_bfloat16
from xlm_train.runtime.errors import UserError

Config = Callable[..., dict[str, Any]]
FLOAT16 = ("trainer.precision=16-mixed", "debug.cpu_fp16=true")
SAVE_ALL = ("callbacks.checkpointing.every_n_steps=1", "callbacks.checkpointing.keep_last=1000")
# 30 steps at this rate, with a validation every third: better, worse, better, then worse until patience ends it
UNSTEADY = ("optimizer.lr=0.2", "schedule=constant", "callbacks.validation.every_n_steps=3")
PATIENT = "callbacks.validation.patience=2"


@pytest.fixture
def config(compose: Config, corpus_folder: Path, tmp_path: Path) -> Config:
    """config(run name, *overrides) of experiment=smoke with dropout and three slots a step; reports every other step."""

    def composed(name: str, *overrides: str) -> dict[str, Any]:
        where = (f"data.path={corpus_folder}", f"paths.runs={tmp_path}", f"run_name={name}")
        words = ("data.slots=3", "callbacks.metrics.every_n_steps=2", *where, *overrides)
        found = compose("train", "experiment=smoke", *words)
        assert found["model"]["dropout"] == found["model"]["attention_dropout"] == 0.1
        return found

    return composed


def set_loss_scale(path: Path, **values: float) -> None:
    """Rewrite the loss scale in a checkpoint."""
    content = checkpoint_file.read(path)
    del content["sha256"]
    content["train_state"]["loss_scale"].update(values)
    checkpoint_file.write(path, content)


def overflowing(config: Config, name: str, *overrides: str) -> dict[str, Any]:
    """A float16 run that has made one step, and whose scale is now far too large and doubles after 3 good steps.

    So gradients really overflow: nine times in a row, and then in every fourth step.
    """
    words = (*FLOAT16, *overrides)
    train_here(config(name, "trainer.max_steps=1", *words))
    begun = config(name, "trainer.max_steps=26", *words)
    path = Path(begun["paths"]["runs"]) / name / "checkpoints" / checkpoint_file.name_of(1)
    set_loss_scale(path, scale=2.0**30, growth_interval=3)
    return begun


# -- every step a resume point ---------------------------------------------------------------------------------------------


def resume_at(steps: range, undisturbed: Path, settings: dict[str, Any], processes: int | None = None) -> None:
    """Start a run again from its checkpoint of each of `steps`; each time it must become the run it was.

    processes: None is this process.
    """
    settings = {
        **settings,
        "callbacks": {
            **settings["callbacks"],
            "checkpointing": {**settings["callbacks"]["checkpointing"], "every_n_steps": 7, "keep_last": 3},
        },
    }
    for step in steps:
        run = copy_as_of(step, undisturbed, f"resumed_at_{step}")
        assert last(run)["progress"]["step"] == step
        again = {**settings, "run_name": run.name}
        if processes is None:
            train_here(again)
        else:
            train_on(processes, again)
        assert_same_run(undisturbed, run)


def run_that_patience_ended(run: Path) -> int:
    """Its number of steps, with validations that failed and did not fail before."""
    progress = last(run)["progress"]
    assert progress["failures"] == 3
    assert progress["best_step"] < progress["step"] < 60
    values = [value for _, name, value in reported(run, "val/ppl") if name == "val/ppl"]
    assert any(later > earlier for earlier, later in itertools.pairwise(values[:-3]))  # a failure that was made good
    return int(progress["step"])


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_resumed_at_any_step_with_validation_and_patience(every: int, config: Config, tmp_path: Path) -> None:
    settings = config("undisturbed", "trainer.max_steps=60", *UNSTEADY, PATIENT, *SAVE_ALL)
    train_here(settings)
    end = run_that_patience_ended(tmp_path / "undisturbed")
    assert end > 20
    resume_at(range(1, end, every), tmp_path / "undisturbed", settings)


@pytest.mark.skipif(not cpu_multiplies_bfloat16(), reason="bfloat16 is refused on this processor")
@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_resumed_in_bfloat16(objective: str, config: Config, tmp_path: Path) -> None:
    """What is cast is a function of the weights; `auto` goes on in the precision that was stored."""
    words = (f"objective={objective}", "trainer.max_steps=6", "callbacks.validation.every_n_steps=3", *SAVE_ALL)
    settings = config("undisturbed", "trainer.precision=bf16-mixed", *words)
    train_here(settings)
    exact = config("float32", *words)
    train_here(exact)
    assert largest_difference(tmp_path / "float32", tmp_path / "undisturbed") > 0
    settings["trainer"]["precision"] = "auto"
    resume_at(range(2, 6, 3), tmp_path / "undisturbed", settings)


@pytest.mark.slow
def test_resumed_at_any_step_while_float16_overflows(config: Config, tmp_path: Path) -> None:
    settings = overflowing(config, "undisturbed", *SAVE_ALL)
    train_here(settings)
    assert len(last(tmp_path / "undisturbed")["progress"]["skipped"]) >= 10
    resume_at(range(1, 26), tmp_path / "undisturbed", settings)


@pytest.mark.slow
@pytest.mark.parametrize("float16", [False, True])
def test_resumed_at_any_step_by_two_processes(float16: bool, config: Config, tmp_path: Path) -> None:
    """Three slots: one for the first process, two for the second."""
    if float16:
        settings, end = overflowing(config, "undisturbed", *SAVE_ALL), 26
        train_on(2, settings)
    else:
        settings = config("undisturbed", "trainer.max_steps=60", *UNSTEADY, PATIENT, *SAVE_ALL)
        end = run_that_patience_ended(train_on(2, settings))
    assert end > 20
    resume_at(range(1, end), tmp_path / "undisturbed", settings, processes=2)


# -- death within a step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processes", "float16"),
    [
        (2, True),
        pytest.param(1, False, marks=pytest.mark.slow),
        pytest.param(1, True, marks=pytest.mark.slow),
        pytest.param(2, False, marks=pytest.mark.slow),
    ],
)
def test_killed_in_the_middle_of_an_accumulation(processes: int, float16: bool, config: Config, tmp_path: Path) -> None:
    """SIGKILL between two of eight slots, of the first process and of the last, twice before one new checkpoint."""
    words = ("data.slots=8", "callbacks.checkpointing.every_n_steps=3", "callbacks.validation.every_n_steps=4")
    if float16:
        settings, undisturbed = (overflowing(config, name, *words) for name in ("killed", "undisturbed"))
    else:
        settings, undisturbed = (
            config(name, *words, "trainer.max_steps=14", *UNSTEADY) for name in ("killed", "undisturbed")
        )
    train_on(processes, undisturbed)
    for death in (Death(step=4, slot=2), Death(step=5, slot=7), Death(step=7, slot=5)):
        assert -signal.SIGKILL in start(settings, processes, death)
        assert last(tmp_path / "killed")["progress"]["step"] <= death.step
    train_on(processes, settings)
    begun = [s for s in slots_trained(tmp_path / "killed") if (s.step, s.slot) in ((4, 1), (5, 6), (7, 4))]
    assert len(begun) > 3  # the slots before the deaths were trained on, and again after them
    assert_same_run(tmp_path / "undisturbed", tmp_path / "killed")


def test_killed_and_resumed_on_other_numbers_of_processes(config: Config, tmp_path: Path) -> None:
    """2 processes, then 1, then 3, each killed within a step: the tokens are those of one process, so are the losses."""
    words = ("data.slots=4", "trainer.max_steps=18", "callbacks.checkpointing.every_n_steps=3")
    words += ("callbacks.metrics.every_n_steps=1", "callbacks.validation.every_n_steps=6")
    one, moved = config("one", *words), config("moved", *words)
    train_on(1, one)
    for processes, death in ((2, Death(step=7, slot=3)), (1, Death(step=13, slot=2))):
        assert -signal.SIGKILL in start(moved, processes, death)
    train_on(3, moved)
    trained = slots_trained(tmp_path / "moved")
    assert {slot.rank for slot in trained if slot.step > 13} == {0, 1, 2}
    wanted = {(slot.step, slot.slot, slot.tokens) for slot in slots_trained(tmp_path / "one")}
    assert {(slot.step, slot.slot, slot.tokens) for slot in trained} == wanted
    assert largest_difference(tmp_path / "one", tmp_path / "moved") < 1e-5  # the bound of test_worlds.py


# -- float16 ---------------------------------------------------------------------------------------------------------------


def test_a_skipped_step_moves_nothing_but_the_scale(config: Config, tmp_path: Path) -> None:
    """Real overflows: weights, moments, update count and schedule stay; the step count goes on; scale and skips are logged."""
    settings = overflowing(config, "run", *SAVE_ALL, "callbacks.metrics.every_n_steps=1")
    train_here(settings)
    run = tmp_path / "run"
    contents = {
        step: checkpoint_file.load(run / "checkpoints" / checkpoint_file.name_of(step)) for step in range(1, 27)
    }
    skipped = contents[26]["progress"]["skipped"]
    assert len(skipped) >= 10
    assert skipped[:3] == [1, 2, 3]
    logged = {
        name: {step: value for step, key, value in reported(run, "optim/", "progress/") if key == name}
        for name in ("optim/lr", "optim/loss_scale", "optim/skipped_steps", "progress/updates")
    }
    for step in range(1, 26):
        before, after = contents[step], contents[step + 1]
        moved = step not in skipped
        assert after["progress"]["updates"] - before["progress"]["updates"] == moved
        assert torch.equal(after["model"]["embeddings.weight"], before["model"]["embeddings.weight"]) != moved
        if moved:
            rate = 1e-7 + (1e-3 - 1e-7) * before["progress"]["updates"] / 10  # the warm-up: 10 updates, not steps
            if before["progress"]["updates"] < 10:
                assert logged["optim/lr"][step + 1] == pytest.approx(rate, rel=1e-6)
        else:
            assert_same(before["model"], after["model"])
            assert_same(before["optimizer"]["state"], after["optimizer"]["state"])
            assert logged["optim/loss_scale"][step + 1] == before["progress"]["loss_scale"]["scale"] / 2
        assert logged["progress/updates"][step + 1] == after["progress"]["updates"]
        assert logged["optim/skipped_steps"][step + 1] == len([s for s in skipped if s <= step])


def test_skips_in_a_row_stop_the_run_and_leave_its_checkpoints(config: Config, tmp_path: Path) -> None:
    """Twenty overflows one after the other, a death among them: the run stops; weights and older files are as they were."""
    words = (*FLOAT16, *SAVE_ALL)
    train_here(config("run", "trainer.max_steps=4", *words))
    run = tmp_path / "run"
    set_loss_scale(run / "checkpoints" / checkpoint_file.name_of(4), scale=2.0**200)
    before = {path: path.read_bytes() for path in (run / "checkpoints").glob("step-*.pt")}
    weights = last(run)["model"]
    train_here(config("run", "trainer.max_steps=15", *words))  # eleven, and an end
    with pytest.raises(UserError, match="20 updates in a row"):
        train_here(config("run", "trainer.max_steps=60", *words))
    assert {path: path.read_bytes() for path in before} == before
    assert last(run)["progress"]["step"] in (23, 24)
    assert last(run)["progress"]["updates"] == 4
    assert_same(last(run)["model"], weights)


# -- gradient buckets ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_the_first_step_after_a_resume_with_several_buckets(processes: int, config: Config) -> None:
    """DDP reduces gradients in buckets whose layout it finds out in a process's first reduction: with more than two
    processes another layout adds in another order. The first step after a resume must have the undisturbed one's."""
    words = ("model.dim=256", "model.n_heads=4", "model.ffn_dim=1024", "model.n_layers=10", "data.slot_streams=1")
    words += ("data.slots=4", "trainer.max_steps=3", "callbacks.validation.every_n_steps=3", *SAVE_ALL)
    settings = config("undisturbed", *words)
    undisturbed = train_on(processes, settings)
    trained = slots_trained(undisturbed)
    assert {slot.rank for slot in trained} == set(range(processes))
    assert {slot.buckets for slot in trained if slot.step > 0} == {3}  # in step 0 DDP has not yet told of its layout
    for step in (1, 2):
        run = copy_as_of(step, undisturbed, f"resumed_at_{step}")
        train_on(processes, {**settings, "run_name": run.name})
        first = [
            checkpoint_file.load(r / "checkpoints" / checkpoint_file.name_of(step + 1)) for r in (undisturbed, run)
        ]
        assert_same(first[0]["model"], first[1]["model"])
        assert_same(first[0]["optimizer"], first[1]["optimizer"])
        assert_same(state(undisturbed), state(run))
