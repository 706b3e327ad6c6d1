"""Training metrics, every so many steps, to every logger."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl

from xlm_train.data.datamodule import StepBatches
from xlm_train.runtime.console import log
from xlm_train.runtime.device import peak_memory_gb
from xlm_train.runtime.energy import Energy
from xlm_train.training.loggers import LocalLogger
from xlm_train.training.loss_buffer import mean_by_language
from xlm_train.training.module import CausalLanguageModel


def send(trainer: pl.Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Hand metrics to all loggers, from the first process only. A figure that is not finite is left out: JSON has none."""
    if trainer.is_global_zero:
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for logger in list(trainer.loggers):
            try:
                logger.log_metrics(finite, step)
            except Exception as error:  # whatever a tracker raises: training is worth more than its record
                if isinstance(logger, LocalLogger):  # the next report may find room on the disk again
                    log(f"warning: {type(logger).__name__}: the report of step {step:,} is lost: {error}")
                    continue
                log(f"warning: {type(logger).__name__} failed and is left out from here on: {error}")
                trainer.loggers = [other for other in trainer.loggers if other is not logger]


class Metrics(pl.Callback):
    """Losses, learning rate, gradient norm, speed.

    every_n_steps: the device is waited for, and processes exchange their losses, only then.
    tokens_per_step: tokens read by a global step (slots x streams x bptt). max_steps: for the time that is left.
    batches: for the time spent reading. energy: on the first process. peak_tokens_per_second: that all devices' peak
    arithmetic would allow, where it is known.
    """

    def __init__(
        self,
        every_n_steps: int,
        languages: Sequence[str],
        tokens_per_step: int,
        max_steps: int,
        batches: StepBatches,
        energy: Energy | None,
        peak_tokens_per_second: float | None,
    ) -> None:
        self.every_n_steps = every_n_steps
        self.languages = list(languages)
        self.tokens_per_step = tokens_per_step
        self.max_steps = max_steps
        self.batches = batches
        self.energy = energy
        self.peak_tokens_per_second = peak_tokens_per_second
        self.since = 0.0  # moment and step of the last report; time in validation and saving is not counted
        self.since_step = 0
        self.paused = 0.0
        self.saving = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: CausalLanguageModel) -> None:  # type: ignore[override]
        self._begin(module.progress.step)

    def _begin(self, step: int) -> None:
        self.since, self.since_step, self.paused, self.saving = time.perf_counter(), step, 0.0, 0.0
        self.batches.seconds = 0.0

    def pause(self, seconds: float, saving: bool = False) -> None:
        """Leave `seconds` spent on something else out of the speed; those spent on saving are reported as the stall."""
        self.paused += seconds
        self.saving += seconds * saving

    def on_train_batch_end(self, trainer: pl.Trainer, module: CausalLanguageModel, *_: Any) -> None:  # type: ignore[override]
        progress = module.progress
        step = progress.step
        if step % self.every_n_steps and step != self.max_steps:
            return
        module.settle_losses()
        rows = module.ledger.take()
        metrics: dict[str, float] = {}
        if rows:
            losses = [loss for row in rows for loss in row.losses]
            total = math.fsum(losses) / len(losses)
            metrics = {"train/loss": total, "train/ppl": math.exp(min(total, 700.0))}
            for language, loss in mean_by_language(rows).items():
                metrics[f"train/loss_{self.languages[language]}"] = loss
            metrics["optim/grad_norm"] = rows[-1].grad_norm
        metrics["optim/lr"] = module.learning_rate
        metrics["optim/skipped_steps"] = len(progress.skipped)
        if progress.loss_scale is not None:
            metrics["optim/loss_scale"] = progress.loss_scale.scale
        seconds = max(time.perf_counter() - self.since - self.paused, 1e-9)
        per_step = seconds / max(step - self.since_step, 1)
        metrics["progress/steps"] = self.max_steps
        metrics["progress/updates"] = progress.updates
        metrics["progress/tokens"] = step * self.tokens_per_step
        metrics["progress/seconds_left"] = (self.max_steps - step) * per_step
        metrics["speed/tokens_per_second"] = self.tokens_per_step / per_step
        metrics["speed/seconds_per_step"] = per_step
        metrics["speed/data_wait"] = self.batches.seconds / seconds
        metrics["speed/checkpoint_stall"] = self.saving / (seconds + self.saving)
        if self.peak_tokens_per_second:
            metrics["speed/share_of_peak"] = self.tokens_per_step / per_step / self.peak_tokens_per_second
        metrics["memory/peak_gb"] = peak_memory_gb(module.device)
        if self.energy is not None:
            metrics["energy/kwh"] = self.energy.kwh()
        self._begin(step)
        send(trainer, metrics, step)
