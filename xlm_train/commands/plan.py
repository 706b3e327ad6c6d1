"""`xlm-plan`: check everything, plan, show, write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.config.command import command, typed_overrides
from xlm_train.runtime.console import show
from xlm_train.runtime.errors import ConfigError, OutOfMemory, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def read(config: DictConfig) -> dict[str, Any]:
    """Check the config and resolve it.

    Raises:
        ConfigError: With everything that is wrong with it.
    """
    from xlm_train.config.given_shape import take_shape
    from xlm_train.config.train import resolved_config
    from xlm_train.plan.settings import problems_of_plan

    take_shape(config, typed_overrides())
    if problems := problems_of_plan(config):
        raise ConfigError(problems)
    return resolved_config(config)


@command(
    "plan",
    "Memory, time, network, disk, cost and energy of a run, before anything is paid for.",
    [
        "xlm-plan experiment=clm_ende_1024 cluster=v100_64",
        "xlm-plan experiment=clm_ende_1024 cluster=a100_8 data.path=CORPUS plan.epochs=3 plan.price_per_gpu_hour=1.80",
        "xlm-plan experiment=demo data.path=CORPUS out=plans/demo   (measures this machine for some seconds)",
    ],
    read=read,
)
def main(resolved: dict[str, Any]) -> int:
    """Plan, print and write. Returns the exit status.

    Raises:
        OutOfMemory: The run does not fit; says what would.
    """
    from xlm_train.data.corpus import Corpus
    from xlm_train.plan.estimate import make_plan
    from xlm_train.plan.page import as_markdown, as_text

    path = resolved["data"]["path"]
    plan = make_plan(resolved, None if path is None else Corpus(path))
    show(as_text(plan))
    if resolved["out"] is not None:
        _write(Path(resolved["out"]), plan, as_markdown(plan))
    if not plan["memory"]["fits"]:
        raise OutOfMemory(f"this run {plan['notes'][0]}")
    return 0


def _write(folder: Path, plan: dict[str, Any], page: str) -> None:
    from xlm_train.runtime.files import atomic_write, write_json

    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "plan.json", plan)
        with atomic_write(folder / "plan.md") as file:
            file.write(page.encode())
    except (OSError, UserError) as error:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, UserError):
            raise
        raise UserError(f"out={folder}: cannot be made: {error.strerror}") from error


if __name__ == "__main__":
    main()
