"""Run folders to report on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def make_run(tmp_path: Path, compose: Callable[..., dict[str, Any]]) -> Callable[..., Path]:
    """Write a run folder as training leaves it: make_run(name, metrics, *overrides of its config, events=[...])."""

    def made(name: str, metrics: list[dict[str, Any]], *overrides: str, **parts: Any) -> Path:
        folder = tmp_path / "runs" / name
        (folder / "checkpoints").mkdir(parents=True)
        config = compose("train", "experiment=smoke", "data.path=/nowhere", *overrides)
        config |= {"run_name": parts.get("run_name", name), "corpus_lineage": "c0ffee"}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        if "events" in parts:
            (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in parts["events"]))
        status = {"status": "finished", "step": 20, "updates": 18, "skipped": [3, 4]}
        (folder / "status.json").write_text(json.dumps(parts.get("status", status)))
        environment = {
            "devices": ["Some GPU"] * 2,
            "python": "3.11.7",
            "packages": {"torch": "2.13.0"},
            "command": ["x"],
        }
        (folder / "environment.json").write_text(json.dumps(environment))
        return folder

    return made
