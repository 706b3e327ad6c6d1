"""model=xlm_2048: its size, its plan, and a step at one of its 24 layers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import command
from xlm_train.model.transformer import XLM, ModelShape, count_parameters
from xlm_train.plan.estimate import make_plan


def test_its_size_and_plan(compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("plan", "experiment=clm_ende_1024_h100", "model=xlm_2048", "cluster=h100_8")
    plan = make_plan(config, None)
    names = ("dim", "n_layers", "n_heads", "ffn_dim", "max_positions", "vocab_multiple")
    with torch.device("meta"):
        model = XLM(ModelShape(n_words=64_699, **{name: config["model"][name] for name in names}))
    assert (model.shape.n_layers, model.shape.dim, model.shape.n_heads) == (24, 2048, 16)
    assert count_parameters(model) == 1_342_223_547
    assert plan["model"]["parameters"] == pytest.approx(count_parameters(model), rel=1e-4)
    # weights, gradients and two moments in float32 alone are 21.5 GB: no A100 of 40 GB has room for a slot of 64 streams beside them
    assert plan["memory"]["fits"]
    forty = make_plan({**config, "cluster": {**config["cluster"], "memory_gb": 40}}, None)
    assert not forty["memory"]["fits"]


@pytest.mark.slow
def test_a_step_at_one_layer(corpus_folder: Path, tmp_path: Path) -> None:
    words = ["experiment=smoke", "model=xlm_2048", "model.n_layers=1", "data.slot_streams=1", "trainer.max_steps=2"]
    words += ["callbacks.metrics.every_n_steps=1", "callbacks.validation=null", "callbacks.checkpointing=null"]
    command("xlm_train.commands.train", *words, f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "run_name=x")
    found = [json.loads(line) for line in (tmp_path / "x/metrics.jsonl").read_text().splitlines()]
    assert [line["progress/updates"] for line in found] == [1, 2]
    assert all(math.isfinite(line["train/loss"]) and 0 < line["optim/grad_norm"] < math.inf for line in found)
