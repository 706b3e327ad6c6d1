"""Names what holds a run's steps up: a process much slower than the others, or other programs on its cores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import torch

from xlm_train.data.order import Stream
from xlm_train.runtime.console import counted, log
from xlm_train.runtime.cores import CoreUse, CoreWatch
from xlm_train.runtime.device import Stopwatch
from xlm_train.runtime.errors import at_least
from xlm_train.training.module import LanguageModel
from xlm_train.training.phases import Phase, StepCallback
from xlm_train.training.trainer import Trainer

SLOW = 1.5  # times the median
WAITED = 0.15  # share of the time that a thread waits for a core
OTHERS = 0.25  # cores: below it this run's own threads are in each other's way


class Stragglers(StepCallback):
    """Compares the processes' own time for the forward pass of one slot, where slots of all streams are of like sizes.

    A rank is named where two comparisons in a row find it slow, and again only when it has recovered in between. On a
    CPU the first process warns, once, where two comparisons in a row find that other programs keep it from its cores.

    Args:
        every_n_steps: how often; None: at each report.

    Raises:
        ConfigError: the value cannot work.
    """

    phase = Phase.REPORT

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None:
            at_least(1, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.suspected: set[int] = set()  # by the last comparison
        self.named: set[int] = set()
        self._watch: CoreWatch | None = None  # until it has warned
        self._was_kept = False  # from its cores, by the last comparison

    def setup(self, trainer: Trainer, module: LanguageModel, stage: str) -> None:  # type: ignore[override]
        """Let the module measure its time."""
        self._stopwatch = module.stopwatch = Stopwatch()

    def on_train_start(self, trainer: Trainer, module: LanguageModel) -> None:  # type: ignore[override]
        """Begin to watch the cores; compare nothing where the time says more about the slot than about the process."""
        if not are_alike(trainer.data.order.streams.values()):
            module.stopwatch = None
        if module.device.type == "cpu" and trainer.is_global_zero:
            self._watch = CoreWatch()

    def on_step_end(self, trainer: Trainer, module: LanguageModel) -> None:
        """Compare where that is due. A collective."""
        if module.state.step % (self.every_n_steps or trainer.log_every_n_steps):
            return
        self._look_at_cores(trainer, module.state.step)
        if module.stopwatch is None:
            return
        group, own = trainer.run.control_group, self._stopwatch.take()
        lowest, highest = group.extremes(own)
        # the median is not below the lowest: everyone's time is exchanged only where one may be slow beside it
        slow = slow_ones(group.gather(own)) if highest > SLOW * lowest else {}
        for rank, times in slow.items():
            if rank in self.suspected and rank not in self.named:
                self.named.add(rank)
                host = group.members[rank].host
                log(f"warning: rank {rank} on {host} takes {times:.1f} times as long as the others: all wait for it")
                if trainer.is_global_zero:
                    trainer.run.folder.record("slow_rank", module.state.step, rank=rank, host=host, times=times)
        self.suspected = set(slow)
        self.named &= self.suspected

    def _look_at_cores(self, trainer: Trainer, step: int) -> None:
        use = None if self._watch is None else self._watch.take()
        if use is None:
            return
        was_kept, self._was_kept = self._was_kept, is_kept(use)
        if was_kept and self._was_kept:
            self._watch = None
            fewer = max(1, use.cores - math.ceil(use.others))
            advice = f"; trainer.threads={fewer} keeps out of their way (from the next start on; sums are rounded otherwise then)"
            log(
                f"warning: other programs use {use.others:.1f} of {counted(use.cores, 'core')}: for {use.waited:.0%} of the"
                " time this run waited for one. Steps take longer until they end"
                + (advice if fewer < torch.get_num_threads() else "")
            )
            trainer.run.folder.record("busy_cores", step, others=use.others, waited=use.waited)


def are_alike(streams: Iterable[Stream]) -> bool:
    """Whether slots take so nearly the same time that a process is not slow for those it gets.

    Slots are in the order of the streams, so a process has a step's first or last stream more often than others.
    """
    sizes = [stream.tokens_per_slot for stream in streams]
    return max(sizes) < SLOW * min(sizes)


def is_kept(use: CoreUse) -> bool:
    """Whether other programs keep this process from its cores."""
    return use.waited > WAITED and use.others > OTHERS


def slow_ones(seconds: Sequence[float]) -> dict[int, float]:
    """Map each slow rank to how many times slower it is than the median of all (of two: than the other)."""
    usual = statistics.median_low(seconds)
    return {rank: s / usual for rank, s in enumerate(seconds) if usual > 0 and s > SLOW * usual}
