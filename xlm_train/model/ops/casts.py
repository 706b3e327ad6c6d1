"""Weights in the low precision of autocast, cast once a step.

Each slot of a step would cast all weights again, and a cast of the vocabulary's matrix reads 265 MB at the real shape.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

_shared: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] | None = None  # by address: weight, its cast


@contextlib.contextmanager
def shared_casts() -> Iterator[None]:
    """Let `cast` give the same tensor for the same weight. Weights must not change inside before their last use."""
    global _shared
    if _shared is not None:
        yield
        return
    _shared = {}
    try:
        yield
    finally:
        _shared = None


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in another dtype; no gradient flows back."""
    if weight.dtype == dtype or _shared is None:
        return weight.to(dtype)
    key = weight.data_ptr(), dtype
    if key not in _shared:
        with torch.inference_mode(False):  # a training pass takes it too
            _shared[key] = weight, weight.detach().to(dtype)  # with the weight: its address stays its own
    return _shared[key][1]
