"""The end of a step: which of our callbacks acts when, whatever their order in the config."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar

import pytorch_lightning as pl


class Phase(IntEnum):
    """What happens at the end of a step, in this order.

    A report must not count the time of the validation after it; a checkpoint must hold what the report took and what the
    validation found; and it is saved at the step at which the run leaves.
    """

    REPORT = 1
    VALIDATE = 2
    LEAVE = 3
    SAVE = 4


class StepCallback(pl.Callback):
    """A callback that acts at the end of a step, in its phase.

    The module runs `on_step_end` of all of them from its own `on_train_batch_end`, so after that hook of every stock
    callback.
    """

    phase: ClassVar[Phase]
    takes_losses: ClassVar[bool] = False  # whether it takes the losses of the steps since its last report

    def on_step_end(self, trainer: Any, module: Any) -> None:
        """Act at the end of a step; `module.state.step` attempts have been made."""

    def figures(self) -> Mapping[str, float]:
        """Return what this callback adds to a report, on the first process."""
        return {}
