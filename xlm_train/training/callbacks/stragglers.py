"""Names a process that is much slower than the others: all wait for it at every step."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from xlm_train.runtime.console import log
from xlm_train.runtime.control_group import Agreement
from xlm_train.training.module import CausalLanguageModel

SLOW = 1.5  # times the median


class Stragglers(pl.Callback):
    """Compares the processes' own time for the forward pass of one slot, every so many steps.

    record: given the rank, its host and how many times slower it is, on the first
    process. A rank is named where two reports in a row find it slow, and again only when it has recovered in between.
    """

    def __init__(self, every_n_steps: int, agreement: Agreement, record: Callable[[int, str, float], None]) -> None:
        self.every_n_steps = every_n_steps
        self.agreement = agreement
        self.record = record
        self.suspected: set[int] = set()  # by the last report
        self.named: set[int] = set()

    def on_train_batch_end(self, trainer: pl.Trainer, module: CausalLanguageModel, *_: Any) -> None:  # type: ignore[override]
        if module.progress.step % self.every_n_steps:
            return
        seconds = self.agreement.gather(module.stopwatch.take())
        slow = slow_ones(seconds)
        for rank, times in slow.items():
            if rank in self.suspected and rank not in self.named:
                self.named.add(rank)
                host = self.agreement.members[rank].host
                log(f"warning: rank {rank} on {host} takes {times:.1f} times as long as the others: all wait for it")
                if trainer.is_global_zero:
                    self.record(rank, host, times)
        self.suspected = set(slow)
        self.named &= self.suspected


def slow_ones(seconds: list[float]) -> dict[int, float]:
    """Rank -> how many times slower than the median of all (of two: than the other)."""
    usual = statistics.median_low(seconds)
    return {rank: s / usual for rank, s in enumerate(seconds) if usual > 0 and s > SLOW * usual}
