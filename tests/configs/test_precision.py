"""`trainer.precision=auto`: settled before anything else sees it, and kept by a run that has begun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import REPOSITORY
from xlm_train.config import precision, rules
from xlm_train.config.precision import settle_precision
from xlm_train.config.train import IDENTITY, problems_of, read_train_config
from xlm_train.plan.settings import with_planned_precision
from xlm_train.runtime.errors import ConfigError

BASE = ["experiment=smoke", "run_name=x", "trainer.precision=auto"]


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Say whether the processor multiplies bfloat16."""

    def say(bfloat16: bool) -> None:
        for module in (precision, rules):
            monkeypatch.setattr(module, "cpu_multiplies_bfloat16", lambda: bfloat16)

    return say


def read(compose: Callable[..., dict[str, Any]], *words: str) -> Any:
    return read_train_config(OmegaConf.create(compose("train", *BASE, *words)))


def begun(folder: Path, stored: str) -> None:
    """An earlier start of run x that left a checkpoint."""
    (folder / "x/checkpoints").mkdir(parents=True)
    (folder / "x/checkpoints/step-00000010.pt").touch()
    (folder / "x/config.yaml").write_text(f"trainer: {{precision: {stored}}}\n")


@pytest.mark.parametrize(("bfloat16", "chosen"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_cpu_takes_what_is_faster_and_says_so(
    bfloat16: bool, chosen: str, processor: Callable[[bool], None], compose: Callable[..., dict[str, Any]],
    corpus_folder: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    processor(bfloat16)
    config = read(compose, f"data.path={corpus_folder}")
    assert "trainer.precision" in IDENTITY
    assert config.trainer.precision == config.resolved["trainer"]["precision"] == chosen
    assert f"trainer.precision=auto: {chosen}, as this processor" in capsys.readouterr().err


def test_a_run_that_has_begun_keeps_its_precision(
    processor: Callable[[bool], None], compose: Callable[..., dict[str, Any]], corpus_folder: Path, tmp_path: Path
) -> None:
    """Also on another processor; one that cannot do it refuses, with the reason."""
    begun(tmp_path / "old", "32-true")
    begun(tmp_path / "new", "bf16-mixed")
    words = f"data.path={corpus_folder}"
    processor(True)
    assert read(compose, words, f"paths.runs={tmp_path}/old").trainer.precision == "32-true"
    assert read(compose, words, f"paths.runs={tmp_path}/new").trainer.precision == "bf16-mixed"
    processor(False)
    with pytest.raises(ConfigError, match="bf16-mixed: this processor has neither AVX512_BF16 nor AMX"):
        read(compose, words, f"paths.runs={tmp_path}/new")
    for left in (tmp_path / "new/x/checkpoints").iterdir():
        left.unlink()  # what left no checkpoint decides nothing
    assert read(compose, words, f"paths.runs={tmp_path}/new").trainer.precision == "32-true"


def test_bfloat16_is_refused_where_it_is_emulated(
    processor: Callable[[bool], None], compose: Callable[..., dict[str, Any]], corpus_folder: Path
) -> None:
    words = ["experiment=smoke", f"data.path={corpus_folder}", "run_name=x", "trainer.precision=bf16-mixed"]
    config = OmegaConf.create(compose("train", *words))
    processor(True)
    assert problems_of(config) == []
    processor(False)
    (problem,) = problems_of(config)
    assert "slower than float32; trainer.precision=32-true" in problem


@pytest.mark.parametrize(("capability", "chosen"), [((7, 0), "16-mixed"), ((8, 0), "bf16-mixed")])
def test_gpus(capability: tuple[int, int], chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X")
    values: dict[str, Any] = {"trainer": {"precision": "auto", "accelerator": "auto"}}
    assert settle_precision(values) == f"trainer.precision=auto: {chosen}, the fastest on NVIDIA X"
    assert values["trainer"]["precision"] == chosen


@pytest.mark.parametrize(
    ("cluster", "chosen"), [("v100_8", "16-mixed"), ("a100_8", "bf16-mixed"), ("h100_8", "bf16-mixed"), ("local", "32-true")]
)  # fmt: skip
def test_plans_take_the_planned_devices(
    cluster: str, chosen: str, processor: Callable[[bool], None], compose: Callable[..., dict[str, Any]]
) -> None:
    processor(False)
    values = with_planned_precision(compose("plan", "trainer.precision=auto", f"cluster={cluster}"))
    assert values["trainer"]["precision"] == chosen


def test_the_default_is_auto() -> None:
    assert OmegaConf.load(REPOSITORY / "configs/trainer/default.yaml").precision == "auto"
