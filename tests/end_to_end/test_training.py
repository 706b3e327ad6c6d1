"""The trainer as a whole: what a run leaves behind, how it is interrupted, stopped, forked, refused.

That a resumed run and one on another number of processes is the same run: test_resume.py, test_worlds.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from tests.conftest import PATIENCE, command, process_environment, train_here
from tests.end_to_end.worlds import assert_same, assert_same_run, last, train_on
from xlm_train.config.given_shape import take_shape
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import ConfigError, UserError
from xlm_train.training.loggers import read_metrics

Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def smoke(compose: Compose, corpus_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run experiment=smoke in this process, or in so many; returns the run folder."""

    def run(name: str, *overrides: str, processes: int | None = None) -> Path:
        config = compose(
            "train",
            "experiment=smoke",
            f"data.path={corpus_folder}",
            f"paths.runs={tmp_path}",
            f"run_name={name}",
            *overrides,
        )
        if processes is not None:
            return train_on(processes, config)
        assert train_here(config) == 0
        return tmp_path / name

    return run


def test_a_run_learns_and_leaves_everything(smoke: Callable[..., Path]) -> None:
    run = smoke("whole", "trainer.max_steps=60", "optimizer.lr=1e-2")
    metrics = read_metrics(run / "metrics.jsonl")
    training = [line["train/loss"] for line in metrics if "train/loss" in line]
    assert training[-1] < training[0] - 0.5
    validation = [line for line in metrics if "val/ppl" in line]
    assert [line["step"] for line in validation] == [10, 20, 30, 40, 50, 60]
    assert validation[-1]["val/ppl"] == pytest.approx((validation[-1]["val/ppl_de"] + validation[-1]["val/ppl_en"]) / 2)
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    for name in ("config.yaml", "environment.json", "report.md", "plots/curves.png", "checkpoints/best.pt"):
        assert (run / name).is_file(), name
    best = checkpoint_file.load(run / "checkpoints/best.pt")
    assert best["progress"]["best_metric"] == min(line["val/ppl"] for line in validation)
    assert best["text"]["languages"] == {"de": 0, "en": 1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_preemption(number: signal.Signals, smoke: Callable[..., Path], corpus_folder: Path, tmp_path: Path) -> None:
    extra = ["trainer.max_steps=200"]
    words = ["experiment=smoke", f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "run_name=preempted", *extra]
    process = start(*words)
    run = tmp_path / "preempted"
    wait_for_step(run, 10, process)
    process.send_signal(number)
    assert process.wait(PATIENCE) == 75
    assert json.loads((run / "status.json").read_text())["status"] == "preempted"
    stopped = last(run)["progress"]["step"]
    assert 10 <= stopped < 200
    command("xlm_train.commands.train", *words)
    assert_same_run(smoke("undisturbed", *extra), run)


def start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "xlm_train.commands.train", *words],
        env=process_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the run has reported a step."""
    deadline = time.monotonic() + PATIENCE
    while not any(line["step"] >= step for line in read_metrics(run / "metrics.jsonl")):
        assert process.poll() is None, "the process ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_same_name_with_another_config_is_refused(smoke: Callable[..., Path]) -> None:
    run = smoke("taken", "trainer.max_steps=2")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError) as error:
        smoke("taken", "trainer.max_steps=4", "optimizer.lr=3e-4", "model.dim=16")
    text = str(error.value)
    assert "optimizer.lr: was 0.001, now 0.0003" in text
    assert "model.dim: was 32, now 16" in text
    assert "max_steps" not in text  # may change
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_damaged_newest_checkpoint_is_skipped(smoke: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    extra = ["callbacks.checkpointing.every_n_steps=5"]
    undisturbed = smoke("undisturbed", "trainer.max_steps=20", *extra)
    run = shutil.copytree(undisturbed, undisturbed.parent / "damaged")
    newest = checkpoint_file.in_folder(run / "checkpoints")[0]
    newest.write_bytes(newest.read_bytes()[:-1000])
    smoke("damaged", "trainer.max_steps=20", *extra)
    assert f"{newest} is skipped" in capfd.readouterr().err
    assert_same_run(undisturbed, run)


def test_a_finished_run_started_again_changes_nothing(smoke: Callable[..., Path]) -> None:
    run = smoke("done", "trainer.max_steps=10")
    before = (last(run)["sha256"], (run / "metrics.jsonl").read_bytes())
    smoke("done", "trainer.max_steps=10")
    assert (last(run)["sha256"], (run / "metrics.jsonl").read_bytes()) == before
    assert json.loads((run / "status.json").read_text())["status"] == "finished"


def test_two_processes_preempted_between_reports_and_resumed(
    smoke: Callable[..., Path], corpus_folder: Path, tmp_path: Path
) -> None:
    """Two real processes: the resumed run has the undisturbed one's weights and its reported losses, bit for bit."""
    options = ["trainer.max_steps=200", "callbacks.metrics.every_n_steps=8"]
    smoke("undisturbed", *options, processes=2)
    common = ["experiment=smoke", f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "trainer.devices=2", *options]
    common += ["callbacks.interruption.every_n_steps=3"]
    process = start(*common, "run_name=preempted")
    wait_for_step(tmp_path / "preempted", 16, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 75
    stopped = last(tmp_path / "preempted")["progress"]["step"]
    assert stopped % 3 == 0
    command("xlm_train.commands.train", *common, "run_name=preempted")
    assert_same_run(tmp_path / "undisturbed", tmp_path / "preempted")


def test_a_user_mistake_in_two_processes_is_said_plainly(
    smoke: Callable[..., Path], corpus_folder: Path, tmp_path: Path
) -> None:
    words = ["experiment=smoke", f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "trainer.devices=2"]
    (tmp_path / "rubbish.pt").write_bytes(b"rubbish")
    wrong = f"init_from={tmp_path / 'rubbish.pt'}"
    result = command("xlm_train.commands.train", *words, "run_name=x", wrong, status=2)
    assert "rubbish.pt: 7 bytes: not a checkpoint" in result.stderr
    assert "Traceback" not in result.stderr
    # the corrected command is not refused because of the failed one
    smoke("x", "trainer.max_steps=1", processes=2)


def test_a_launcher_with_another_number_of_processes_is_refused(corpus_folder: Path, tmp_path: Path) -> None:
    words = ["experiment=smoke", f"data.path={corpus_folder}", f"paths.runs={tmp_path}"]
    result = command(
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "xlm_train.commands.train",
        *words,
        status=1,
    )
    assert "the launcher started 2 processes, but trainer.devices=1 x trainer.nodes=1 = 1" in result.stderr


def test_a_fork_in_float16_keeps_its_loss_scale(smoke: Callable[..., Path]) -> None:
    first = smoke("first", "trainer.max_steps=3")
    weights = first / "checkpoints/step-00000003.pt"
    fork = smoke(
        "fork", f"init_from={weights}", "trainer.max_steps=2", "trainer.precision=16-mixed", "debug.cpu_fp16=true"
    )
    assert last(fork)["progress"]["loss_scale"]["scale"] == 65536.0


def test_a_damaged_checkpoint_does_not_push_out_whole_ones(smoke: Callable[..., Path]) -> None:
    extra = ["callbacks.checkpointing.every_n_steps=5", "callbacks.checkpointing.keep_last=1"]
    extra += ["callbacks.validation.every_n_steps=1000"]
    run = smoke("few", "trainer.max_steps=10", *extra)
    good = (run / "checkpoints/step-00000010.pt").read_bytes()
    (run / "checkpoints/step-00000040.pt").write_bytes(good[:-100])
    smoke("few", "trainer.max_steps=20", *extra)
    assert (run / "checkpoints/step-00000020.pt").is_file()
    assert (run / "checkpoints/step-00000040.pt.damaged").is_file()


def test_without_a_whole_checkpoint_the_run_does_not_silently_start_anew(smoke: Callable[..., Path]) -> None:
    run = smoke("broken", "trainer.max_steps=5")
    metrics = (run / "metrics.jsonl").read_bytes()
    for path in checkpoint_file.in_folder(run / "checkpoints"):
        path.write_bytes(b"rubbish")
    with pytest.raises(UserError, match="is whole"):
        smoke("broken", "trainer.max_steps=9")
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_old_checkpoints_go_and_the_best_stays(smoke: Callable[..., Path]) -> None:
    run = smoke(
        "few", "trainer.max_steps=30", "callbacks.checkpointing.every_n_steps=2", "callbacks.checkpointing.keep_last=2"
    )
    names = sorted(path.name for path in checkpoint_file.in_folder(run / "checkpoints"))
    best = os.readlink(run / "checkpoints/best.pt")
    assert set(names) == {"step-00000028.pt", "step-00000030.pt", best}


def test_patience_stops_the_run(smoke: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    """A rate of nothing: no validation after the first improves on it, the second failure stops with patience 1."""
    words = ["schedule=constant", "schedule.warmup_updates=0", "optimizer.lr=0.0", "callbacks.validation.patience=1"]
    run = smoke("patience", "trainer.max_steps=100", *words)
    assert last(run)["progress"]["step"] == 30
    shown = capfd.readouterr().err
    assert "stopped, as validation no longer improved (callbacks.validation.patience), after 30 steps;" in shown
    assert json.loads((run / "status.json").read_text())["status"] == "stopped"
    before = last(run)["sha256"]
    smoke("patience", "trainer.max_steps=100", *words)  # the same again: it stays stopped
    assert last(run)["sha256"] == before
    assert json.loads((run / "status.json").read_text())["status"] == "stopped"


def test_a_time_limit_is_named_and_the_first_step_is_told_at_once(
    smoke: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    smoke("limited", "trainer.max_steps=100", "trainer.max_hours=1e-9")
    shown = capfd.readouterr().err
    assert re.search(r"^step 1/100: loss \d\.\d+, the first of this start, in \d+\.\d s$", shown, re.MULTILINE)
    assert "time limit reached (trainer.max_hours) after 1 step; checkpoints in" in shown
    smoke("limited", "trainer.max_steps=3")
    shown = capfd.readouterr().err
    assert "step 2/3: loss" in shown  # of a resumed start too
    assert "\nfinished after 3 steps;" in shown


def test_a_diverging_run_stops_and_keeps_its_checkpoint(smoke: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diverged|not finite"):
        smoke(
            "diverged",
            "schedule=constant",
            "optimizer.lr=1e30",
            "trainer.max_steps=50",
            "callbacks.checkpointing.every_n_steps=1",
        )
    status = json.loads((tmp_path / "diverged/status.json").read_text())
    assert status["status"] == "failed"
    assert status["step"] == checkpoint_file.step_of(checkpoint_file.in_folder(tmp_path / "diverged/checkpoints")[0])
    for path in checkpoint_file.in_folder(tmp_path / "diverged/checkpoints"):
        assert all(torch.isfinite(value).all() for value in checkpoint_file.load(path)["model"].values())


def test_a_new_run_from_another_ones_weights(smoke: Callable[..., Path]) -> None:
    first = smoke("first", "trainer.max_steps=10")
    weights = first / "checkpoints/step-00000010.pt"
    fork = smoke(
        "fork",
        f"init_from={weights}",
        "trainer.max_steps=1",
        "schedule=constant",
        "schedule.warmup_updates=0",
        "optimizer.lr=0.0",
    )
    assert_same(last(fork)["model"], last(first)["model"])
    assert last(fork)["lineage"]["parents"] == [last(first)["sha256"]]
    assert last(fork)["progress"]["updates"] == 1
    goes_on = smoke("goes_on", f"init_from={weights}", "init_optimizer=true", "trainer.max_steps=1")
    assert last(goes_on)["progress"]["updates"] == 11
    with pytest.raises(UserError, match=r"set model\.dim=32"):
        smoke("other", f"init_from={weights}", "model.dim=64")


def test_a_run_from_another_ones_weights_takes_its_shape(
    smoke: Callable[..., Path], compose: Compose, corpus_folder: Path, tmp_path: Path
) -> None:
    first = smoke("first", "trainer.max_steps=1")
    words = [f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "run_name=larger", "data.bptt=32"]
    words += ["experiment=demo", f"init_from=${{paths.runs}}/{first.name}", "trainer.max_steps=1", "data.slots=2"]
    said = command("xlm_train.commands.train", *words).stderr
    assert f"model as in {first}: dim=32, n_layers=2, n_heads=2, ffn_dim=128, max_positions=64\n" in said
    assert last(tmp_path / "larger")["shape"]["dim"] == 32
    assert yaml.safe_load((tmp_path / "larger/config.yaml").read_text())["model"]["dim"] == 32  # so the same goes on
    shutil.rmtree(first)  # which the run needs no more
    (tmp_path / "larger/checkpoints/step-00000002.pt").write_bytes(b"damaged")  # is passed over, as it is in resuming
    for more, width, depth in (([], 32, 2), (["model.dim=64"], 64, 2), (["model=mini"], 128, 3)):
        config = OmegaConf.create(compose("train", *words, *more))
        take_shape(config, [*words, *more])
        assert (config.model.dim, config.model.n_layers) == (width, depth)


def test_verify_says_what_is_in_a_folder(smoke: Callable[..., Path]) -> None:
    run = smoke("verified", "trainer.max_steps=20")
    out = command("xlm_train.commands.train", f"verify={run / 'checkpoints'}").stdout
    assert "step 10, 10 updates, 2,560 tokens" in out
    path = run / "checkpoints/step-00000020.pt"
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    out = command("xlm_train.commands.train", f"verify={run}", status=1).stdout
    assert f"DAMAGED  {path}" in out
