"""trainer.sharding=fsdp on two processes over gloo: the undivided run, and what of exact resuming holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import command
from tests.end_to_end.worlds import assert_same_run, largest_difference, last

BOUND = 1e-5  # as in test_worlds.py


@pytest.fixture
def words(corpus_folder: Path, tmp_path: Path) -> list[str]:
    common = ["experiment=smoke", f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "trainer.devices=2"]
    return [*common, "data.slots=4", "callbacks.metrics.every_n_steps=1", "callbacks.validation.every_n_steps=5"]


@pytest.mark.parametrize(
    "options",
    [[], pytest.param(["objective=mlm", "optimizer=original_adam", "model.recompute=true"], marks=pytest.mark.slow)],
    ids=["clm", "mlm"],
)
def test_a_divided_model_is_the_undivided_one(options: list[str], words: list[str], tmp_path: Path) -> None:
    """Losses and validations within the bound; a resumed run is the undisturbed one bit for bit; files are whole."""
    words += options
    fsdp = [*words, "trainer.sharding=fsdp"]
    command("xlm_train.commands.train", *words, "run_name=whole")
    command("xlm_train.commands.train", *fsdp, "run_name=divided")
    assert largest_difference(tmp_path / "whole", tmp_path / "divided") < BOUND
    command("xlm_train.commands.train", *fsdp, "run_name=resumed", "trainer.max_steps=10")
    command("xlm_train.commands.train", *fsdp, "run_name=resumed")
    assert_same_run(tmp_path / "divided", tmp_path / "resumed")
    whole, divided = last(tmp_path / "whole"), last(tmp_path / "divided")
    assert {name: tensor.shape for name, tensor in whole["model"].items()} == {
        name: tensor.shape for name, tensor in divided["model"].items()
    }
    # one process alone, undivided, can go on with it
    alone = [*words, "run_name=divided", "trainer.devices=1", "trainer.max_steps=22"]
    command("xlm_train.commands.train", *alone)
    assert json.loads((tmp_path / "divided/status.json").read_text())["status"] == "finished"
