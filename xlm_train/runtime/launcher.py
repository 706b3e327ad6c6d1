"""Several processes on one node, where no launcher has started this one: torchrun around a worker module."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.runtime.errors import EXIT_OUT_OF_MEMORY, EXIT_PREEMPTED, EXIT_USER_ERROR, ConfigError
from xlm_train.runtime.files import atomic_write
from xlm_train.runtime.memory import kills
from xlm_train.runtime.processes import StopFlag, end_with_parent, processes, rank

if TYPE_CHECKING:
    from xlm_train.runtime.run_folder import RunFolder

LOOK_EVERY = 0.5  # seconds
STARTED = "XLM_TRAIN_STARTED"  # environment: when the command was given, for trainer.max_hours over restarts
OUTCOME = (
    "XLM_TRAIN_OUTCOME"  # environment: the file of this machine in which workers say how the run stands, for `agent`
)
FINAL = (0, EXIT_PREEMPTED, EXIT_USER_ERROR, EXIT_OUT_OF_MEMORY)  # statuses after which xlm-train starts nothing again
LAST_LINES = 30  # of a failed process's log, shown


def refuse_left_over_variables() -> None:
    """Refuse a rank that nobody gave, as one that an earlier launcher left in a shell.

    Raises:
        ConfigError: names it.
    """
    if not is_worker() and (rank(), processes()) != (0, 1):
        raise ConfigError(
            f"RANK={rank()} WORLD_SIZE={processes()} in the environment without what torchrun or srun set besides: unset"
            " them, or start by launch/several_nodes.sh"
        )


def is_worker(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun (with any number of processes) or srun (with several) started this process.

    Args:
        environment: the process's environment variables.
    """
    return "TORCHELASTIC_RUN_ID" in environment or environment.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def launch(
    worker: str,
    config: Mapping[str, Any],
    run: RunFolder,
    flag: StopFlag,
    *,
    devices: int,
    nodes: int,
    threads: int | None,
    max_restarts: int,
) -> int:
    """Run the workers of this node under torchrun, again after a crash, and wait for them.

    A crash (a process killed, a device lost) is followed by a restart from the last checkpoint; a mistake that the user
    must fix is not, nor a process for which there was no memory.

    Args:
        worker: module to run, with the config's file as its argument.
        config: resolved once and written to RUN/launch.yaml, so that all ranks of all restarts read the same.
        run: the run's folder.
        flag: set by a signal that asks the run to leave; passed on to the workers.
        devices: processes to start.
        nodes: machines of the run; more than one needs a launcher on each.
        threads: of each process; None: the cores are divided among the processes.
        max_restarts: restarts in a row without a new checkpoint, at most.

    Returns:
        The exit status.

    Raises:
        ConfigError: there are several nodes, or the folder cannot be made.
    """
    from omegaconf import OmegaConf

    if nodes > 1:
        raise ConfigError(f"trainer.nodes={nodes}: several nodes need torchrun or srun around xlm-train on each")
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"paths.runs: {run.path} cannot be made: {error.strerror}") from error
    frozen = run.path / "launch.yaml"
    with atomic_write(frozen) as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode())
    command = [
        *(sys.executable, "-m", "xlm_train.runtime.launcher", "--standalone", "--nnodes=1"),
        f"--nproc-per-node={devices}",
        # the first process keeps the terminal; the output of the others is in the run's folder
        f"--log-dir={run.path / 'logs'}",
        "--redirects=" + ",".join(f"{rank}:3" for rank in range(1, devices)),
        *("--module", worker, str(frozen)),
    ]
    environment = {**os.environ}
    if threads is None:
        cores = len(os.sched_getaffinity(0))
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // devices)))
    environment[STARTED] = str(time.time())
    restarts, newest = 0, newest_name(run)
    while True:
        status = _run(command, environment, flag)
        if flag.is_set and status == 128 + signal.SIGTERM:  # before the workers handled signals
            run.write_status("preempted", reason="preempted during start-up")
            return EXIT_PREEMPTED
        if newest_name(run) != newest:
            restarts, newest = 0, newest_name(run)
        if flag.is_set or status in FINAL or restarts == max_restarts:
            return status
        restarts += 1
        print(
            f"xlm-train: all processes start again from the last checkpoint ({restarts} of trainer.max_restarts="
            f"{max_restarts} in a row)",
            file=sys.stderr,
            flush=True,
        )


