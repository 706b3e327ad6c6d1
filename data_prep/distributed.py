"""The same jobs on more machines than one, as tasks of datatrove: processes here (local) or a Slurm cluster.

All machines see one work folder. The run that waits for the tasks finds their work files there. A task reads the jobs
of its own share from a file and no others, so what a stage costs does not depend on the number of its tasks. The bytes
are those of a run on one machine.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import pickle
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.work import Workers
from xlm_train.config.schema import near
from xlm_train.runtime.console import counted, log
from xlm_train.runtime.errors import EXIT_USER_ERROR, UserError
from xlm_train.runtime.files import make_folder, read_json, write_json

EXECUTORS = ("processes", "local", "slurm")
POLL_SECONDS = 10
SET_HERE = ("pipeline", "tasks", "job_name", "logging_dir", "depends", "job_id_retriever")  # not for users to set


def check_executor(executor: str, slurm: Mapping[str, Any]) -> None:
    """Check that an executor can run.

    Args:
        executor: One of EXECUTORS.
        slurm: Arguments of datatrove's Slurm executor.

    Raises:
        UserError: datatrove or Slurm is not installed, or Slurm lacks what it must be told, or is told what it does not
            know.
    """
    if executor == "processes":
        return
    try:
        from datatrove.executor.slurm import SlurmPipelineExecutor
    except ModuleNotFoundError:
        raise UserError(
            f"executor={executor}: needs the package datatrove (pip install 'xlm_train[datatrove]')"
        ) from None
    if executor == "local":
        return
    problems = [
        f"slurm.{name}: must be given with executor=slurm" for name in ("partition", "time") if name not in slurm
    ]
    known = [f"slurm.{name}" for name in inspect.signature(SlurmPipelineExecutor).parameters if name not in SET_HERE]
    given = [f"slurm.{name}" for name in slurm]
    problems += [f"{key}: is no argument of datatrove's{near(key, known)}" for key in given if key not in known]
    if lacking := [tool for tool in ("sbatch", "squeue") if shutil.which(tool) is None]:
        problems.append(
            f"executor=slurm: there is no {' and no '.join(lacking)} here; start it where jobs are submitted, "
            "or take executor=processes"
        )
    if problems:
        raise UserError(problems)


@dataclass(frozen=True)
class Share:
    """What datatrove runs: the jobs of one task, in a file of the stage's folder.

    Args:
        folder: The stage's.
    """

    folder: Path

    @staticmethod
    def divide(folder: Path, function: Callable[[Any], None], jobs: Sequence[Any], tasks: int) -> Share:
        """Write the file of every task: every `tasks`-th job, so that their sizes are alike.

        Args:
            folder: The stage's, which is made.
            function: Does a job.
            jobs: Of the stage.
            tasks: At most as many as there are jobs.
        """
        make_folder(folder / "jobs")
        make_folder(folder / "failed")
        for rank in range(tasks):
            (folder / "jobs" / f"{rank:05d}").write_bytes(pickle.dumps((function, jobs[rank::tasks])))
        return Share(folder)

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        """Do what is missing of this task's jobs; datatrove calls it with no `data`.

        Raises:
            SystemExit: One cannot be done, and the user can fix it: `failed` tells why.
        """
        at_work = self.folder / f"process-{os.getpid()}.{rank}"  # says at what it was, should it be killed
        at_work.touch()
        function, jobs = pickle.loads((self.folder / "jobs" / f"{rank:05d}").read_bytes())
        try:
            for job in jobs:
                if not job.out.exists():
                    function(job)
        except UserError as error:
            write_json(self.folder / "failed" / f"{rank:05d}.json", error.problems)
            raise SystemExit(EXIT_USER_ERROR) from error
        finally:
            at_work.unlink()

    def check(self) -> None:
        """Raise what a task has failed of.

        Raises:
            UserError: With the problems of the first task, by number, that has any.
        """
        for failed in sorted((self.folder / "failed").glob("*.json")):
            raise UserError(read_json(failed))


@functools.cache
def _local_executor() -> type[Any]:
    """datatrove's, in a process that runs many tasks."""
    import sysconfig

    from datatrove.executor.local import LocalPipelineExecutor

    # the log of each task asks for all of these paths three times: 30 ms, more than many a task has to do
    sysconfig.get_path = functools.cache(sysconfig.get_path)  # type: ignore[assignment]
    return LocalPipelineExecutor


