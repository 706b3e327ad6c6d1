"""A run beside a busy program on its only core: it says so, once, and names the setting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import process_environment

LOOP = "while True: pass"


@pytest.mark.slow
def test_a_run_says_once_that_others_have_its_cores(corpus_folder: Path, tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    words = [
        *("experiment=smoke", f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "run_name=busy"),
        *(
            "trainer.threads=2",
            "trainer.max_steps=100000",
            "trainer.max_hours=0.005",
            "callbacks.metrics.every_n_steps=20",
        ),
        "callbacks.validation.every_n_steps=100000",
    ]
    with subprocess.Popen(["taskset", "--cpu-list", str(core), sys.executable, "-c", LOOP]) as loop:
        try:
            result = subprocess.run(
                ["taskset", "--cpu-list", str(core), sys.executable, "-m", "xlm_train.commands.train", *words],
                capture_output=True, text=True, env=process_environment(),
            )  # fmt: skip
        finally:
            loop.kill()
    assert result.returncode == 75, result.stderr
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: other programs use")]
    assert len(warnings) == 1
    assert "of 1 core: for " in warnings[0]
    assert "; trainer.threads=1 keeps out of their way" in warnings[0]
    events = [json.loads(line) for line in (tmp_path / "busy/events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("busy_cores") == 1
