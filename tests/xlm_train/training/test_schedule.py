"""Schedules at points computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xlm_train.training.schedule import constant, cosine, inverse_sqrt


def test_constant() -> None:
    assert constant(0, 1e-4) == constant(10**6, 1e-4) == 1e-4


def test_inverse_sqrt() -> None:
    assert inverse_sqrt(0, 1e-4) == 1e-7
    assert inverse_sqrt(2000, 1e-4) == pytest.approx(1e-7 + 0.5 * (1e-4 - 1e-7))
    assert inverse_sqrt(4000, 1e-4) == pytest.approx(1e-4)
    assert inverse_sqrt(16000, 1e-4) == pytest.approx(5e-5)
    with pytest.raises(ValueError, match="warmup_updates=0: must be at least 1"):
        inverse_sqrt(0, 1e-4, warmup_updates=0)


def test_inverse_sqrt_equals_the_original(shared: Path) -> None:
    log = json.loads((shared / "goldens/train/log.json").read_text())
    rates = [step["lr"] for step in log["steps"]]
    assert len(rates) == 200
    assert [inverse_sqrt(k, 5e-4, warmup_updates=50) for k in range(200)] == rates


def test_cosine() -> None:
    def rate(k: int) -> float:
        return cosine(k, 1e-3, warmup_updates=10, total_updates=110, final=1e-4)

    assert rate(0) == 1e-7
    assert rate(10) == pytest.approx(1e-3)
    assert rate(60) == pytest.approx(5.5e-4)
    assert rate(110) == rate(500) == pytest.approx(1e-4)
