"""float16 arithmetic without a scaler of Lightning's: the loss is scaled in `module.py`, with state that a checkpoint holds."""

from __future__ import annotations

import contextlib

import torch
from pytorch_lightning.plugins.precision import Precision


class Float16(Precision):
    """Forward passes under float16 autocast, on a GPU or (for tests) really on a CPU.

    Lightning's own "16-mixed" means bfloat16 on a CPU, and its scaler waits for the device once more than needed.
    """

    precision = "16-mixed"

    def __init__(self, accelerator: str) -> None:
        super().__init__()
        self.device_type = "cpu" if accelerator == "cpu" or not torch.cuda.is_available() else "cuda"

    def forward_context(self) -> contextlib.AbstractContextManager[None]:
        return torch.autocast(self.device_type, dtype=torch.float16)
