"""One process of several, started with its config composed and resolved: `python -m xlm_train.commands.worker config.yaml`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

from xlm_train.runtime.device import limit_openmp_spin
from xlm_train.runtime.errors import EXIT_FAILED, UserError
from xlm_train.runtime.processes import StopFlag, end_with_parent, processes, rank
from xlm_train.runtime.streams import settle_streams

if TYPE_CHECKING:
    from xlm_train.config.train import TrainConfig


def work(config: TrainConfig, flag: StopFlag) -> int:
    """Train as one of several processes, and print plainly what went wrong. Returns the exit status."""
    from xlm_train.runtime.control_group import is_lost_peer
    from xlm_train.train import train

    where = f"[process {rank()}] " if processes() > 1 else ""
    try:
        return train(config, flag)
    except UserError as error:
        print(f"xlm-train: error: {where}{error}", file=sys.stderr, flush=True)
        return error.status
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        why = "another process of the run is missing, has ended or does not answer"  # a restart may help
        print(f"xlm-train: error: {where}{why}: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED


def main() -> int:
    """Read the config's file, and train. Returns the exit status."""
    end_with_parent()
    settle_streams()
    flag = StopFlag()
    flag.install()  # before the slow imports: from here on no signal is lost
    limit_openmp_spin()  # before torch is imported

    from omegaconf import OmegaConf

    from xlm_train.config.train import from_resolved

    return work(from_resolved(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(sys.argv[1])))), flag)


if __name__ == "__main__":
    sys.exit(main())
