"""`xlm-train`: check everything, then train here, in this worker, or in as many processes as there are devices."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from xlm_train.commands import sweep
from xlm_train.config.command import Multirun, command, is_multirun_job
from xlm_train.runtime.console import log
from xlm_train.runtime.device import limit_openmp_spin
from xlm_train.runtime.errors import EXIT_FAILED, EXIT_PREEMPTED, EXIT_USER_ERROR, UserError
from xlm_train.runtime.launcher import is_worker, launch
from xlm_train.runtime.processes import StopFlag, end_with_parent, processes, rank

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from xlm_train.config.train import TrainConfig

FLAG = StopFlag()


def read(config: DictConfig) -> TrainConfig | str:
    """Check the config; a job of a sweep gets a run of its own. A folder to verify needs no more than its name."""
    limit_openmp_spin()  # before torch is imported

    from omegaconf import OmegaConf

    from xlm_train.config.train import read_train_config

    if config.verify is not None:
        return str(config.verify)
    if (suffix := sweep.job_suffix()) and not OmegaConf.is_missing(config, "run_name"):
        config.run_name = f"{config.run_name}{suffix}"
    return read_train_config(config)


def start_sweep(words: list[str], start: Callable[[list[str]], None]) -> int:
    """Carry out `xlm-train -m`. Returns the exit status."""
    return sweep.sweep_of("train", words).carry_out(words, start, FLAG)


def run_job(carry_out: Callable[[DictConfig], int | None], config: DictConfig) -> float:
    """Carry out one job of a sweep. Returns what a search minimises."""
    return sweep.run_job(carry_out, config, FLAG)


@command(
    "train",
    "Train the causal cross-lingual language model; the same run_name again resumes the run.",
    [
        "xlm-train experiment=demo data.path=CORPUS run_name=first",
        "xlm-train experiment=clm_ende_1024 data.path=CORPUS run_name=paper trainer.devices=8 trainer.nodes=8   (under srun or torchrun)",
        "xlm-train -m experiment=demo data.path=CORPUS run_name=sweep optimizer.lr=1e-4,2e-4",
    ],
    read=read,
    before=FLAG.install,  # from here on no signal is lost
    multirun=Multirun(start_sweep, run_job),
)
def main(config: TrainConfig | str) -> int:
    """Train here, in this worker, or in as many processes as there are devices. Returns the exit status."""
    if isinstance(config, str):
        from xlm_train.commands.verify import verify

        return verify(config)
    if is_worker():
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent()
        return work(config, FLAG)

    from xlm_train.data.corpus import Corpus
    from xlm_train.train import open_run, train

    # everything a user can fix is found here, once, before any worker starts
    run = open_run(config, Corpus(config.data.path))
    if is_multirun_job() and sweep.is_done(run):
        log(f"{run.path}: {run.read_status()} already")
        return 0
    if config.trainer.world_size > 1:
        status = launch(config.resolved, run, FLAG)
    else:
        status = train(config, FLAG)
    return EXIT_PREEMPTED if status == 0 and run.read_status() == "preempted" else status


def work(config: TrainConfig, flag: StopFlag) -> int:
    """One of several processes: train, and say plainly what went wrong. Returns the exit status."""
    from xlm_train.runtime.control_group import is_lost_peer
    from xlm_train.train import train

    where = f"[process {rank()}] " if processes() > 1 else ""
    try:
        return train(config, flag)
    except UserError as error:
        print(f"xlm-train: error: {where}{error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        why = "another process of the run is missing, has ended or does not answer"  # a restart may help
        print(f"xlm-train: error: {where}{why}: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED


if __name__ == "__main__":
    main()