def newest_name(run: RunFolder) -> str | None:
    """Return the name of the newest checkpoint file, unread; None where there is none."""
    return max((path.name for path in run.checkpoints.glob("step-*.pt")), default=None)


def _run(command: list[str], environment: dict[str, str], flag: StopFlag) -> int:
    """Run torchrun once. Signals go to the workers directly, as its agent would die of SIGUSR1.

    A second SIGINT kills all at once.
    """
    # A session of its own: a SIGINT from the terminal reaches only this process, which passes it on.
    agent = subprocess.Popen(command, env=environment, start_new_session=True)
    while True:
        try:
            code = agent.wait(LOOK_EVERY)
            return 128 - code if code < 0 else code
        except subprocess.TimeoutExpired:
            if flag.is_set:  # repeatedly: workers that are still starting do not handle it yet
                for worker in _children(agent.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker, signal.SIGTERM)
        except KeyboardInterrupt:
            os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()
            raise


def _show_log(local_rank: int) -> None:
    """Show the last log lines of a failed process that does not write to the terminal, from torchrun's --log-dir."""
    folder = next((word.partition("=")[2] for word in sys.argv if word.startswith("--log-dir=")), None)
    logs = [] if folder is None else Path(folder).glob(f"*/attempt_*/{local_rank}/stderr.log")
    if newest := max(logs, key=lambda path: path.stat().st_mtime, default=None):
        lines = newest.read_text(errors="replace").splitlines()[-LAST_LINES:]
        print("\n".join(lines), file=sys.stderr, flush=True)


def _children(pid: int) -> list[int]:
    """Direct children of a process (Linux)."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def agent() -> int:
    """Run torchrun, but end with the status of the first worker that failed instead of a traceback.

    Returns:
        The exit status: the worker's, or 128 + the signal that ended it; EXIT_PREEMPTED where the workers left before the
        end with everything saved (they themselves exit 0, else torchrun would kill those that are not as far), and
        EXIT_OUT_OF_MEMORY where the system ended one for lack of memory, 1 where the nodes do not find each other.
    """
    with tempfile.TemporaryDirectory() as folder:
        outcome = Path(folder) / "outcome"
        os.environ[OUTCOME] = str(outcome)
        status = _run_torchrun()
        if status == 0 and outcome.is_file() and outcome.read_text() == "preempted":
            return EXIT_PREEMPTED
        return status


def tell_agent(status: str) -> None:
    """Let the torchrun agent of this machine, where it is ours, know how the run stands: finished, preempted, stopped."""
    if OUTCOME in os.environ:
        Path(os.environ[OUTCOME]).write_text(status)


def _run_torchrun() -> int:
    import logging

    end_with_parent()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import main

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    kills_before = kills()
    signal.signal(signal.SIGUSR1, lambda number, frame: None)  # for the workers: schedulers signal every process
    try:
        main(sys.argv[1:])
    except RendezvousError as error:
        print(f"xlm-train: the nodes did not find each other: {error}", file=sys.stderr, flush=True)
        return 1
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        _show_log(failure.local_rank)
        if failure.exitcode == -signal.SIGKILL and kills() > kills_before:
            print(
                f"xlm-train: error: the system killed process {rank}, as memory was exhausted: a smaller"
                " data.slot_streams (with more data.slots), model.recompute=true or fewer processes"
                " (trainer.devices) need less",
                file=sys.stderr,
                flush=True,
            )
            return EXIT_OUT_OF_MEMORY
        if failure.exitcode < 0:
            print(f"xlm-train: process {rank} was ended by signal {-failure.exitcode}", file=sys.stderr, flush=True)
            return 128 - failure.exitcode
        return failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(agent())
