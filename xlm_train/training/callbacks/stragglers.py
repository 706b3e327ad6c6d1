"""Names a process that is much slower than the others: all wait for it at every step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from xlm_train.runtime.console import log
from xlm_train.runtime.device import Stopwatch
from xlm_train.runtime.errors import at_least
from xlm_train.training.module import LanguageModel
from xlm_train.training.phases import Phase, StepCallback
from xlm_train.training.trainer import Trainer

SLOW = 1.5  # times the median


class Stragglers(StepCallback):
    """Compares the processes' own time for the forward pass of one slot.

    A rank is named where two comparisons in a row find it slow, and again only when it has recovered in between.

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

    def setup(self, trainer: Trainer, module: LanguageModel, stage: str) -> None:  # type: ignore[override]
        """Let the module measure its time."""
        self._stopwatch = module.stopwatch = Stopwatch()

    def on_step_end(self, trainer: Trainer, module: LanguageModel) -> None:
        """Compare where that is due. A collective."""
        if module.state.step % (self.every_n_steps or trainer.log_every_n_steps):
            return
        group = trainer.run.control_group
        slow = slow_ones(group.gather(self._stopwatch.take()))
        for rank, times in slow.items():
            if rank in self.suspected and rank not in self.named:
                self.named.add(rank)
                host = group.members[rank].host
                log(f"warning: rank {rank} on {host} takes {times:.1f} times as long as the others: all wait for it")
                if trainer.is_global_zero:
                    trainer.run.folder.record("slow_rank", module.state.step, rank=rank, host=host, times=times)
        self.suspected = set(slow)
        self.named &= self.suspected


def slow_ones(seconds: Sequence[float]) -> dict[int, float]:
    """Map each slow rank to how many times slower it is than the median of all (of two: than the other)."""
    usual = statistics.median_low(seconds)
    return {rank: s / usual for rank, s in enumerate(seconds) if usual > 0 and s > SLOW * usual}
