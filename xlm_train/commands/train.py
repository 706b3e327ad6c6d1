"""`xlm-train`: check everything, then train here, in this worker, or in as many processes as there are devices."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from xlm_train.config.command import command, in_sweep, sweep_suffix
from xlm_train.runtime.console import log
from xlm_train.runtime.device import limit_openmp_spin
from xlm_train.runtime.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, UserError
from xlm_train.runtime.launcher import is_worker, launch
from xlm_train.runtime.processes import StopFlag, end_with_parent, processes, rank

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from xlm_train.config.train import TrainConfig


EXIT_LOST = 1  # another process of the run is gone: a restart may help


FLAG = StopFlag()


@command(
    "train",
    "Train the causal cross-lingual language model; the same run_name again resumes the run.",
    [
        "xlm-train experiment=demo data.path=CORPUS run_name=first",
        "xlm-train experiment=clm_ende_1024 data.path=CORPUS run_name=paper trainer.devices=8 trainer.nodes=8   (under srun or torchrun)",
        "xlm-train -m experiment=demo data.path=CORPUS run_name=sweep optimizer.lr=1e-4,2e-4",
    ],
    flag=FLAG,  # from here on no signal is lost
)
def main(config: DictConfig) -> int:
    """Check everything, then train here, in this worker, or in as many processes as there are devices."""
    limit_openmp_spin()  # before torch is loaded
    if config.verify is not None:
        from xlm_train.commands.verify import verify

        return verify(config.verify)
    from xlm_train.config.train import read_train_config

    config.run_name += sweep_suffix()
    checked = read_train_config(config)
    if is_worker():
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent()
        return work(checked, FLAG)

    from xlm_train.data.corpus import Corpus
    from xlm_train.train import open_run, train

    # everything a user can fix is found here, once, before any worker starts
    run = open_run(checked, Corpus(checked.data.path))
    if in_sweep():
        from xlm_train.commands.sweep import is_done

        if is_done(run):
            log(f"{run.path}: {run.read_status()} already")
            return 0
    if checked.trainer.world_size > 1:
        status = launch(checked.resolved, run, FLAG)
    else:
        status = train(checked, FLAG)
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
        why = "another process of the run is missing, has ended or does not answer"
        print(f"xlm-train: error: {where}{why}: {error}", file=sys.stderr, flush=True)
        return EXIT_LOST


if __name__ == "__main__":
    main()
    sys.exit(0)
