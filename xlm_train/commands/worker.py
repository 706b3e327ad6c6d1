"""One process of several, started with its config composed and resolved: `python -m xlm_train.commands.worker config.yaml`."""

from __future__ import annotations

import sys
from typing import Any, cast

from xlm_train.runtime.processes import StopFlag, end_with_parent


def main() -> int:
    """Train as one process. Returns the exit status."""
    end_with_parent()
    flag = StopFlag()
    flag.install()  # before the slow imports: from here on no signal is lost

    from omegaconf import OmegaConf

    from xlm_train.commands.train import work
    from xlm_train.config.train import from_resolved
    from xlm_train.runtime.device import limit_openmp_spin

    limit_openmp_spin()
    return work(from_resolved(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(sys.argv[1])))), flag)


if __name__ == "__main__":
    sys.exit(main())