@dataclass(frozen=True)
class LocalTask:
    """One task of the local executor.

    Args:
        share: What it runs.
        rank: Its number.
        tasks: How many there are.
    """

    share: Share
    rank: int
    tasks: int


def run_local(task: LocalTask) -> None:
    """Run a task in this process, as datatrove's local executor does in one of its own.

    Its own pool waits without end for the task of a process that was killed, so that is not used.
    """
    executor = _local_executor()([task.share], task.tasks, 1, str(task.share.folder))
    with contextlib.suppress(SystemExit):  # the share has told why
        executor._run_for_rank(task.rank, local_rank=1)  # 1: its messages go to its log alone


class Tasks(Workers):
    """Workers whose stages run as tasks of datatrove.

    Args:
        executor: `local` or `slurm`.
        tasks: Shares that each stage is cut into.
        workers: Processes of the local executor.
        slurm: Arguments of datatrove's Slurm executor.
        logs: Folder for datatrove's logs.
    """

    def __init__(self, executor: str, tasks: int, workers: int, slurm: Mapping[str, Any], logs: Path) -> None:
        super().__init__(workers if executor == "local" else 1)
        self.executor = executor
        self.tasks = tasks
        self.slurm = slurm
        self.logs = logs
        self.folder = logs  # of the stage at work

    def ahead(self, function: Callable[[Any], None], jobs: Sequence[Any]) -> bool:
        """Do the jobs of a stage as datatrove's tasks, and wait for them.

        Raises:
            UserError: A task was killed, or failed of what the user can fix.
        """
        jobs = list({job.out: job for job in jobs}.values())  # the same text twice is one job
        tasks = min(self.tasks, len(jobs))
        if not tasks:
            return True
        # datatrove would skip tasks it finds done under a name
        self.folder = self.logs / f"{function.__name__}-{secrets.token_hex(4)}"
        share = Share.divide(self.folder, function, jobs, tasks)
        log(f"{counted(tasks, 'task')} of {function.__name__} on datatrove's {self.executor} executor: {self.folder}")
        if self.executor == "local":
            for _ in self.map(run_local, (LocalTask(share, rank, tasks) for rank in range(tasks))):
                share.check()
        else:
            from datatrove.executor.slurm import SlurmPipelineExecutor

            launched = SlurmPipelineExecutor(
                [share],
                tasks,
                job_name=f"xlm-prep-{function.__name__}",
                logging_dir=str(self.folder),
                **self.slurm,
            )
            launched.run()
            _wait_for(launched, share)
        return True

    def killed(self, processes: Mapping[int, int]) -> str:
        """The tasks of processes that were killed, and their logs."""
        tasks = {
            process: int(file.suffix[1:]) for process in processes for file in self.folder.glob(f"process-{process}.*")
        }
        if not tasks:
            return super().killed(processes)
        stage = self.folder.name.rpartition("-")[0]
        return "; ".join(
            f"task {rank} of {stage} was killed ({signal.Signals(processes[process]).name}; log: "
            f"{self.folder / 'logs' / f'task_{rank:05d}.log'})"
            for process, rank in tasks.items()
        )


def _wait_for(launched: Any, share: Share) -> None:
    """Wait until all tasks of a launched Slurm job are done; UserError where the job has ended without."""
    while missing := len(launched.get_incomplete_ranks(skip_completed=True)):
        share.check()
        queue = subprocess.run(["squeue", "-h", "-j", str(launched.job_id)], capture_output=True, text=True)
        unreachable = (
            queue.returncode != 0 and "Invalid job id" not in queue.stderr
        )  # which a job that has ended becomes
        if not unreachable and not queue.stdout.strip() and launched.get_incomplete_ranks(skip_completed=True):
            raise UserError(
                f"{counted(missing, 'task')} ended without finishing; see {share.folder}, "
                "and run the same command again to go on"
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
