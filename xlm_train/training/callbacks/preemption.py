"""Leaving at a step boundary: on a signal, at a time limit, where a checkpoint could not be written or another machine has the run."""

from __future__ import annotations

import time

from xlm_train.runtime.errors import ConfigError, at_least
from xlm_train.training.anomaly import TrainingStopped
from xlm_train.training.module import LanguageModel
from xlm_train.training.phases import Phase, StepCallback
from xlm_train.training.trainer import Trainer

REASONS = (None, "time limit", "preempted")  # by what the processes exchange: the highest number wins
UNWRITTEN = len(REASONS)


class Preemption(StepCallback):
    """Stops the run at the next step boundary that all processes agree on.

    A signal only sets a flag. After the first step of a start and every `every_n_steps` the processes exchange their
    flags (one all-reduce of one number), so all leave at the same step whichever of them was signalled; `Checkpointing`
    then saves the state. Why the run leaves stands in `trainer.run.stop_reason`.

    Args:
        every_n_steps: how often the processes exchange their flags.
        max_hours: since the command was given, restarts and rollbacks included.

    Raises:
        ConfigError: a value cannot work.
    """

    phase = Phase.LEAVE

    def __init__(self, every_n_steps: int = 10, max_hours: float | None = None) -> None:
        at_least(1, every_n_steps=every_n_steps)
        if max_hours is not None and max_hours <= 0:
            raise ConfigError(f"max_hours={max_hours}: must be positive")
        self.every_n_steps = every_n_steps
        self.max_hours = max_hours
        self._first = True

    def on_step_end(self, trainer: Trainer, module: LanguageModel) -> None:
        """Exchange flags where that is due.

        Raises:
            UserError: the first process could not write a checkpoint, or has lost the run's lease.
        """
        first, self._first = self._first, False
        run = trainer.run
        if trainer.world_size > 1 and module.state.step % self.every_n_steps and not first:
            return
        out_of_time = self.max_hours is not None and time.time() - run.started > self.max_hours * 3600
        number = 2 if run.stop_flag.is_set else int(out_of_time)
        failure = trainer.checkpoint_io.failure or run.folder.lost
        number = run.control_group.highest(number if failure is None else UNWRITTEN)
        if number == UNWRITTEN:
            raise failure or TrainingStopped("the first process could not write a checkpoint, or has lost the run")
        if REASONS[number] is not None:
            run.stop_reason = REASONS[number]
            trainer.should_stop = True
