"""Every shipped experiment composes to what its comments say, and runs (made small)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.conftest import REPOSITORY, train_here
from xlm_train.config.train import problems_of
from xlm_train.model.transformer import XLM, ModelShape, count_parameters

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "configs/experiment").glob("*.yaml"))
SMALL = [
    "model.dim=16", "model.n_layers=1", "model.n_heads=2", "model.ffn_dim=32", "data.slots=2", "data.slot_streams=2",
    "trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.nodes=1", "trainer.precision=32-true",
]  # fmt: skip


def test_experiments_are_there() -> None:
    assert {"smoke", "demo", "clm_ende_1024", "clm_ende_1024_warmup"} <= set(EXPERIMENTS)
    assert {"clm_ende_1024_32streams", "clm_ende_1024_h100"} <= set(EXPERIMENTS)
    assert {"mlm_ende_1024", "mlm_tlm_ende_1024"} <= set(EXPERIMENTS)
    assert {"umt_ende_1024", "mt_ende_1024", "umt_demo"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_runs(
    name: str, compose: Callable[..., dict[str, Any]], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    corpus = request.getfixturevalue("paired_corpus" if "tlm" in name or "mt" in name else "corpus_folder")
    config = compose("train", f"experiment={name}", f"data.path={corpus}", f"paths.runs={tmp_path}", *SMALL)
    assert train_here(config) == 0
    assert (tmp_path / config["run_name"] / "checkpoints/step-00000002.pt").is_file()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_settings_fit_each_other_as_shipped(
    name: str, compose: Callable[..., dict[str, Any]], corpus_folder: Path
) -> None:
    """Nothing is made smaller here; only what needs the machines that an experiment was written for."""
    here = ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.nodes=1", "trainer.precision=32-true"]
    config = compose("train", f"experiment={name}", f"data.path={corpus_folder}", *here)
    assert problems_of(OmegaConf.create(config)) == []


@pytest.mark.parametrize("logger", ["local", "tensorboard"])
@pytest.mark.parametrize("optimizer", ["adamw", "original_adam"])
def test_groups_run(
    logger: str, optimizer: str, compose: Callable[..., dict[str, Any]], corpus_folder: Path, tmp_path: Path
) -> None:
    words = [f"data.path={corpus_folder}", f"paths.runs={tmp_path}", f"logger={logger}", f"optimizer={optimizer}"]
    assert train_here(compose("train", "experiment=smoke", "trainer.max_steps=2", "run_name=x", *words)) == 0
    assert bool(list(tmp_path.rglob("events.out.tfevents*"))) == (logger == "tensorboard")


@pytest.mark.parametrize(
    ("name", "world", "streams", "streams_per_device", "precision"),
    [
        ("clm_ende_1024", 64, 64, 64, "16-mixed"),
        ("clm_ende_1024_warmup", 64, 64, 64, "16-mixed"),
        ("clm_ende_1024_32streams", 64, 32, 32, "16-mixed"),
        ("clm_ende_1024_h100", 8, 64, 512, "bf16-mixed"),
        ("mlm_ende_1024", 64, 32, 32, "16-mixed"),
        ("mlm_tlm_ende_1024", 64, 32, 32, "16-mixed"),
    ],
)
def test_the_run(
    name: str, world: int, streams: int, streams_per_device: int, precision: str,
    compose: Callable[..., dict[str, Any]],
) -> None:  # fmt: skip
    """streams: of each of the original's 64 processes."""
    config = compose("train", f"experiment={name}", "data.path=x")
    data, trainer = config["data"], config["trainer"]
    assert trainer["devices"] * trainer["nodes"] == world
    assert data["slots"] * data["slot_streams"] * data["bptt"] == 64 * streams * 256
    assert data["slots"] % world == 0
    assert data["slots"] // world * data["slot_streams"] == streams_per_device
    assert data["bptt"] == 256
    assert data["lang_alpha"] == 0.0
    assert trainer["precision"] == precision
    assert trainer["clip_norm"] == 5.0
    # the original looks after every iteration, an update for each language and each pair, whether its processes have read
    # 200,000 streams each
    updates = 3 if name.startswith("mlm_tlm") else 2
    evaluate = updates * math.ceil(200_000 / (updates * streams))
    assert evaluate == {(64, 2): 3126, (32, 2): 6250, (32, 3): 6252}[streams, updates]
    assert config["callbacks"]["validation"]["every_n_steps"] == evaluate
    assert trainer["max_steps"] == 100 * evaluate
    assert config["callbacks"]["validation"]["patience"] == 10


@pytest.mark.parametrize(
    ("name", "betas", "rates"),
    [
        ("clm_ende_1024", [0.9, 0.999], [1e-4, 1e-4, 1e-4, 1e-4]),  # adam,lr=0.0001
        ("mlm_ende_1024", [0.9, 0.999], [1e-4, 1e-4, 1e-4, 1e-4]),
        ("mlm_tlm_ende_1024", [0.9, 0.999], [1e-4, 1e-4, 1e-4, 1e-4]),
        ("clm_ende_1024_warmup", [0.9, 0.98], [1e-7, 5.005e-5, 1e-4, 5e-5]),  # adam_inverse_sqrt,...,lr=0.0001
    ],
)
def test_the_published_optimizers(
    name: str, betas: list[float], rates: list[float], compose: Callable[..., dict[str, Any]]
) -> None:
    for words in ([], ["optimizer=original_adam"]):
        config = compose("train", f"experiment={name}", "data.path=x", *words)
        optimizer = config["optimizer"]
        assert (optimizer["lr"], optimizer["betas"], optimizer["eps"]) == (1e-4, betas, 1e-8)
        assert optimizer["weight_decay"] == 0
        schedule = instantiate(config["schedule"])
        assert [schedule(update) for update in (0, 2000, 4000, 16000)] == pytest.approx(rates)


@pytest.mark.parametrize("name", ["mlm_ende_1024", "mlm_tlm_ende_1024"])
def test_the_printed_masks(name: str, compose: Callable[..., dict[str, Any]]) -> None:
    """The command gives none of the options, so these are the defaults of the original's code."""
    objective = compose("train", f"experiment={name}", "data.path=x")["objective"]
    parts = list(objective.get("parts", {"mlm": objective}).values())
    assert [part["_target_"].rpartition(".")[2] for part in parts] == ["MaskedLM", "TranslationLM"][: len(parts)]
    for part in parts:
        assert (part["mask_share"], part["sample_alpha"], part["replacements"]) == (0.15, 0, [0.8, 0.1, 0.1])
    assert objective.get("shares", {"mlm": 2, "tlm": 1}) == {"mlm": 2, "tlm": 1}  # draws of an iteration


def test_the_model_has_the_published_size(compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("train", "experiment=clm_ende_1024", "data.path=x")
    arguments = {key: value for key, value in config["model"].items() if key not in ("recompute", "ops", "share")}
    assert count_parameters(XLM(ModelShape(n_words=64699, n_langs=2, **arguments))) == 142_422_203
