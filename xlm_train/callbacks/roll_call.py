"""Who takes part in a run, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl

from xlm_train.agreement import Agreement, member


class RollCall(pl.Callback):
    """The first exchange of all processes, with a short timeout of its own.

    run: digest of what all processes must have alike (config, corpus, checkpoint). present: called on every process
    when all are there.
    """

    def __init__(
        self,
        agreement: Agreement,
        run: str,
        start_timeout: float,
        timeout: float,
        present: Callable[[], None],
    ) -> None:
        self.agreement = agreement
        self.run = run
        self.start_timeout = start_timeout
        self.timeout = timeout
        self.present = present

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        me = member(trainer.global_rank, trainer.strategy.root_device, self.run)
        self.agreement.connect(me, self.start_timeout, self.timeout)
        self.present()
