"""Half-precision arithmetic; the loss scale that float16 needs is part of the state that a checkpoint holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pytorch_lightning.plugins.precision import Precision

from xlm_train.model.ops.casts import shared_casts

DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


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


class Autocast(Precision):
    """Products in half precision, on a GPU or really on a CPU; weights stay float32 and are cast once a step.

    Lightning's own "16-mixed" means bfloat16 on a CPU, and its scaler waits for the device once more than needed.

    Args:
        precision: Of DTYPES.
        device_type: "cpu" or "cuda".
        shares_casts: Cast once a step. Not where weights are divided (FSDP): they take each other's places in memory.
    """

    def __init__(self, precision: str, device_type: str, shares_casts: bool = True) -> None:
        super().__init__()
        self.precision = precision  # type: ignore[assignment]  # Lightning's list of names
        self.device_type = device_type
        self.shares_casts = shares_casts

    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        """Enter the context of a step or of a validation, within which weights do not change before the update."""
        shared = shared_casts() if self.shares_casts else contextlib.nullcontext()
        with torch.autocast(self.device_type, dtype=DTYPES[self.precision]), shared:
            yield
