"""Bad numbers: a loss or gradient that is not finite, a loss that jumps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from xlm_train.runtime.errors import UserError
from xlm_train.training.loss_buffer import StepLosses

POLICIES = ("stop", "skip", "rollback")
LEAST = 20  # good steps before a spike can be told
NORMAL = 1.4826  # median absolute deviation of a normal distribution, times this, is its standard deviation


class TrainingStopped(UserError):
    """Training cannot go on: the last checkpoint is intact, the message says what happened."""


@dataclass(frozen=True)
class BadStep:
    """A step with bad numbers. slots: those to blame, empty where that is not known."""

    step: int
    reason: str
    slots: tuple[int, ...] = ()


class BadNumbers(TrainingStopped):
    """Raised on all processes alike when a step's numbers are bad; `train` decides by policy what follows."""

    def __init__(self, bad: BadStep) -> None:
        self.bad = bad
        super().__init__(f"step {bad.step}: {bad.reason}")


@dataclass
class Guard:
    """Tells bad steps from good ones; all processes see the same numbers and so say the same.

    policy: what is done about a bad step. spike_z: a language's mean loss is a spike from so many robust standard
    deviations above the median of its last `window` good steps (Iglewicz & Hoaglin 1993: median and median absolute
    deviation, which the spikes themselves do not move); None: only numbers that are not finite are bad.
    history: good losses of each language id; part of a checkpoint, so a resumed run judges alike.
    """

    policy: str = "stop"
    spike_z: float | None = None
    window: int = 128
    history: dict[int, list[float]] = field(default_factory=dict)

    @property
    def at_once(self) -> bool:
        """Whether a step is judged before its update is applied: the price is waiting for the device every step."""
        return self.policy == "skip"

    def judge(self, row: StepLosses, float16: bool = False) -> BadStep | None:
        """What is wrong with a step, or None: then its losses join the history.

        float16: a gradient that is not finite is an overflow, which the loss scale deals with.
        """
        broken = tuple(slot for slot, loss in enumerate(row.losses) if not math.isfinite(loss))
        if broken:
            return BadStep(row.step, f"the loss of {_slots(broken)} is not finite", broken)
        if not float16 and not math.isfinite(row.grad_norm):
            return BadStep(row.step, f"the gradient is not finite (norm {row.grad_norm})")
        means = row.by_language()
        for language, loss in means.items():
            if self.spike_z is not None and (z := robust_z(loss, self.history.get(language, []))) > self.spike_z:
                worst = [s for s, lang in enumerate(row.languages) if lang == language]
                worst.sort(key=lambda slot: -row.losses[slot])
                median = statistics.median(self.history[language])
                reason = f"loss spike: {loss:.4g} where the last {len(self.history[language])} good steps have a median of {median:.4g}"
                return BadStep(
                    row.step, f"{reason} ({z:.1f} robust deviations, allowed {self.spike_z:g})", tuple(worst)
                )
        if self.spike_z is not None:
            for language, loss in means.items():
                self.history[language] = [*self.history.get(language, []), loss][-self.window :]
        return None


def robust_z(value: float, history: Sequence[float]) -> float:
    """Deviations of `value` above the median of `history`; 0 where that is too short to tell.

    The deviation is at least a thousandth of the median, so that a history without any spread tells no spikes of rounding.
    """
    if len(history) < LEAST:
        return 0.0
    median = statistics.median(history)
    deviation = NORMAL * statistics.median(abs(x - median) for x in history)
    return (value - median) / max(deviation, 1e-3 * abs(median), 1e-12)


def _slots(numbers: Sequence[int]) -> str:
    return f"slot{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
