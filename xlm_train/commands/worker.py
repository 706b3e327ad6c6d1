"""One process of several, started with its config composed and resolved: `python -m xlm_train.commands.worker config.yaml`."""

from __future__ import annotations

import sys

from xlm_train.runtime.processes import StopFlag, end_with_parent


def main() -> int:
    """Train as one of several processes. Returns the exit status."""
    end_with_parent()
    flag = StopFlag()
    flag.install()  # before the slow imports: from here on no signal is lost

    from omegaconf import OmegaConf

    from xlm_train.commands.train import work
    from xlm_train.runtime.device import limit_openmp_spin

    limit_openmp_spin()  # before torch is loaded
    from xlm_train.config.train import from_resolved

    config = OmegaConf.to_container(OmegaConf.load(sys.argv[1]))
    return work(from_resolved({str(key): value for key, value in config.items()}), flag)  # type: ignore[union-attr]


if __name__ == "__main__":
    sys.exit(main())
