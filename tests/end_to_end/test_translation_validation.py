"""Translation models are validated in training: BLEU of each direction, samples, the monitor, on one process and on two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.conftest import command, train_here
from tests.end_to_end.worlds import Death, last, reported, start, train_on
from xlm_train.config.train import read_train_config
from xlm_train.report import write_report
from xlm_train.report.reading import read_run
from xlm_train.runtime.errors import ConfigError

Config = Callable[..., dict[str, Any]]
MONITOR = "callbacks.validation.monitor=val/bleu_de-en"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def config(compose: Config, paired_corpus: Path, runs: Path) -> Config:
    """config(run name, *overrides) of experiment=smoke objective=umt: 8 steps of 2 slots, two validations."""

    def composed(name: str, *overrides: str) -> dict[str, Any]:
        where = (f"data.path={paired_corpus}", f"paths.runs={runs}", f"run_name={name}", "objective=umt")
        words = ("data.slots=2", "data.tokens_per_slot=300", "data.max_len=60", "trainer.max_steps=8")
        words += ("model.max_positions=96", "callbacks.checkpointing.every_n_steps=2")
        words += ("callbacks.metrics.every_n_steps=1", "callbacks.validation.every_n_steps=4")
        return compose("train", "experiment=smoke", *words, *where, *overrides)

    return composed


def samples_of(run: Path) -> list[tuple[int, list[dict[str, str]]]]:
    lines = (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["step"], line["samples"]) for line in map(json.loads, lines)]


@pytest.fixture(scope="module")
def run(config: Config) -> Path:
    return train_on(1, config("umt", MONITOR))


def test_each_direction_is_translated_and_scored(run: Path) -> None:
    found = last(run)["metrics"]
    print(found)
    print(samples_of(run))
