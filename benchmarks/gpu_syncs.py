"""A Lightning callback that counts how often the host waits for the GPU in a step, and says where."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

FIRST, LAST = 11, 19  # steps looked at; no report, checkpoint or validation may be due among them


class CountSyncs(pl.Callback):
    """Writes {"steps", "syncs", "where"} to `out`.

    Torch names what waits for the device by a warning (torch.cuda.set_sync_debug_mode). On a CPU nothing waits.
    """

    def __init__(self, out: str) -> None:
        self.out = Path(out)
        self.caught: Any = None
        self.found: list[warnings.WarningMessage] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, number: int) -> None:
        """Begin at the first step."""
        if batch.step == FIRST:
            self.caught = warnings.catch_warnings(record=True)
            self.found = self.caught.__enter__()
            warnings.simplefilter("always")
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, number: int) -> None:
        """Write at the last step."""
        if batch.step == LAST:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
            self.caught.__exit__(None, None, None)
            where = Counter(
                f"{w.filename}:{w.lineno}" for w in self.found if "called a synchronizing" in str(w.message)
            )
            content = {"steps": LAST - FIRST + 1, "syncs": where.total(), "where": dict(where.most_common(10))}
            self.out.write_text(json.dumps(content))
