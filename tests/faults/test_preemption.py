"""Signals at any time, to any of a run's processes: it leaves within bounded time and comes back as if nothing had been."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, free_port
from tests.faults.harness import Started, compare, last_report, wait_for_step, wait_until
from xlm_train.runtime import checkpoint_file

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PREEMPTED = 75
LEAVES_WITHIN = (
    180.0  # seconds from the signal until the last process has gone, start-up included; seconds on an idle machine
)
STEPS = 400


def words_of(corpus: Path, run: Path, processes: int) -> list[str]:
    """Every step is reported: a stop in between adds no rounding to the reported losses."""
    return [
        *("experiment=smoke", "data.slots=3", f"trainer.max_steps={STEPS}", "trainer.threads=1"),
        *("callbacks.metrics.every_n_steps=1", "callbacks.validation.every_n_steps=25"),
        *("callbacks.interruption.every_n_steps=3", "callbacks.checkpointing.every_n_steps=100"),
        *("callbacks.checkpointing.keep_last=1", f"trainer.devices={processes}"),
        *(f"data.path={corpus}", f"paths.runs={run.parent}", f"run_name={run.name}"),
    ]


def step_of(run: Path) -> int:
    return int(last_report(run).get("step", 0))


def status_of(run: Path) -> str | None:
    file = run / "status.json"
    return json.loads(file.read_text())["status"] if file.is_file() else None


def send(start: Started, number: signal.Signals, names: Sequence[str]) -> None:
    members = start.members()
    for name in names:
        with contextlib.suppress(ProcessLookupError, KeyError):  # it may just have left by itself
            os.kill(members[name], number)


def finish(words: Sequence[str]) -> None:
    with Started(words) as start:
        assert start.process.wait(PATIENCE) == 0, start.text()


@pytest.fixture(scope="module")
def undisturbed(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The run nobody disturbs, with one or two processes; trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def of(processes: int) -> Path:
        run = folder / f"of-{processes}"
        if not run.exists():
            finish(words_of(corpus_folder, run, processes))
        return run

    return of


def leave(start: Started, run: Path, before: int) -> None:
    """Check how a preempted run has left: in time, with status 75 and a checkpoint at the step it had reached."""
    start.wait_until_gone(LEAVES_WITHIN)
    assert start.process.returncode == PREEMPTED, start.text()
    assert status_of(run) == "preempted"
    saved = checkpoint_file.in_folder(run / "checkpoints")
    assert step_of(run) >= before
    if step_of(run):
        assert saved[0].name == checkpoint_file.name_of(step_of(run))  # not a step is lost


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_signals_at_random_moments(
    processes: int, corpus_folder: Path, tmp_path: Path, undisturbed: Callable[[int], Path]
) -> None:
    """One run, preempted six times: from its first moments on, with each signal, each time sent to other processes."""
    run = tmp_path / "preempted"
    words = words_of(corpus_folder, run, processes)
    draw = random.Random(processes)
    everyone = ["command", "rank 0", "rank 1"] if processes == 2 else ["command"]
    targets = [["command"], ["rank 0"], ["rank 1"], everyone, ["rank 0", "rank 1"], ["command"]]
    for turn, names in enumerate(targets if processes == 2 else [everyone] * 6):
        number = SIGNALS[turn % 3]
        with Started(words) as start:
            before = step_of(run)
            if turn in (0, 3):  # during start-up, from the moment on at which the command listens
                wait_until(functools.partial(listens, start.process.pid), start.process)
                time.sleep(draw.uniform(0.0, 3.0))
                send(start, number, [name for name in names if name in start.members()])
            else:
                wait_for_step(run, before + draw.randint(1, 20), start)
                send(start, number, names)
            leave(start, run, before)
    finish(words)
    compare(undisturbed(processes), run)


def listens(pid: int) -> bool:
    """Whether a process has taken over SIGTERM (Linux)."""
    try:
        caught = next(
            line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")
        )
    except (OSError, StopIteration):
        return False
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def start_as_slurm_does(words: Sequence[str]) -> list[Started]:
    """Two tasks of one step on one node, with the environment that srun gives them."""
    common = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [Started(words, **common, SLURM_PROCID=str(task), SLURM_LOCALID=str(task)) for task in range(2)]


@pytest.mark.slow
def test_under_slurm_all_tasks_leave_whichever_is_signalled(
    corpus_folder: Path, tmp_path: Path, undisturbed: Callable[[int], Path]
) -> None:
    """scancel signals all tasks, a node that goes down perhaps one. Workers exit 0; status.json says preempted."""
    run = tmp_path / "slurm"
    words = words_of(corpus_folder, run, 2)
    for number, signalled in ((signal.SIGUSR1, (0, 1)), (signal.SIGTERM, (1,)), (signal.SIGTERM, (0,))):
        before = step_of(run)
        with contextlib.ExitStack() as stack:
            tasks = [stack.enter_context(task) for task in start_as_slurm_does(words)]
            wait_for_step(run, before + 5, tasks[0])
            for rank in signalled:
                tasks[rank].process.send_signal(number)
            for task in tasks:
                task.wait_until_gone(LEAVES_WITHIN)
            assert [task.process.returncode for task in tasks] == [0, 0], tasks[0].text()
        assert status_of(run) == "preempted"
        assert checkpoint_file.in_folder(run / "checkpoints")[0].name == checkpoint_file.name_of(step_of(run))
    with contextlib.ExitStack() as stack:
        tasks = [stack.enter_context(task) for task in start_as_slurm_does(words)]
        assert [task.process.wait(PATIENCE) for task in tasks] == [0, 0], tasks[0].text()
    assert status_of(run) == "finished"
    compare(undisturbed(2), run)
