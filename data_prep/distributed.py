"""The same jobs on more machines than one, by datatrove's executors: processes here (local) or a Slurm cluster.

All machines see one work folder. A stage is cut into shares by the names of the work files it makes, so a share is the
same for everyone and at any time; each task does what is missing of its share, and the run that waits for them finds
the work files there. The bytes are those of a run on one machine.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from data_prep.work import Job, Result, Workers
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import UserError

EXECUTORS = ("processes", "local", "slurm")
POLL_SECONDS = 10


def check_executor(executor: str, slurm: Mapping[str, Any]) -> None:
    """Check that an executor can run.

    Args:
        executor: One of EXECUTORS.
        slurm: Arguments of datatrove's Slurm executor.

    Raises:
        UserError: datatrove is not installed, or Slurm lacks what it must be told.
    """
    if executor == "processes":
        return
    try:
        import datatrove  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            f"executor={executor}: needs the package datatrove (pip install 'xlm_train[datatrove]')"
        ) from None
    missing = [name for name in ("partition", "time") if executor == "slurm" and name not in slurm]
    if missing:
        raise UserError([f"slurm.{name}: must be given with executor=slurm" for name in missing])


class Share:
    """One task's part of a stage: those of the jobs whose work file falls to its rank.

    Args:
        function: Does a job.
        make_jobs: Gives all jobs of the stage.
    """

    def __init__(self, function: Callable[[Any], None], make_jobs: Callable[[], Iterable[Any]]) -> None:
        self.function = function
        self.make_jobs = make_jobs

    def __repr__(self) -> str:
        return f"xlm-prep: {self.function.__name__}"

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        """Do what is missing of this task's part; datatrove calls it with no `data`."""
        for job in self.make_jobs():
            if int(job.out.stem[:12], 16) % world_size == rank and not job.out.exists():
                self.function(job)


class Tasks(Workers):
    """Workers whose stages run as tasks of a datatrove executor; what is left after that runs in this process.

    Args:
        executor: `local` or `slurm`.
        tasks: Shares that each stage is cut into.
        workers: Processes of the local executor.
        slurm: Arguments of datatrove's Slurm executor.
        logs: Folder for datatrove's logs.
    """

    def __init__(self, executor: str, tasks: int, workers: int, slurm: Mapping[str, Any], logs: Path) -> None:
        super().__init__(1)
        self.executor = executor
        self.tasks = tasks
        self.workers = workers
        self.slurm = slurm
        self.logs = logs

    def ahead(self, function: Callable[[Job], Result], make_jobs: Callable[[], Iterable[Job]]) -> None:
        """Do the jobs of a stage as datatrove's tasks, and wait for them."""
        name = f"{function.__name__}-{secrets.token_hex(4)}"  # datatrove would skip tasks it finds done under a name
        pipeline: list[Any] = [Share(function, make_jobs)]  # type: ignore[arg-type]
        log(f"{self.tasks} tasks of {function.__name__} on datatrove's {self.executor} executor: {self.logs / name}")
        if self.executor == "local":
            from datatrove.executor.local import LocalPipelineExecutor

            LocalPipelineExecutor(pipeline, self.tasks, self.workers, str(self.logs / name)).run()
        else:
            from datatrove.executor.slurm import SlurmPipelineExecutor

            launched = SlurmPipelineExecutor(
                pipeline,
                self.tasks,
                job_name=f"xlm-prep-{function.__name__}",
                logging_dir=str(self.logs / name),
                **self.slurm,
            )
            launched.run()
            _wait_for(launched, self.logs / name)


def _wait_for(launched: Any, logs: Path) -> None:
    """Wait until all tasks of a launched Slurm job are done; UserError where the job has ended without."""
    while missing := len(launched.get_incomplete_ranks(skip_completed=True)):
        queue = subprocess.run(["squeue", "-h", "-j", str(launched.job_id)], capture_output=True, text=True)
        if not queue.stdout.strip() and launched.get_incomplete_ranks(skip_completed=True):
            raise UserError(
                f"{missing} tasks ended without finishing; see {logs}, and run the same command again to go on"
            )
        time.sleep(POLL_SECONDS)


def workers_for(executor: str, tasks: int, workers: int | None, slurm: Mapping[str, Any], work: Path) -> Workers:
    """What runs the jobs: processes of this machine, or datatrove's tasks.

    Args:
        executor: One of EXECUTORS.
        tasks: Shares that datatrove cuts each stage into.
        workers: Processes; None: as many as there are cores that this process may use.
        slurm: Arguments of datatrove's Slurm executor.
        work: The work folder.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Workers(workers) if executor == "processes" else Tasks(executor, tasks, workers, slurm, work / "datatrove")
