"""Where a run stands: plain numbers, saved in every checkpoint and restored from it, here alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from xlm_train.training.loss_buffer import LossBuffer
from xlm_train.training.precision import LossScale


@dataclass
class TrainState:
    """Where a run stands.

    Args:
        step: attempts made, which is also the next step to read.
        updates: updates applied; drives the schedule.
        skipped: attempts whose update was not applied; their windows are consumed.
        loss_scale: of float16; None in other precisions.
        monitor: the metric by which validations are compared.
        best_metric: best validation so far, by that metric.
        best_step: its step.
        failures: validations in a row without improvement.
        validation: metrics of the last validation.
        losses: of the steps since the last report.
    """

    step: int = 0
    updates: int = 0
    skipped: list[int] = field(default_factory=list)
    loss_scale: LossScale | None = None
    monitor: str = "val/ppl"
    best_metric: float | None = None
    best_step: int | None = None
    failures: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    losses: LossBuffer = field(default_factory=LossBuffer)

    def counts(self) -> dict[str, Any]:
        """Return what is told in status.json: all but losses and metrics."""
        return {
            "step": self.step,
            "updates": self.updates,
            "skipped": list(self.skipped),
            "loss_scale": None if self.loss_scale is None else asdict(self.loss_scale),
            "monitor": self.monitor,
            "best_metric": self.best_metric,
            "best_step": self.best_step,
            "failures": self.failures,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values, for a checkpoint. The losses must have been reduced."""
        return {**self.counts(), "losses": self.losses.state()}

    def restore(self, saved: Mapping[str, Any], validation: Mapping[str, float]) -> None:
        """Take over what a checkpoint holds. A loss scale is taken only where this run has one.

        Args:
            saved: from `to_dict`; a checkpoint made elsewhere may lack keys.
            validation: metrics of the checkpoint's last validation.
        """
        for name in ("step", "updates", "skipped", "monitor", "best_metric", "best_step", "failures"):
            if name in saved:
                setattr(self, name, saved[name])
        if self.loss_scale is not None and saved.get("loss_scale") is not None:
            self.loss_scale = LossScale(**saved["loss_scale"])
        self.validation = dict(validation)
        self.losses.restore(saved.get("losses", []))

    def skips_in_a_row(self) -> int:
        """Count the skipped attempts just before `step`, without an applied one between them."""
        count = 0
        while count < len(self.skipped) and self.skipped[-1 - count] == self.step - 1 - count:
            count += 1
        return count
