"""The SLURM scripts under a scheduler that starts real processes: queued again once, sizes stated once, failures left alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, REPOSITORY
from tests.end_to_end.test_training import assert_same_run
from tests.launch.conftest import LAUNCH, STEPS
from xlm_train.training.loggers import read_metrics

Undisturbed = Callable[[int], Path]


class Slurm:
    """tests/launch/slurm.py on PATH."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder / "slurm"
        (self.folder / "bin").mkdir(parents=True)
        for name in ("sbatch", "srun", "scontrol"):
            program = self.folder / "bin" / name
            program.write_text(f"#!{sys.executable}\n" + Path(__file__).with_name("slurm.py").read_text())
            program.chmod(0o755)
        path = f"{self.folder / 'bin'}:{environment['PATH']}"
        (folder / "venv/bin/activate").write_text(f"PATH='{path}'\n")
        self.environment = {**environment, "PATH": path, "FAKE_SLURM": str(self.folder)}

    def sbatch(self, *words: str | Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sbatch", *map(str, words)], env=self.environment, cwd=REPOSITORY)

    def do(self, what: str) -> None:
        (self.folder / what).touch()

    def calls(self, name: str) -> list[list[str]]:
        lines = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        return [line[1:] for line in lines if line[0] == name]

    def output(self) -> str:
        (file,) = self.folder.glob("xlm*.out")
        return file.read_text()


@pytest.fixture
def slurm(tmp_path: Path, environment: dict[str, str]) -> Slurm:
    return Slurm(tmp_path, environment)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "the job ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def at_step(run: Path, step: int) -> Callable[[], bool]:
    return lambda: any(line["step"] >= step for line in read_metrics(run / "metrics.jsonl"))


def status_of(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text())["status"])


@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_its_time_is_up_and_it_is_queued_again_once(
    nodes: int, slurm: Slurm, words: list[str], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Nodes of one device: saved before the time is up, queued again, finished; to the last bit the undisturbed run."""
    run = tmp_path / "runs/x"
    job = slurm.sbatch(f"--nodes={nodes}", "--gpus-per-node=1", LAUNCH / "slurm.sbatch", *words)
    wait_until(at_step(run, 20), job)
    slurm.do("time-up")
    assert job.wait(PATIENCE) == 0, slurm.output()
    (started,) = {call[0] for call in slurm.calls("start")}
    assert slurm.calls("scontrol") == [["requeue", started]]
    assert len(slurm.calls("start")) == len(slurm.calls("srun")) == 2
    assert f"trainer.nodes={nodes}" in slurm.calls("srun")[0]
    assert "trainer.devices=1" in slurm.calls("srun")[0]
    log = slurm.output()
    assert (
        log.count("; the same command goes on from here") == 1
    )  # the second start did not overwrite the first one's log
    assert f"finished after {STEPS} steps" in log
    assert_same_run(undisturbed(nodes), run)


@pytest.mark.slow
def test_other_sizes_than_the_jobs_are_refused_and_a_failure_is_not_queued_again(
    slurm: Slurm, words: list[str], tmp_path: Path
) -> None:
    job = slurm.sbatch("--nodes=1", "--gpus-per-node=2", LAUNCH / "slurm.sbatch", *words, "trainer.devices=1")
    assert job.wait(PATIENCE) not in (0, 75)
    assert "the launcher started 2 processes, but trainer.devices=1 x trainer.nodes=1 = 1" in slurm.output()
    assert "Traceback" not in slurm.output()
    assert slurm.calls("scontrol") == []
    assert not (tmp_path / "runs/x/status.json").exists()


@pytest.mark.parametrize(("missing", "message"), [("RUN_NAME", "say RUN_NAME=..."), ("VENV", "No such file")])
def test_what_is_missing_is_said_before_anything_starts(slurm: Slurm, missing: str, message: str) -> None:
    slurm.environment[missing] = "" if missing == "RUN_NAME" else "/nowhere"
    job = slurm.sbatch(LAUNCH / "slurm.sbatch")
    assert job.wait(PATIENCE) not in (0, 75)
    assert message in slurm.output()
    assert slurm.calls("srun") == []


@pytest.mark.slow
def test_told_to_leave_before_training_has_begun(
    slurm: Slurm, words: list[str], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    job = slurm.sbatch("--nodes=1", "--gpus-per-node=2", LAUNCH / "slurm.sbatch", *words)
    wait_until((slurm.folder / "tasks").is_file, job)
    slurm.do("time-up")
    assert job.wait(PATIENCE) == 0, slurm.output()
    assert len(slurm.calls("scontrol")) == 1
    assert_same_run(undisturbed(2), tmp_path / "runs/x")


@pytest.mark.slow
def test_scancel_saves_and_is_not_queued_again(
    slurm: Slurm, words: list[str], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    run = tmp_path / "runs/x"
    job = slurm.sbatch("--nodes=1", "--gpus-per-node=2", LAUNCH / "slurm.sbatch", *words)
    wait_until(at_step(run, 20), job)
    slurm.do("scancel")
    assert job.wait(PATIENCE) == 75
    assert slurm.calls("scontrol") == []
    assert status_of(run) == "preempted"
    assert slurm.sbatch("--nodes=1", "--gpus-per-node=2", LAUNCH / "slurm.sbatch", *words).wait(PATIENCE) == 0
    assert_same_run(undisturbed(2), run)


@pytest.mark.slow
def test_each_array_task_runs_a_line_and_one_that_failed_is_run_again_alone(
    slurm: Slurm, words: list[str], tmp_path: Path
) -> None:
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("optimizer.lr=1e-3 trainer.max_steps=3\noptimizer.lr=wrong trainer.max_steps=3\n")
    script = LAUNCH / "slurm_array.sbatch"
    assert slurm.sbatch("--array=1-2", script, jobs, *words).wait(PATIENCE) == 2
    first = tmp_path / "runs/x,optimizer.lr=1e-3,trainer.max_steps=3"
    assert status_of(first) == "finished"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [first.name]
    jobs.write_text("optimizer.lr=1e-3 trainer.max_steps=3\noptimizer.lr=2e-3 trainer.max_steps=3\n")
    assert slurm.sbatch("--array=2", script, jobs, *words).wait(PATIENCE) == 0
    assert status_of(tmp_path / "runs/x,optimizer.lr=2e-3,trainer.max_steps=3") == "finished"
    assert slurm.sbatch("--array=3", script, jobs, *words).wait(PATIENCE) == 2
    assert slurm.calls("scontrol") == []
