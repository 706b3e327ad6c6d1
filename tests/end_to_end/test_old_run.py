"""A run and its corpus made by an earlier version (checkpoint format 2): trained on, scored, verified, reported on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import command, train_here
from tests.end_to_end.worlds import last, reported
from xlm_train.runtime import checkpoint_file

RELATIVE = 1e-6  # between CPUs of different vector widths; on one CPU all bits are the same


@pytest.fixture
def old(shared: Path, tmp_path: Path) -> Path:
    """The run's folder, in a folder of runs with its corpus beside it."""
    shutil.copytree(shared / "goldens/old_run/corpus", tmp_path / "corpus")
    return shutil.copytree(shared / "goldens/old_run/run", tmp_path / "runs/old")


def assert_near(a: Any, b: Any, where: str = "") -> None:
    """Equal, but for rounding in floats and in tensors, there relative to the largest value.

    The gradient of the keys' bias is zero but for rounding, which Adam makes as large as any other: left out.
    """
    if isinstance(b, dict):
        assert a.keys() == b.keys(), where
        for key in b:
            assert_near(a[key], b[key], f"{where}.{key}")
    elif isinstance(b, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_near(x, y, f"{where}[{number}]")
    elif isinstance(b, torch.Tensor):
        assert a.shape == b.shape, where
        if where.endswith("qkv.bias"):
            (a, _, c), (b, _, d) = a.chunk(3), b.chunk(3)
            a, b = torch.cat([a, c]), torch.cat([b, d])
        assert (a - b).abs().max() <= RELATIVE * b.abs().max(), where
    elif isinstance(b, float):
        assert a == pytest.approx(b, rel=RELATIVE), where
    else:
        assert a == b, where


def named(content: dict[str, Any]) -> dict[str, Any]:
    """What training has changed; Adam's moments under the names of their weights."""
    names = list(content["model"])
    moments = {names[number]: state for number, state in content["optimizer"]["state"].items()}
    # the rate in it was the last update's and is the next one's now: the schedule sets it at every step
    groups = [{key: v for key, v in group.items() if key != "lr"} for group in content["optimizer"]["param_groups"]]
    progress = {"monitor": "val/ppl", **content["progress"]}  # what version 2 always compared by
    return {part: content[part] for part in ("model", "metrics")} | {
        "progress": progress, "moments": moments, "groups": groups,
    }  # fmt: skip


def test_an_old_run_becomes_the_undisturbed_one(
    old: Path, shared: Path, compose: Callable[..., dict[str, Any]]
) -> None:
    begun = old / "checkpoints/step-00000010.pt"
    assert torch.load(begun, weights_only=True)["version"] == 2
    where = (f"data.path={old.parent.parent / 'corpus'}", f"paths.runs={old.parent}", "run_name=old")
    length = ("trainer.max_steps=20", "callbacks.checkpointing.keep_last=20")
    assert train_here(compose("train", "experiment=smoke", *length, *where)) == 0

    events = [json.loads(line) for line in (old / "events.jsonl").read_text().splitlines()]
    events = [event for event in events if event["event"] != "busy_cores"]  # other programs are no matter here
    assert [(event["event"], event["step"]) for event in events] == [
        ("start", 0), ("finished", 10), ("start", 10), ("finished", 20),
    ]  # fmt: skip
    assert begun.read_bytes() == (shared / "goldens/old_run/run/checkpoints/step-00000010.pt").read_bytes()
    content = last(old)
    assert content["global_step"] == content["progress"]["step"] == 20
    assert_near(named(content), named(checkpoint_file.load(shared / "goldens/old_run/whole.pt")))
    assert [step for step, _, _ in reported(old, "train/ppl")] == [5, 10, 15, 20]
    assert [(step, value) for step, name, value in reported(old, "val/ppl") if name == "val/ppl"] == [
        (10, json.loads((shared / "goldens/old_run/run/status.json").read_text())["best_metric"]),
        (20, content["metrics"]["val/ppl"]),
    ]


def test_commands_read_an_old_run(old: Path) -> None:
    checkpoint, corpus = old / "checkpoints/step-00000010.pt", old.parent.parent / "corpus"
    out = old.parent / "scores.json"
    command(
        "xlm_train.commands.evaluate",
        f"checkpoint={checkpoint}",
        f"data.path={corpus}",
        "split=valid",
        f"out={out}",
    )
    scores = json.loads(out.read_text())["languages"]
    metrics = checkpoint_file.load(checkpoint)["metrics"]
    for language in ("de", "en"):
        assert scores[language]["perplexity"] == pytest.approx(metrics[f"val/ppl_{language}"], rel=RELATIVE)

    found = command("xlm_train.commands.train", f"verify={old}").stdout
    assert found.startswith(f"ok       {checkpoint}: step 10, 10 updates, 2,560 tokens")
    assert command("xlm_train.commands.train", f"verify={corpus}").stdout.startswith(f"ok       {corpus}")

    command("xlm_train.commands.report", "run_name=old", f"paths.runs={old.parent}")
    for page in ("report.html", "report.md"):
        assert "359.7" in (old / page).read_text(), page  # the validation of step 10
