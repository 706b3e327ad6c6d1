"""Perplexity on the validation split, the best checkpoint, and stopping when it no longer falls."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch

from xlm_train.data.corpus import TokenStream
from xlm_train.evaluation.perplexity import Score, score_windows
from xlm_train.training.callbacks.metrics import Metrics, send
from xlm_train.training.module import CausalLanguageModel


class Validation(pl.Callback):
    """Scores the validation streams every so many steps and once at the end.

    The processes divide the windows among themselves; three sums a language are exchanged, so all of them decide alike.
    patience: failures in a row that are allowed; the next one stops the run, as the original's stopping criterion
    (a failure is a mean perplexity not strictly below the best). None: never stop.
    batch_windows: windows scored in one forward pass.
    """

    def __init__(
        self,
        streams: Mapping[str, TokenStream],
        languages: Mapping[str, int],
        bptt: int,
        every_n_steps: int,
        patience: int | None,
        max_steps: int,
        metrics: Metrics,
        batch_windows: int = 16,
    ) -> None:
        self.streams = streams
        self.languages = languages
        self.bptt = bptt
        self.every_n_steps = every_n_steps
        self.patience = patience
        self.max_steps = max_steps
        self.metrics = metrics
        self.batch_windows = batch_windows
        self.latest: dict[str, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: CausalLanguageModel, *_: Any) -> None:  # type: ignore[override]
        step = module.progress.step
        if not self.streams or (step % self.every_n_steps and step != self.max_steps):
            return
        start = time.perf_counter()
        self.latest = self.validate(trainer, module)
        send(trainer, self.latest, step)
        progress = module.progress
        mean = self.latest["val/ppl"]
        if math.isfinite(mean) and (progress.best_metric is None or mean < progress.best_metric):
            progress.best_metric, progress.best_step, progress.failures = mean, step, 0
        else:
            progress.failures += 1
            if self.patience is not None and progress.failures > self.patience:
                trainer.should_stop = True
        self.metrics.pause(time.perf_counter() - start)

    def validate(self, trainer: pl.Trainer, module: CausalLanguageModel) -> dict[str, float]:
        """Metrics val/loss_L, val/ppl_L, val/acc_L of each language and the means val/ppl, val/acc. A collective."""
        metrics: dict[str, float] = {}
        scores = []
        for lang, stream in self.streams.items():
            count = stream.n_windows(self.bptt)
            mine = range(
                trainer.global_rank * count // trainer.world_size,
                (trainer.global_rank + 1) * count // trainer.world_size,
            )
            with trainer.precision_plugin.forward_context():
                sums = score_windows(
                    module.model, stream, self.bptt, self.languages[lang], mine, self.batch_windows, module.device
                )
            if trainer.world_size > 1:
                torch.distributed.all_reduce(sums)
            score = Score.from_sums(sums)
            scores.append(score)
            metrics |= {
                f"val/loss_{lang}": score.loss,
                f"val/ppl_{lang}": score.perplexity,
                f"val/acc_{lang}": score.accuracy,
            }
        metrics["val/ppl"] = math.fsum(score.perplexity for score in scores) / len(scores)
        metrics["val/acc"] = math.fsum(score.accuracy for score in scores) / len(scores)
        return metrics
