"""The same run on any number of processes: the same tokens, and the same losses but for rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import command
from tests.end_to_end.worlds import largest_difference, last, slots_trained, train_on
from xlm_train.data.order import slots_of_rank

# Processes differ in one thing only: the float32 sum of gradients over slots is taken in another order, which is off by
# a few units of 6e-8 of the terms. Where a gradient is close to nothing Adam makes that into another step of the weight,
# but there the loss does not depend on it. Over 200 updates the difference may grow; another token, another dropout mask
# or another weight of one slot would show at 1e-3 and more in the next step.
BOUND = 1e-5

Config = Callable[..., dict[str, Any]]


@pytest.fixture
def config(compose: Config, corpus_folder: Path, tmp_path: Path) -> Config:
    """config(run name, *overrides) of experiment=smoke with dropout and a report of every step."""

    def composed(name: str, *overrides: str) -> dict[str, Any]:
        where = (f"data.path={corpus_folder}", f"paths.runs={tmp_path}", f"run_name={name}")
        found = compose("train", "experiment=smoke", "callbacks.metrics.every_n_steps=1", *where, *overrides)
        assert found["model"]["dropout"] == found["model"]["attention_dropout"] == 0.1
        return found

    return composed


def assert_same_tokens(one: Path, several: Path, steps: int, slots: int, processes: int) -> None:
    """Every slot of every step trained on once, by the process that has it, and on the tokens it has in the run of one."""
    wanted, found = slots_trained(one), slots_trained(several)
    assert [(s.step, s.slot) for s in wanted] == [(step, slot) for step in range(steps) for slot in range(slots)]
    assert [(s.step, s.slot, s.tokens) for s in found] == [(s.step, s.slot, s.tokens) for s in wanted]
    ranks = [rank for rank in range(processes) for _ in slots_of_rank(slots, rank, processes)]
    assert [s.rank for s in found] == ranks * steps


def assert_same_weights(one: Path, several: Path) -> None:
    """Every tensor within the bound of its norm, but for the keys' bias: no loss depends on it, so it only drifts."""
    ours, theirs = last(one), last(several)
    dim = ours["shape"]["dim"]
    for name, value in ours["model"].items():
        other = theirs["model"][name]
        if name.endswith("qkv.bias"):
            value, other = (torch.cat([t[:dim], t[2 * dim :]]) for t in (value, other))
        assert (other - value).norm() <= BOUND * value.norm(), name


def test_two_three_and_four_processes_are_one(config: Config) -> None:
    """30 steps of 4 slots: 2 and 4 processes have even shares, 3 have 1, 1 and 2 slots."""
    words = ("data.slots=4", "trainer.max_steps=30")
    one = train_on(1, config("one", *words))
    for processes in (2, 3, 4):
        several = train_on(processes, config(f"run_on_{processes}", *words))
        assert_same_tokens(one, several, 30, 4, processes)
        assert largest_difference(one, several) < BOUND
        assert_same_weights(one, several)


def weights_after_one_step(config: Config, processes: int, slots: int, rate: float) -> torch.Tensor:
    """All weights, flat, after one step of plain gradient descent: they moved by `rate` times the gradient."""
    name = f"{processes}_at_rate_{rate}"
    settings = config(name, f"data.slots={slots}", "trainer.max_steps=1", "trainer.clip_norm=1e9")
    settings["optimizer"] = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": rate}
    settings["schedule"] = {"_target_": "xlm_train.training.schedule.constant", "_partial_": True, "peak": rate}
    settings["schedule"]["warmup_updates"] = 0
    return torch.cat([value.double().flatten() for value in last(train_on(processes, settings))["model"].values()])


def test_with_shares_of_different_size_the_update_is_the_mean_over_all_tokens(config: Config) -> None:
    """The gradient itself, not only a loss: 3 processes with 1, 1 and 2 slots have that of one, to 1e-6 of its norm.

    (A mean of the three processes' means is some 0.3 of its norm away.)
    """
    start, alone = (weights_after_one_step(config, 1, 4, rate) for rate in (0.0, 64.0))
    together = weights_after_one_step(config, 3, 4, 64.0)
    assert (together - alone).norm() < 1e-6 * (alone - start).norm()


def test_more_processes_than_slots_are_refused(corpus_folder: Path, tmp_path: Path) -> None:
    """Before anything starts, by the command and by its name for it."""
    words = ["experiment=smoke", f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "data.slots=3"]
    result = command("xlm_train.commands.train", *words, "trainer.devices=4", status=2)
    assert "at most 3 processes work" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_200_steps_through_the_command(processes: int, config: Config, corpus_folder: Path, tmp_path: Path) -> None:
    """`xlm-train trainer.devices=N`, which starts torchrun: 200 steps of 4 slots at a high rate, beside one process."""
    words = ("data.slots=4", "trainer.max_steps=200", "optimizer.lr=1e-2", "callbacks.metrics.every_n_steps=1")
    one = train_on(1, config("one", *words))
    where = (f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "run_name=several", f"trainer.devices={processes}")
    command("xlm_train.commands.train", "experiment=smoke", *where, *words)
    assert largest_difference(one, tmp_path / "several") < BOUND
    assert_same_weights(one, tmp_path / "several")


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "slots"), [(7, 8), (7, 16), (8, 8), (8, 11)])
def test_seven_and_eight_processes(processes: int, slots: int, config: Config) -> None:
    words = (f"data.slots={slots}", "data.slot_streams=2", "trainer.max_steps=12")
    one, several = train_on(1, config("one", *words)), train_on(processes, config("several", *words))
    assert_same_tokens(one, several, 12, slots, processes)
    assert largest_difference(one, several) < BOUND
    assert_same_weights(one, several)
