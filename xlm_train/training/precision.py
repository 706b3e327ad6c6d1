"""float16 arithmetic without a scaler of Lightning's: the loss scale is part of the state that a checkpoint holds."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from pytorch_lightning.plugins.precision import Precision


@dataclass
class LossScale:
    """Dynamic loss scaling: halved where a gradient overflowed, doubled after `growth_interval` good updates.

    Source: Micikevicius et al. 2018, section 3.2.1.
    """

    scale: float = 2.0**16
    growth_interval: int = 2000
    good: int = 0

    def update(self, finite: bool) -> None:
        """Take note of one attempt. finite: whether its gradient was."""
        if not finite:
            self.scale, self.good = self.scale / 2, 0
            return
        self.good += 1
        if self.good == self.growth_interval:
            self.scale, self.good = self.scale * 2, 0


class Float16(Precision):
    """Forward passes under float16 autocast, on a GPU or (for tests) really on a CPU.

    Lightning's own "16-mixed" means bfloat16 on a CPU, and its scaler waits for the device once more than needed.
    """

    precision = "16-mixed"

    def __init__(self, accelerator: str) -> None:
        super().__init__()
        self.device_type = "cpu" if accelerator == "cpu" or not torch.cuda.is_available() else "cuda"

    def forward_context(self) -> contextlib.AbstractContextManager[None]:
        """Return the context of every forward pass."""
        return torch.autocast(self.device_type, dtype=torch.float16)
