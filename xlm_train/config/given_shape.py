"""The model's shape in a run that starts from a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.model.shape import FREE
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.run_store import local_checkpoint

if TYPE_CHECKING:
    from omegaconf import DictConfig


def take_shape(config: DictConfig, words: Sequence[str]) -> str | None:
    """Give a run the shape of the model that it starts from (`init_from`), but for what the command line sets of it.

    A run that goes on has its own, so that `init_from` may be gone by then. What cannot be read is left to those who
    open it and say why.

    Args:
        config: Composed; its section `model` is changed.
        words: Overrides of the command line: `model=...` sets the whole shape, `model.dim=...` the width.

    Returns:
        What was taken, to be logged; None where nothing was.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    keys = {word.lstrip("+~").partition("=")[0] for word in words}
    given: Any = OmegaConf.to_container(config, resolve=False)
    model = given.get("model")
    try:
        path, runs, run = (OmegaConf.select(config, key) for key in ("init_from", "paths.runs", "run_name"))
    except OmegaConfBaseException:  # of an interpolation: told with all other problems
        return None
    if not isinstance(path, str) or not isinstance(model, dict) or "model" in keys:
        return None
    taken = {
        name: value
        for name, value in _shape_in(Path(str(runs), str(run)), path).items()
        if name in model and name not in FREE and f"model.{name}" not in keys and model[name] != value
    }
    OmegaConf.update(config, "model", taken)
    return f"model as in {path}: {', '.join(f'{name}={value}' for name, value in taken.items())}" if taken else None


def _shape_in(run: Path, path: str) -> dict[str, Any]:
    """The shape in a run's newest whole checkpoint, else in the one that it starts from; empty where none can be read."""
    files: list[str | Path] = [*checkpoint_file.in_folder(run / "checkpoints"), path]
    for file in files:
        with contextlib.suppress(UserError, OSError):
            return checkpoint_file.shape_of(local_checkpoint(file))
    return {}
