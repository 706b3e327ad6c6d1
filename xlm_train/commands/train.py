"""`xlm-train`: check everything, then train here, in this worker, or in as many processes as there are devices."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from xlm_train.commands import sweep, worker
from xlm_train.config.command import command, is_multirun_job, typed_overrides
from xlm_train.runtime.console import log
from xlm_train.runtime.cores import cores_of_others
from xlm_train.runtime.device import limit_openmp_spin
from xlm_train.runtime.errors import EXIT_PREEMPTED
from xlm_train.runtime.launcher import is_worker, launch, refuse_left_over_variables
from xlm_train.runtime.processes import StopFlag, end_with_parent, processes, rank

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from xlm_train.config.train import TrainConfig

FLAG = StopFlag()


def prepare() -> None:
    """Take the signals over, so that none is lost from here on, and tell OpenMP how to wait before torch is loaded."""
    FLAG.install()
    rank(), processes()  # what is wrong with them is told before Lightning reads them
    waits = not is_worker() and os.environ.get("OMP_NUM_THREADS") != "1"  # one thread waits for nobody
    limit_openmp_spin(cores_of_others() if waits else 0.0)


def read(config: DictConfig) -> TrainConfig | str:
    """Check the config; a job of a sweep gets a run of its own. A folder to verify needs no more than its name."""
    from omegaconf import OmegaConf

    from xlm_train.config.given_shape import take_shape
    from xlm_train.config.train import read_train_config

    if config.verify is not None:
        return str(config.verify)
    if (suffix := sweep.job_suffix()) and not OmegaConf.is_missing(config, "run_name"):
        config.run_name = f"{config.run_name}{suffix}"
    if (taken := take_shape(config, typed_overrides())) is not None:
        log(taken)
    return read_train_config(config)


@command(
    "train",
    "Train a cross-lingual language model; the same run_name again resumes the run.",
    [
        "xlm-train experiment=demo data.path=CORPUS run_name=first",
        "xlm-train experiment=clm_ende_1024 data.path=CORPUS run_name=paper trainer.devices=8 trainer.nodes=8   (under srun or torchrun)",
        "xlm-train -m experiment=demo data.path=CORPUS run_name=sweep optimizer.lr=1e-4,2e-4",
    ],
    read=read,
    before=prepare,
    multirun=sweep.multirun("train", FLAG),
)
def main(config: TrainConfig | str) -> int:
    """Train here, in this worker, or in as many processes as there are devices. Returns the exit status."""
    if isinstance(config, str):
        from xlm_train.commands.verify import verify

        return verify(config)
    if is_worker():
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent()
        return worker.work(config, FLAG)

    refuse_left_over_variables()

    from xlm_train.data.corpus import Corpus
    from xlm_train.train import open_run, train

    # everything a user can fix is found here, once, before any worker starts
    run = open_run(config, Corpus(config.data.path))
    if is_multirun_job() and sweep.is_done(run):
        log(f"{run.path}: {run.read_status()} already")
        return 0
    if config.trainer.world_size > 1:
        settings = config.trainer
        status = launch(
            worker.__name__,
            config.resolved,
            run,
            FLAG,
            devices=settings.devices,
            nodes=settings.nodes,
            threads=settings.threads,
            max_restarts=settings.max_restarts,
        )
    else:
        status = train(config, FLAG)
    return EXIT_PREEMPTED if status == 0 and run.read_status() == "preempted" else status


if __name__ == "__main__":
    main()
