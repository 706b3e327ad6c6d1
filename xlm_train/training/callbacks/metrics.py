"""Training metrics, every so many steps, to every logger and to where Lightning's own callbacks look for them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch

from xlm_train.model.flops import training_flops_per_token
from xlm_train.objectives.back_translation import BackTranslation
from xlm_train.objectives.objective import Objective
from xlm_train.runtime.console import log
from xlm_train.runtime.device import Stopwatch, device_name, is_accelerator, peak_memory_gb
from xlm_train.runtime.errors import at_least
from xlm_train.training.loss_buffer import mean, mean_by_stream
from xlm_train.training.module import LanguageModel
from xlm_train.training.phases import Phase, StepCallback
from xlm_train.training.trainer import Trainer

SHOWN = ("train/loss", "val/ppl")  # in progress bars


def send(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Hand metrics to all loggers, from the first process only, and to the trainer's dictionaries of metrics on all.

    A figure that is not finite is kept from the loggers: JSON has none. A logger that fails is left out from then on:
    training is worth more than its record.

    Args:
        trainer: whose loggers they are.
        metrics: by name.
        step: global step that they are of.
    """
    # as Lightning's LearningRateMonitor does it: `log` costs half a millisecond a figure, and some at every later step
    tensors = {name: torch.tensor(float(value)) for name, value in metrics.items()}
    trainer.callback_metrics.update(tensors)
    trainer.logged_metrics.update(tensors)
    trainer.progress_bar_metrics.update({name: float(metrics[name]) for name in SHOWN if name in metrics})
    if not trainer.is_global_zero:
        return
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    for logger in list(trainer.loggers):
        try:
            logger.log_metrics(finite, step)
        except Exception as error:  # whatever a tracker raises
            log(f"warning: {type(logger).__name__} failed and is left out from here on: {error}")
            trainer.loggers = [other for other in trainer.loggers if other is not logger]


class Metrics(StepCallback):
    """Reports losses, learning rate, gradient norm, speed and memory.

    A token is one that the order counts (`tokens_per_step`): of windows each one, of pairs those of both sides, of sentences
    that are denoised or translated back their own. `speed/mfu` spreads all arithmetic over them, decoding too;
    `speed/back_translation` is the share of the steps' time in which this process made back-translations.

    The first step of a start is told on the console only, so that a resumed run reports as an undisturbed one does.

    Args:
        every_n_steps: the device is waited for, and processes add up their losses, only then and after the first step.
        peak_tflops: arithmetic that one device can do at most, by precision; None or a missing precision: not known.
        accelerator: which device that is; `speed/mfu` is left out, with a warning, on any other. None: whichever runs.

    Raises:
        ConfigError: the value cannot work.
    """

    phase = Phase.REPORT
    takes_losses = True

    def __init__(
        self,
        every_n_steps: int = 10,
        peak_tflops: Mapping[str, float | None] | None = None,
        accelerator: str | None = None,
    ) -> None:
        at_least(1, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.peak_tflops = dict(peak_tflops or {})
        self.accelerator = accelerator
        self._is_first = True
        self._since = 0.0  # moment and step of the last report
        self._since_step = 0

    def on_train_start(self, trainer: Trainer, module: LanguageModel) -> None:  # type: ignore[override]
        """Begin to measure; drop a peak that is another device's."""
        known, name = self.peak_tflops.get(trainer.precision_name) is not None, device_name(module.device)
        if known and self.accelerator is not None and not is_accelerator(self.accelerator, name):
            log(
                f"warning: speed/mfu is left out: the cluster's peak is that of {self.accelerator}, and this is"
                f" {name}; cluster=FILE names the right one"
            )
            self.peak_tflops = {}
        self._begin(trainer, module)

    def _begin(self, trainer: Trainer, module: LanguageModel) -> None:
        self._since, self._since_step = time.perf_counter(), module.state.step
        trainer.run.pauses.clear()
        trainer.data.seconds_reading()
        for watch in stopwatches(module.objective):
            watch.take()

    def on_step_end(self, trainer: Trainer, module: LanguageModel) -> None:
        """Report where that is due. A collective; waits for the device."""
        step = module.state.step
        is_first, self._is_first = self._is_first, False
        if step % self.every_n_steps == 0 or step == module.stop:
            module.reduce_losses()
            metrics = self._losses(trainer, module) | self._speed(trainer, module)
            metrics["memory/peak_gb"] = peak_memory_gb(module.device)
            for callback in trainer.callbacks:
                if isinstance(callback, StepCallback):
                    metrics |= callback.figures()
            self._begin(trainer, module)
            send(trainer, metrics, step)
        elif is_first:
            module.reduce_losses()
            rows = module.state.losses.reduced[-1:]
            loss = f": loss {mean(rows):.4g}" if rows else ""
            seconds = time.perf_counter() - self._since
            log(f"step {step:,}/{module.stop:,}{loss}, the first of this start, in {seconds:.1f} s")

    def _losses(self, trainer: Trainer, module: LanguageModel) -> dict[str, float]:
        state, metrics = module.state, {}
        if rows := state.losses.take():
            total = mean(rows)
            metrics = {"train/loss": total, "train/ppl": math.exp(min(total, 700.0))}
            names = list(trainer.data.order.streams)
            metrics |= {f"train/loss_{names[stream]}": loss for stream, loss in mean_by_stream(rows).items()}
            metrics["optim/grad_norm"] = rows[-1].grad_norm
        metrics["optim/lr"] = module.learning_rate
        metrics["optim/skipped_steps"] = len(state.skipped)
        if state.loss_scale is not None:
            metrics["optim/loss_scale"] = state.loss_scale.scale
        return metrics

    def _speed(self, trainer: Trainer, module: LanguageModel) -> dict[str, float]:
        state, tokens = module.state, trainer.data.tokens_per_step
        saving = trainer.run.pauses["saving"]
        # time in validation and saving is not counted
        seconds = max(time.perf_counter() - self._since - sum(trainer.run.pauses.values()), 1e-9)
        per_step = seconds / max(state.step - self._since_step, 1)
        metrics = {
            "progress/steps": module.stop,
            "progress/updates": state.updates,
            "progress/tokens": state.step * tokens,
            "progress/seconds_left": (module.stop - state.step) * per_step,
            "speed/tokens_per_second": tokens / per_step,
            "speed/seconds_per_step": per_step,
            "speed/data_wait": trainer.data.seconds_reading() / seconds,
            "speed/checkpoint_stall": saving / (seconds + saving),
        }
        if watches := stopwatches(module.objective):
            metrics["speed/back_translation"] = sum(watch.take() for watch in watches) / seconds
        peak = self.peak_tflops.get(trainer.precision_name)
        if peak is not None:
            metrics["speed/mfu"] = (
                tokens / per_step * flops_of_token(trainer, module) / (peak * 1e12 * trainer.world_size)
            )
        return metrics


def stopwatches(objective: Objective) -> list[Stopwatch]:
    """Those of the parts of an objective that make back-translations."""
    parts = getattr(objective, "parts", {"": objective}).values()
    return [part.decoding for part in parts if isinstance(part, BackTranslation)]


def flops_of_token(trainer: Trainer, module: LanguageModel) -> float:
    """Count the FLOPs of a token of `tokens_per_step`, on average over the streams."""
    model, rows = module.model, module.objective.rows
    read = {name: float(s.share) * s.tokens_per_slot for name, s in trainer.data.order.streams.items()}
    spent = sum(n * training_flops_per_token(model.shape, rows[name], model.recompute) for name, n in read.items())
    return spent / sum(read.values())
