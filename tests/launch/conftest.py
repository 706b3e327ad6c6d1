"""What the tests of the launch scripts share: the words of a small run, and its undisturbed result."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, command, process_environment

LAUNCH = REPOSITORY / "launch"
STEPS = 240


def ci_must_not_skip(message: str) -> None:
    """Skip a test for what this machine lacks; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def words(corpus_folder: Path) -> list[str]:
    """Overrides of a run of a few seconds."""
    return [
        "experiment=smoke",
        f"data.path={corpus_folder}",
        "trainer.accelerator=cpu",
        f"trainer.max_steps={STEPS}",
        "callbacks.metrics.every_n_steps=4",
        "callbacks.validation.every_n_steps=50",
        "callbacks.checkpointing.every_n_steps=60",
    ]


@pytest.fixture(scope="session")
def undisturbed(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """undisturbed(processes): the folder of the same run, left alone."""

    @functools.cache
    def run(devices: int) -> Path:
        runs = tmp_path_factory.mktemp("undisturbed")
        command("xlm_train.commands.train", *words, f"paths.runs={runs}", "run_name=x", f"trainer.devices={devices}")
        return runs / "x"

    return run


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment of a person at a shell, with this Python's commands on PATH and as the environment that scripts activate."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/activate").write_text(f"PATH='{path}'\n")
    return process_environment(PATH=path, VENV=str(tmp_path / "venv"), RUNS=str(tmp_path / "runs"), RUN_NAME="x")
