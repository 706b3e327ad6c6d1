"""Who takes part in a run, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytorch_lightning as pl

from xlm_train.agreement import Agreement, Member, member


class RollCall(pl.Callback):
    """The first exchange of all processes, with a short timeout of its own.

    run: digest of what all processes must have alike (config, corpus, checkpoint). present: told of all members, on
    every process.
    """

    def __init__(
        self,
        agreement: Agreement,
        run: str,
        start_timeout: float,
        timeout: float,
        present: Callable[[Sequence[Member]], None],
    ) -> None:
        self.agreement = agreement
        self.run = run
        self.start_timeout = start_timeout
        self.timeout = timeout
        self.present = present

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        me = member(trainer.global_rank, trainer.strategy.root_device, self.run)
        self.present(self.agreement.connect(me, self.start_timeout, self.timeout))
