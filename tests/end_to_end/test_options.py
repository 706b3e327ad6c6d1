"""Options of several processes, in real ones: divided optimizer state, compressed gradients, a slow rank."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import PATIENCE, command
from tests.end_to_end.test_training import start
from tests.end_to_end.worlds import assert_same, last
from xlm_train.config.train import problems_of
from xlm_train.runtime import checkpoint_file


@pytest.fixture
def words(corpus_folder: Path, tmp_path: Path) -> list[str]:
    common = ["experiment=smoke", f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "trainer.devices=2"]
    return [*common, "callbacks.validation.every_n_steps=1000"]


@pytest.mark.slow
def test_a_divided_optimizer_is_the_undivided_one(words: list[str], tmp_path: Path) -> None:
    """ZeRO: the same weights and moments to the last bit, over a restart, and each process keeps only its part."""
    command("xlm_train.commands.train", *words, "run_name=whole")
    command("xlm_train.commands.train", *words, "run_name=divided", "trainer.sharding=zero", "trainer.max_steps=10")
    command("xlm_train.commands.train", *words, "run_name=divided", "trainer.sharding=zero")
    whole, divided = last(tmp_path / "whole"), last(tmp_path / "divided")
    for part in ("model", "optimizer"):
        assert_same(whole[part], divided[part], part)
    # the state is whole in the file: one process alone can go on with it
    command("xlm_train.commands.train", *words, "run_name=divided", "trainer.devices=1", "trainer.max_steps=21")


def everything(content: dict[str, Any]) -> torch.Tensor:
    """All weights as one vector."""
    return torch.cat([tensor.flatten() for tensor in content["model"].values()])


@pytest.mark.slow
def test_compressed_gradients_change_the_run_a_little(words: list[str], tmp_path: Path) -> None:
    words += ["trainer.precision=16-mixed", "debug.cpu_fp16=true"]
    command("xlm_train.commands.train", *words, "run_name=plain")
    command("xlm_train.commands.train", *words, "run_name=half", "trainer.gradient_compression=fp16")
    plain, half = (everything(last(tmp_path / name)) for name in ("plain", "half"))
    halfway = everything(checkpoint_file.load(tmp_path / "plain/checkpoints/step-00000010.pt"))
    # registered, and harmless: they part by little of the way that both have gone since step 10
    assert 0 < (half - plain).norm() < 0.05 * (plain - halfway).norm()


def test_what_needs_several_processes_is_refused_in_one(compose: Callable[..., Any], corpus_folder: Path) -> None:
    options = ["trainer.sharding=zero", "trainer.gradient_compression=fp16"]
    config = compose("train", "experiment=smoke", f"data.path={corpus_folder}", "run_name=x", *options)
    problems = problems_of(OmegaConf.create(config))
    assert sum("there is one process" in problem for problem in problems) == 2


def test_a_slow_rank_is_named(words: list[str], tmp_path: Path) -> None:
    """One worker is stopped for most of the time: its own clock shows it, the other only waits."""
    settings = ["trainer.max_steps=100000", "callbacks.metrics.every_n_steps=5"]
    process = start(*words, *settings, "run_name=slow")
    events = tmp_path / "slow/events.jsonl"
    deadline = time.monotonic() + PATIENCE
    while not (events.is_file() and '"start"' in events.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    worker = workers_of(tmp_path / "slow")[-1]
    deadline, stop = time.monotonic() + PATIENCE, threading.Event()

    def hold_back() -> None:
        while not stop.is_set():
            os.kill(worker, signal.SIGSTOP)
            time.sleep(0.1)
            os.kill(worker, signal.SIGCONT)
            time.sleep(0.02)

    thread = threading.Thread(target=hold_back)
    thread.start()
    try:
        while '"slow_rank"' not in events.read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        stop.set()
        thread.join()
        os.kill(worker, signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
    slow = [json.loads(line) for line in events.read_text().splitlines() if "slow_rank" in line]
    assert slow, "the rank was not named"
    assert slow[0]["rank"] == 1


def workers_of(run: Path) -> list[int]:
    """Process ids of a run's workers, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environment = dict(e.split(b"=", 1) for e in (folder / "environ").read_bytes().split(b"\0") if b"=" in e)
        except OSError:
            continue  # it has ended meanwhile
        if b"RANK" in environment and str(run / "launch.yaml").encode() in words:
            found[int(environment[b"RANK"])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]
