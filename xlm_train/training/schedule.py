"""Learning rate of the k-th update (k = 0, 1, ...): pure functions of k.

A schedule has no state: a resumed run's rate follows from its update count. Configs bind the other arguments.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

START = 1e-7  # the original's warm-up begins here, not at 0


def constant(update: int, peak: float, warmup_updates: int = 0) -> float:
    """Keep the rate at `peak`, after an optional linear warm-up.

    Args:
        update: number of the update, from 0.
        peak: the rate.
        warmup_updates: updates of the warm-up from 1e-7.

    Source: without warm-up, the original's `adam,lr=...`.
    """
    return _warm_up(update, peak, warmup_updates) if update < warmup_updates else peak


def inverse_sqrt(update: int, peak: float, warmup_updates: int = 4000) -> float:
    """Warm up linearly from 1e-7 to `peak`, then decay as peak * sqrt(warmup_updates / update).

    Args:
        update: number of the update, from 0.
        peak: the highest rate, reached after the warm-up.
        warmup_updates: updates of the warm-up, at least 1: the decay is measured by it.

    Raises:
        ValueError: there is no warm-up.

    Source: AdamInverseSqrtWithWarmup in src/optim.py of the original (`adam_inverse_sqrt`).
    """
    if warmup_updates < 1:
        raise ValueError(
            f"warmup_updates={warmup_updates}: must be at least 1: the decay begins at the end of the warm-up"
        )
    if update < warmup_updates:
        return _warm_up(update, peak, warmup_updates)
    return peak * warmup_updates**0.5 * update**-0.5


def cosine(update: int, peak: float, warmup_updates: int, total_updates: int, final: float = 0.0) -> float:
    """Warm up linearly from 1e-7 to `peak`, then go down half a cosine to `final`.

    For runs whose length is known beforehand, such as the demo.

    Args:
        update: number of the update, from 0.
        peak: the highest rate, reached after the warm-up.
        warmup_updates: updates of the warm-up.
        total_updates: updates until `final` is reached; the rate stays there.
        final: the lowest rate.

    Source: Loshchilov & Hutter 2017, without restarts.
    """
    if update < warmup_updates:
        return _warm_up(update, peak, warmup_updates)
    done = min(1.0, (update - warmup_updates) / max(1, total_updates - warmup_updates))
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * done))


def unwrapped(schedule: Callable[[int], float]) -> Callable[[int], float]:
    """Bind a schedule's arguments without Hydra, whose partial objects examine their target at each call: 0.4 ms a step.

    Args:
        schedule: update number -> rate, as Hydra instantiates it.
    """
    if isinstance(schedule, functools.partial):
        return functools.partial(schedule.func, *schedule.args, **schedule.keywords)
    return schedule


def _warm_up(update: int, peak: float, warmup_updates: int) -> float:
    return START + update * ((peak - START) / warmup_updates)  # in this order: equal to the original to the last bit
