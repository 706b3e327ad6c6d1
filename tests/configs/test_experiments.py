"""Every shipped experiment composes to what its comments say, and runs (made small)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, train_here
from xlm_train.model.transformer import XLM, ModelShape, count_parameters

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "configs/experiment").glob("*.yaml"))
SMALL = [
    "model.dim=16", "model.n_layers=1", "model.n_heads=2", "model.ffn_dim=32", "data.slots=2", "data.slot_streams=2",
    "trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.nodes=1", "trainer.precision=32-true",
]  # fmt: skip


def test_experiments_are_there() -> None:
    assert {"smoke", "demo", "clm_ende_1024", "clm_ende_1024_32streams", "clm_ende_1024_h100"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_runs(name: str, compose: Callable[..., dict[str, Any]], corpus_folder: Path, tmp_path: Path) -> None:
    config = compose("train", f"experiment={name}", f"data.path={corpus_folder}", f"paths.runs={tmp_path}", *SMALL)
    assert train_here(config) == 0
    assert (tmp_path / config["run_name"] / "checkpoints/step-00000002.pt").is_file()


@pytest.mark.parametrize("logger", ["local", "tensorboard"])
@pytest.mark.parametrize("optimizer", ["adamw", "original_adam"])
def test_groups_run(
    logger: str, optimizer: str, compose: Callable[..., dict[str, Any]], corpus_folder: Path, tmp_path: Path
) -> None:
    words = [f"data.path={corpus_folder}", f"paths.runs={tmp_path}", f"logger={logger}", f"optimizer={optimizer}"]
    assert train_here(compose("train", "experiment=smoke", "trainer.max_steps=2", "run_name=x", *words)) == 0
    assert bool(list(tmp_path.rglob("events.out.tfevents*"))) == (logger == "tensorboard")


@pytest.mark.parametrize(
    ("name", "world", "tokens_per_step", "streams_per_device", "precision", "evaluate"),
    [
        ("clm_ende_1024", 64, 64 * 64 * 256, 64, "16-mixed", 3126),
        ("clm_ende_1024_32streams", 64, 64 * 32 * 256, 32, "16-mixed", 6251),
        ("clm_ende_1024_h100", 8, 64 * 64 * 256, 512, "bf16-mixed", 3126),
    ],
)
def test_the_run(
    name: str, world: int, tokens_per_step: int, streams_per_device: int, precision: str, evaluate: int,
    compose: Callable[..., dict[str, Any]],
) -> None:  # fmt: skip
    config = compose("train", f"experiment={name}", "data.path=x")
    data, trainer = config["data"], config["trainer"]
    assert trainer["devices"] * trainer["nodes"] == world
    assert data["slots"] * data["slot_streams"] * data["bptt"] == tokens_per_step
    assert data["slots"] % world == 0
    assert data["slots"] // world * data["slot_streams"] == streams_per_device
    assert data["bptt"] == 256
    assert data["lang_alpha"] == 0.0
    assert trainer["precision"] == precision
    assert trainer["clip_norm"] == 5.0
    assert config["callbacks"]["validation"]["every_n_steps"] == evaluate
    assert config["callbacks"]["validation"]["patience"] == 10
    optimizer, schedule = config["optimizer"], config["schedule"]
    assert (optimizer["lr"], optimizer["betas"], optimizer["eps"], optimizer["weight_decay"]) == (
        1e-4,
        [0.9, 0.98],
        1e-8,
        0,
    )
    assert (schedule["peak"], schedule["warmup_updates"]) == (1e-4, 4000)


def test_the_model_has_the_published_size(compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("train", "experiment=clm_ende_1024", "data.path=x")
    arguments = {key: value for key, value in config["model"].items() if key not in ("recompute", "ops")}
    assert count_parameters(XLM(ModelShape(n_words=64699, n_langs=2, **arguments))) == 142_422_203
