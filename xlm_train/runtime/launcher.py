"""Several devices without a launcher around: start torchrun on the frozen, resolved config."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.runtime.errors import EXIT_USER_ERROR, ConfigError
from xlm_train.runtime.files import atomic_write
from xlm_train.runtime.processes import StopFlag, end_with_parent

if TYPE_CHECKING:
    from xlm_train.runtime.run_folder import RunFolder

LOOK_EVERY = 0.5  # seconds
STARTED = "XLM_TRAIN_STARTED"  # environment: when the command was given, for trainer.max_hours over restarts
LAST_LINES = 30  # of a failed process's log, shown


def is_worker(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or srun started this process as one of several (or asked for one by name)."""
    return "TORCHELASTIC_RUN_ID" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def launch(config: dict[str, Any], run: RunFolder, flag: StopFlag) -> int:
    """Run the workers of this node under torchrun, again after a crash, and wait for them. Returns the exit status.

    The config goes to the workers as a file, composed and resolved once, so all ranks of all restarts read the same.
    A crash (a process killed, a device lost) is followed by a restart from the last checkpoint, at most
    trainer.max_restarts times in a row without a new checkpoint; what a user must mend is not.
    """
    from omegaconf import OmegaConf

    settings = config["trainer"]
    if settings["nodes"] > 1:
        raise ConfigError(
            f"trainer.nodes={settings['nodes']}: several nodes need torchrun or srun around xlm-train on each"
        )
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"paths.runs: {run.path} cannot be made: {error.strerror}") from error
    frozen = run.path / "launch.yaml"
    with atomic_write(frozen) as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(config)).encode())
    command = [
        *(sys.executable, "-m", "xlm_train.runtime.launcher", "--standalone", "--nnodes=1"),
        f"--nproc-per-node={settings['devices']}",
        # the first process keeps the terminal; what the others say is in the run's folder
        f"--log-dir={run.path / 'logs'}",
        "--redirects=" + ",".join(f"{rank}:3" for rank in range(1, settings["devices"])),
        *("--module", "xlm_train.commands.worker", str(frozen)),
    ]
    environment = {**os.environ}
    if settings["threads"] is None:
        cores = len(os.sched_getaffinity(0))
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // settings["devices"])))
    environment[STARTED] = str(time.time())
    restarts, newest = 0, newest_name(run)
    while True:
        status = _run(command, environment, flag)
        if flag.is_set and status == 128 + signal.SIGTERM:  # before the workers could listen: they were just ended
            run.write_status("preempted", reason="preempted during start-up")
            return 0
        if newest_name(run) != newest:
            restarts, newest = 0, newest_name(run)
        if flag.is_set or status in (0, EXIT_USER_ERROR) or restarts == settings["max_restarts"]:
            return status
        restarts += 1
        print(
            f"xlm-train: all processes start again from the last checkpoint ({restarts} of trainer.max_restarts="
            f"{settings['max_restarts']} in a row)",
            file=sys.stderr,
            flush=True,
        )


def newest_name(run: RunFolder) -> str | None:
    """Name of the newest checkpoint file, unread."""
    return max((path.name for path in run.checkpoints.glob("step-*.pt")), default=None)


def _run(command: list[str], environment: dict[str, str], flag: StopFlag) -> int:
    """torchrun once. Signals are passed to the workers themselves: its agent would die of SIGUSR1.

    A second SIGINT ends all at once.
    """
    # A session of its own: a SIGINT from the terminal reaches only us, and we decide who hears of it.
    agent = subprocess.Popen(command, env=environment, start_new_session=True)
    while True:
        try:
            code = agent.wait(LOOK_EVERY)
            return 128 - code if code < 0 else code
        except subprocess.TimeoutExpired:
            if flag.is_set:  # again and again: workers that are still starting have not heard it
                for worker in _children(agent.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker, signal.SIGTERM)
        except KeyboardInterrupt:
            os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()
            raise


def _show_log(local_rank: int) -> None:
    """The last lines of a failed process that does not write to the terminal, out of torchrun's --log-dir."""
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
    """torchrun, which ends with the status of the first worker that failed instead of a traceback of its own."""
    import logging

    end_with_parent()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import main

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGUSR1, lambda number, frame: None)  # for the workers: schedulers signal every process
    try:
        main(sys.argv[1:])
    except RendezvousError as error:
        print(f"xlm-train: the nodes did not meet: {error}", file=sys.stderr, flush=True)
        return 1
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        _show_log(failure.local_rank)
        if failure.exitcode < 0:
            print(f"xlm-train: process {rank} was ended by signal {-failure.exitcode}", file=sys.stderr, flush=True)
            return 128 - failure.exitcode
        return failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(agent())
