"""A run that cannot fit into memory: refused before its first step, warned of, or named when memory has run out."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import command, process_environment
from xlm_train.config.train import from_resolved
from xlm_train.plan.fit import MARGIN, compare
from xlm_train.plan.memory import parameter_shapes, peak_memory, setting_of
from xlm_train.runtime.errors import OutOfMemory
from xlm_train.runtime.memory import Memory, is_out_of_memory, memory_of

GB = 1e9


@pytest.fixture
def config(compose: Callable[..., dict[str, Any]], corpus_folder: Path, tmp_path: Path) -> dict[str, Any]:
    words = [f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "run_name=fit", "trainer.precision=32-true"]
    return compose("train", "experiment=demo", *words)


@pytest.mark.parametrize(
    ("sharding", "divided"), [("zero", ["optimizer"]), ("fsdp", ["weights", "gradients", "optimizer"])]
)
def test_what_processes_divide_is_counted_once(
    sharding: str, divided: list[str], config: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    shape = from_resolved(config).model.shape(2000, 2)
    count = sum(torch.Size(size).numel() for size in parameter_shapes(shape).values())
    parts = peak_memory(shape, count, setting_of(config, 4, gpu=True))
    config["trainer"] |= {"devices": 4, "sharding": sharding}
    enough = sum(parts.values()) - 0.75 * sum(parts[name] for name in divided)
    for free, warned in ((enough + 1, False), (enough - 1, True)):
        compare(config, shape, Memory(free=free, most=10 * enough), gpu=True)
        assert ("memory may run out" in capfd.readouterr().err) is warned


def test_what_is_predicted_is_compared_with_what_is_free(
    config: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    shape = from_resolved(config).model.shape(2000, 2)
    count = sum(torch.Size(size).numel() for size in parameter_shapes(shape).values())
    parts = peak_memory(shape, count, setting_of(config, 1, gpu=False))
    peak, holes = sum(parts.values()), parts["holes in the heap"]

    compare(config, shape, Memory(free=peak, most=peak), gpu=False)
    assert capfd.readouterr().err == ""
    compare(config, shape, Memory(free=peak - 1, most=(peak - holes) / MARGIN), gpu=False)
    told = capfd.readouterr().err
    assert told.startswith("warning: memory may run out: this run takes about 0.")
    assert "data.slot_streams=4 data.slots=4 (as many tokens a step); model.recompute=true" in told
    with pytest.raises(OutOfMemory, match=r"cannot fit into memory: it takes about 0\.\d GB \(slots of 8 streams"):
        compare(config, shape, Memory(free=peak, most=(peak - holes - 1e6) / MARGIN), gpu=False)

    config["trainer"]["devices"] = 2  # which share the machine, and each has one slot
    with pytest.raises(OutOfMemory):
        compare(config, shape, Memory(free=peak, most=peak / 2), gpu=False)
    compare(config, shape, Memory(free=peak + GB, most=peak + GB), gpu=True)  # of each GPU


def test_moments_of_an_unknown_optimizer_refuse_nothing(config: dict[str, Any]) -> None:
    shape = from_resolved(config).model.shape(2000, 2)
    count = sum(torch.Size(size).numel() for size in parameter_shapes(shape).values())
    parts = peak_memory(shape, count, setting_of(config, 1, gpu=False))
    most = (sum(parts.values()) - parts["holes in the heap"] - parts["optimizer"]) / MARGIN + 1
    memory = Memory(free=1e12, most=most)
    with pytest.raises(OutOfMemory):
        compare(config, shape, memory, gpu=False)
    config["optimizer"] = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    compare(config, shape, memory, gpu=False)


def test_slots_of_pairs_are_not_taken_for_windows(
    config: dict[str, Any], compose: Callable[..., dict[str, Any]]
) -> None:
    shape = from_resolved(config).model.shape(2000, 2)
    config["data"] |= {"slot_streams": 10**7, "bptt": 256}  # which translation language modelling does not read
    config["objective"] = compose("train", "objective=mlm_tlm", "run_name=fit", "data.path=.")["objective"]
    with pytest.raises(OutOfMemory, match=r"slots of 10000000 streams x 256 tokens"):
        compare(config, shape, Memory(free=1e12, most=1e12), gpu=False)
    config["objective"] = config["objective"]["parts"]["tlm"]
    setting = setting_of(config, 1, gpu=False)
    assert (setting.streams, setting.positions) == (9, 204)  # of 2,000 tokens
    compare(config, shape, Memory(free=1e12, most=1e12), gpu=False)
    with pytest.raises(
        OutOfMemory, match=r"slots of 2,000 tokens in pairs in .* data.tokens_per_slot=1000 data.slots=4 "
    ):
        compare(config, shape, Memory(free=1e12, most=1e6), gpu=False)


def test_a_run_that_cannot_fit_is_refused_at_once(corpus_folder: Path, tmp_path: Path) -> None:
    words = [
        "experiment=demo",
        f"data.path={corpus_folder}",
        f"paths.runs={tmp_path}",
        "run_name=large",
        "trainer.precision=32-true",
    ]
    told = command(
        "xlm_train.commands.train", *words, "data.bptt=10000", "model.max_positions=10000", "data.slot_streams=99999",
        status=71,
    ).stderr  # fmt: skip
    assert told.startswith("xlm-train: error: this run cannot fit into memory: it takes about ")
    assert "slots of 99999 streams x 10,000 tokens in 32-true, most of it for activations of one slot" in told
    assert "data.slot_streams=33333 data.slots=6 (as many tokens a step)" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "large").exists()


def test_a_run_out_of_memory_says_where_and_what_helps(corpus_folder: Path, tmp_path: Path) -> None:
    """The address space is limited: the allocation fails in the middle of a step."""
    words = ["experiment=demo", f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "run_name=short"]
    words += ["trainer.precision=32-true", "data.bptt=3000", "model.max_positions=3000", "trainer.max_steps=2"]
    result = subprocess.run(
        [sys.executable, "-m", "xlm_train.commands.train", *words],
        capture_output=True, text=True, env=process_environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 * 10**9, 3 * 10**9)),
    )  # fmt: skip
    assert result.returncode == 71, result.stderr
    last = result.stderr.splitlines()[-1]
    assert re.match(
        r"xlm-train: error: out of memory at step 1, with slots of 8 streams x 3,000 tokens in 32-true"
        r" \(asked for [\d.]+ [MG]B more\)\. Less",
        last,
    ), last
    assert "Less is taken by: data.slot_streams=4 data.slots=4" in last
    assert "Traceback" not in result.stderr
    status = json.loads((tmp_path / "short/status.json").read_text())
    assert status["status"] == "failed"
    assert status["error"].startswith("out of memory at step 1")


def test_only_a_lack_of_memory_is_called_that() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    with pytest.raises(RuntimeError) as error:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(error.value)


def test_memory_is_that_of_the_machine() -> None:
    memory = memory_of(torch.device("cpu"))
    assert 0 < memory.free <= memory.most
