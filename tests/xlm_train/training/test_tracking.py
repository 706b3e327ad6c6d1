"""What a run leaves behind about itself: metrics without gaps, trackers over restarts, energy, advice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers.logger import Logger

from tests.conftest import train_here
from xlm_train.report.advice import advice
from xlm_train.runtime.energy import EnergyMeter
from xlm_train.training.loggers import JsonLines, progress_bar, read_metrics

Compose = Callable[..., dict[str, Any]]


class Broken(Logger):
    """A tracker whose service goes away."""

    def __init__(self, from_step: int) -> None:
        super().__init__()
        self.from_step = from_step

    @property
    def experiment(self) -> None:
        return None

    @property
    def name(self) -> str:
        return "broken"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Not asked for."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        if step >= self.from_step:
            raise ConnectionError("the service is gone")


class NeverStarts(Broken):
    def __init__(self) -> None:
        raise RuntimeError("no key")


@pytest.fixture
def run(compose: Compose, corpus_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def start(name: str, *words: str, **loggers: dict[str, Any]) -> Path:
        common = ["experiment=smoke", f"data.path={corpus_folder}", f"paths.runs={tmp_path}", f"run_name={name}"]
        config = compose("train", *common, *words)
        config["logger"] |= loggers
        assert train_here(config) == 0
        return tmp_path / name

    return start


def test_metrics_are_what_users_expect(run: Callable[..., Path]) -> None:
    folder = run("names", "+cluster.watts=100", "+cluster.peak_tflops={32-true: 0.001}")
    lines = read_metrics(folder / "metrics.jsonl")
    reports = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in reports] == [5, 10, 15, 20]
    wanted = {
        "train/loss", "train/loss_de", "train/loss_en", "train/ppl", "optim/lr", "optim/grad_norm", "optim/skipped_steps",
        "progress/tokens", "progress/updates", "progress/seconds_left", "speed/tokens_per_second", "speed/data_wait",
        "speed/checkpoint_stall", "speed/mfu", "memory/peak_gb", "energy/kwh",
    }  # fmt: skip
    assert wanted <= reports[-1].keys()
    assert {"val/ppl", "val/ppl_de", "val/ppl_en", "val/loss_en", "val/acc"} <= lines[-1].keys()
    last = reports[-1]
    assert last["train/loss"] == pytest.approx((last["train/loss_de"] + last["train/loss_en"]) / 2)
    assert 0 < last["speed/data_wait"] < 1
    energy = json.loads((folder / "energy.json").read_text())
    assert energy["method"] == "estimated from 100 W a device and time"
    assert energy["co2_kg"] == pytest.approx(energy["energy_kwh"] * 0.481)


def test_no_share_of_another_devices_peak(run: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = run("elsewhere", "+cluster.peak_tflops={32-true: 0.001}", "cluster.accelerator=V100 SXM2 16 GB")
    assert (
        capfd.readouterr().err.count(
            "speed/mfu is left out: the cluster's peak is that of V100 SXM2 16 GB, and this is"
        )
        == 1
    )
    assert not any("speed/mfu" in line for line in read_metrics(folder / "metrics.jsonl"))


def test_a_tracker_that_fails_never_stops_training(run: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    here = f"{__name__}"
    folder = run(
        "broken", broken={"_target_": f"{here}.Broken", "from_step": 10}, never={"_target_": f"{here}.NeverStarts"}
    )
    said = capfd.readouterr().err
    assert "Broken failed and is left out from here on: the service is gone" in said
    assert said.count("Broken failed") == 1
    assert "logger.never cannot start and is left out" in said
    assert read_metrics(folder / "metrics.jsonl")[-1]["step"] == 20


def test_one_wandb_run_over_restarts(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Real wandb, offline: both starts write parts of the same run, with its config."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")
    folder = run("tracked", "logger=wandb", "trainer.max_steps=10")
    run("tracked", "logger=wandb", "trainer.max_steps=20")
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    identity = (folder / "tracking_id").read_text()
    assert {part.name.rpartition("-")[2] for part in parts} == {identity}
    assert any((part / f"run-{identity}.wandb").stat().st_size > 0 for part in parts)


def test_tensorboard_has_every_step_once_after_a_restart(run: Callable[..., Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["logger=tensorboard", "callbacks.checkpointing.every_n_steps=10", "callbacks.validation.every_n_steps=50"]
    folder = run("board", *words, "trainer.max_steps=17")
    (folder / "checkpoints/step-00000017.pt").unlink()  # as if it had died after step 10's checkpoint
    run("board", *words, "trainer.max_steps=25")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [5, 10, 15, 20, 25]


def test_energy_adds_up_over_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("xlm_train.runtime.energy.time.monotonic", lambda: clock[0])
    for _ in range(2):
        energy = EnergyMeter(tmp_path / "energy.json", "estimate", watts=300.0, devices=8, nodes=1, region="sweden")
        clock[0] += 1800
        energy.write()
    found = json.loads((tmp_path / "energy.json").read_text())
    assert found["energy_kwh"] == pytest.approx(2.4)  # 8 x 300 W for an hour
    assert found["co2_kg"] == pytest.approx(2.4 * 0.041)


def test_energy_measured_by_codecarbon(tmp_path: Path) -> None:
    energy = EnergyMeter(tmp_path / "energy.json", "codecarbon", watts=None, devices=1, nodes=1, region="germany")
    energy.write()
    found = json.loads((tmp_path / "energy.json").read_text())
    assert found["method"] == "measured by codecarbon"
    assert found["energy_kwh"] >= 0


def test_advice(compose: Compose) -> None:
    paper = compose("train", "experiment=clm_ende_1024", "data.path=x")
    assert advice(paper, 1_048_576) == []
    paper["data"]["slots"] = 4
    few = advice(paper, 16_384)
    assert len(few) == 1
    assert "16,384 tokens, the recipe's 1,048,576" in few[0]
    assert "8.0 times" in few[0]
    assert "data.slots=256" in few[0]
    assert "data.slots=512" in advice(paper, 8192)[0]  # 4 batches of pairs with 2,048 tokens each
    paper["optimizer"]["lr"] = 1e-2
    assert "likely to diverge" in advice(paper, 1_048_576)[0]
    assert advice(compose("train", "experiment=demo", "data.path=x"), 1024) == []


def test_bar() -> None:
    assert progress_bar(0.0, 4) == "[....]"
    assert progress_bar(0.5, 4) == "[##..]"
    assert progress_bar(1.0, 4) == "[####]"


def test_a_damaged_line_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"st\xffep": 2}\n{"step": 3}\n{"step": 4, "a": "\xe2\x80\xa8"}\n{"step": 5}\n{"ste')
    assert [line["step"] for line in read_metrics(file)] == [1, 3, 4, 5]
    lines = JsonLines(file)
    lines.rewind(4)
    assert f"{file}: 1 line of it cannot be read: reports are lost" in capsys.readouterr().err
    lines.append(5, {"again": 1})
    assert [line["step"] for line in read_metrics(file)] == [1, 3, 4, 5]
