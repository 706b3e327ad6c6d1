"""Where a run stands: plain numbers, saved in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LossScale:
    """Dynamic loss scaling for float16: halved where a gradient overflowed, doubled after `growth_interval` good
    updates.

    Source: Micikevicius et al. 2018, section 3.2.1.
    """

    scale: float = 2.0**16
    growth_interval: int = 2000
    good: int = 0

    def update(self, finite: bool) -> None:
        if not finite:
            self.scale, self.good = self.scale / 2, 0
            return
        self.good += 1
        if self.good == self.growth_interval:
            self.scale, self.good = self.scale * 2, 0


@dataclass
class Progress:
    """Where a run stands.

    step: attempts made, which is also the next step to read. updates: updates applied (drives the schedule).
    skipped: attempts whose update was not applied; their windows are consumed. best: highest-ranked validation so far.
    failures: validations in a row without improvement.
    """

    step: int = 0
    updates: int = 0
    skipped: list[int] = field(default_factory=list)
    loss_scale: LossScale | None = None
    best_metric: float | None = None
    best_step: int | None = None
    failures: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        scale = values.get("loss_scale")
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(**{**known, "loss_scale": None if scale is None else LossScale(**scale)})

    def skips_in_a_row(self) -> int:
        """Skipped attempts just before `step`, without an applied one between them."""
        count = 0
        while count < len(self.skipped) and self.skipped[-1 - count] == self.step - 1 - count:
            count += 1
        return count
