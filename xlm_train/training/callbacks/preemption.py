"""Leaving at a step boundary: on a signal, at a time limit, where a checkpoint could not be written."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl

from xlm_train.runtime.control_group import Agreement
from xlm_train.runtime.processes import StopFlag
from xlm_train.training.anomaly import TrainingStopped
from xlm_train.training.callbacks.checkpointing import Checkpointing
from xlm_train.training.module import CausalLanguageModel

REASONS = (None, "time limit", "preempted")  # by what the processes exchange: the highest number wins
UNWRITTEN = len(REASONS)


class Interruption(pl.Callback):
    """Stops the run at the next step boundary all processes agree on.

    A signal only sets a flag. After the first step of a start and every `every_n_steps` the processes exchange their
    flags (one all-reduce of one number), so all leave at the same step whichever of them was signalled; the state is
    then saved by `Checkpointing` at the end of training. max_hours: since `started` (seconds of the epoch), when the command
    was given, restarts and rollbacks included. `reason`
    afterwards: None, "preempted" or "time limit".
    """

    def __init__(
        self,
        every_n_steps: int,
        max_hours: float | None,
        flag: StopFlag,
        agreement: Agreement,
        checkpointing: Checkpointing,
        started: float,
    ) -> None:
        self.every_n_steps = every_n_steps
        self.max_hours = max_hours
        self.flag = flag
        self.agreement = agreement
        self.checkpointing = checkpointing
        self.first = True
        self.started = started
        self.reason: str | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, module: CausalLanguageModel, *_: Any) -> None:  # type: ignore[override]
        first, self.first = self.first, False
        if self.agreement.world_size > 1 and module.progress.step % self.every_n_steps and not first:
            return
        out_of_time = self.max_hours is not None and time.time() - self.started > self.max_hours * 3600
        number = 2 if self.flag.is_set else int(out_of_time)
        if self.checkpointing.failure is not None:
            number = UNWRITTEN
        number = self.agreement.highest(number)
        if number == UNWRITTEN:
            raise self.checkpointing.failure or TrainingStopped("the first process could not write a checkpoint")
        self.reason = REASONS[number]
        if self.reason is not None:
            trainer.should_stop = True
