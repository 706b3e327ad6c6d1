"""torchrun's elastic mode: a machine that is lost, one that comes, one that leaves in good order; the run goes on in its order."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, REPOSITORY, command, free_port
from tests.end_to_end.test_worlds import BOUND
from tests.end_to_end.worlds import largest_difference, reported
from tests.launch.conftest import LAUNCH

WORDS = [
    "data.slots=8",
    "trainer.max_steps=120",
    "callbacks.metrics.every_n_steps=1",
    "callbacks.checkpointing.every_n_steps=10",
]
WAIT = 40  # seconds; after half of it the others go on without a machine

Machine = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def machine(words: list[str], environment: dict[str, str], tmp_path: Path) -> Iterator[Machine]:
    """machine(): the same line on one machine more, each a process on this one."""
    sizes = {"NODES": "1:2", "DEVICES": "1", "HOST": "localhost", "WAIT": str(WAIT), "GLOO_SOCKET_IFNAME": "lo"}
    port = {"PORT": str(free_port())}
    line = [str(LAUNCH / "several_nodes.sh"), *words, *WORDS, f"paths.runs={tmp_path}", "run_name=elastic"]
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with open(tmp_path / f"log.{len(started)}", "wb") as log:
            started.append(
                subprocess.Popen(line, env={**environment, **sizes, **port}, cwd=REPOSITORY, stdout=log, stderr=log)
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()  # torchrun and its worker end with it
        process.wait()


def wait_until(condition: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, [path.read_text() for path in sorted(folder.glob("log.*"))]
        time.sleep(0.01)


def worlds(run: Path) -> list[int]:
    """Number of processes of each start."""
    file = run / "events.jsonl"
    events = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [event["processes"] for event in events if event["event"] == "start"]


def child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def is_asked_to_leave(pid: int) -> bool:
    """Whether SIGTERM waits for a process that is stopped."""
    (pending,) = re.findall(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
def test_machines_go_and_come(machine: Machine, words: list[str], tmp_path: Path) -> None:
    command("xlm_train.commands.train", *words, *WORDS, f"paths.runs={tmp_path}", "run_name=undisturbed")
    run = tmp_path / "elastic"

    def at_step(step: int) -> bool:
        return run.is_dir() and any(found >= step for found, *_ in reported(run, "train/loss"))

    host, other = machine(), machine()
    wait_until(lambda: worlds(run) == [2] and at_step(25), tmp_path)
    other.kill()
    wait_until(lambda: worlds(run) == [2, 1], tmp_path)

    worker = child(child(host.pid))
    os.kill(worker, signal.SIGSTOP)  # it is too fast for the machine that comes
    back = machine()
    wait_until(lambda: is_asked_to_leave(worker), tmp_path)
    os.kill(worker, signal.SIGCONT)
    wait_until(lambda: worlds(run) == [2, 1, 2], tmp_path)

    back.send_signal(signal.SIGTERM)
    assert back.wait(PATIENCE) == 75
    assert host.wait(PATIENCE) == 0
    assert worlds(run) == [2, 1, 2, 1]
    difference = largest_difference(tmp_path / "undisturbed", run)  # every step is reported once
    print(f"losses differ by {difference:.1e} at most")
    assert difference < BOUND
