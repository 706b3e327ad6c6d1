"""The GPU benchmark: its decisions at hand-computed points, its link test with real processes, the whole tool on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_machine, gpu_step
from benchmarks.gpu_links import measure_devices, stragglers
from benchmarks.gpu_machine import Failed
from benchmarks.gpu_runs import allocated_gb
from benchmarks.gpu_work import Work
from tests.conftest import PATIENCE, REPOSITORY
from tests.launch.conftest import LAUNCH
from xlm_train.model.transformer import ModelShape
from xlm_train.plan.memory import Setting, peak_memory

PYPI_2_10 = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
PYPI_2_11 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (PYPI_2_10, (7, 0), True),
        (PYPI_2_11, (7, 0), False),
        (PYPI_2_11, (8, 9), True),  # machine code for 8.6 runs on 8.9
        (["sm_86"], (8, 0), False),  # but not on an earlier one
        (["sm_80"], (9, 0), False),  # nor on another generation
        (["compute_80"], (9, 0), True),  # which PTX does
        (["sm_90a"], (9, 0), True),
        (["compute_90a"], (10, 0), False),  # that suffix means: this device only
        (PYPI_2_11, (10, 3), True),
        ([], (9, 0), False),
    ],
)
def test_whether_a_wheel_covers_a_device(architectures: list[str], capability: tuple[int, int], expected: bool) -> None:
    assert gpu_machine.covers(architectures, capability) is expected


def test_what_fixes_a_wheel_without_volta() -> None:
    text = gpu_machine.missing_code("Tesla V100-SXM2-32GB", (7, 0))
    assert "sm_70" in text
    assert "pip install --force-reinstall 'torch<2.11'" in text
    assert "--index-url https://download.pytorch.org/whl/cu126" in text


def test_stragglers_are_those_below_the_median() -> None:
    assert stragglers({"cuda:0": 100.0, "cuda:1": 101.0, "cuda:2": 89.0, "cuda:3": 99.0}) == ["cuda:2"]  # median 99.5
    assert stragglers({"cuda:0": 100.0, "cuda:1": 91.0, "cuda:2": 100.0}) == []
    assert stragglers({}) == []


def test_the_kernel_is_named_by_the_operator_that_ran() -> None:
    assert (
        gpu_step.kernel_named({"aten::linear", "aten::_scaled_dot_product_efficient_attention"}) == "memory-efficient"
    )
    assert gpu_step.kernel_named({"aten::_scaled_dot_product_flash_attention"}) == "flash"
    assert "blocks" in gpu_step.kernel_named({"aten::linear"})


@pytest.mark.parametrize(
    ("name", "cluster", "share"),
    [
        ("Tesla V100-SXM2-32GB", "v100_1", 0.50),
        ("NVIDIA A100-SXM4-80GB", "a100_1", 0.60),
        ("NVIDIA H100 80GB HBM3", "h100_1", 0.45),
        ("NVIDIA H200", "h200_1", None),
        ("Tesla T4", "t4_1", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090_1", None),
    ],
)
def test_goals_by_device(name: str, cluster: str, share: float | None) -> None:
    goal = gpu_machine.goal_of(name)
    assert goal is not None
    assert (goal.cluster, goal.share) == (cluster, share)
    assert (gpu_machine.config_folder() / "cluster" / f"{cluster}.yaml").is_file()


def test_no_goal_for_an_unknown_device() -> None:
    assert gpu_machine.goal_of("NVIDIA GeForce RTX 2080") is None


@pytest.mark.parametrize(
    ("trial", "precision", "slots", "streams"),
    [
        ("16-mixed, 1 slots of 64 streams", "16-mixed", 1, 64),
        ("bf16-mixed, 1 slots of 64 streams", "bf16-mixed", 1, 64),
        ("16-mixed, 4 slots of 16 streams", "16-mixed", 4, 16),
    ],
)
def test_planned_memory_is_that_of_the_measured_runs(trial: str, precision: str, slots: int, streams: int) -> None:
    """CUDA's context, which the plan assumes, is outside the peak that torch counts."""
    results = json.loads((REPOSITORY / "benchmarks/measured/2026-11-26_h200.json").read_text())["second"]
    measured = results["plan"][trial]["memory_gb"][1]
    setting = Setting(
        streams=streams, positions=255, precision=precision, gpu=True, recompute=False, optimizer="torch.optim.AdamW",
        processes=1, compression=None, slots=slots,
    )  # fmt: skip
    parts = peak_memory(ModelShape(n_words=64699, vocab_multiple=8), 142_422_203, setting)
    assert allocated_gb(parts) / 1e9 == pytest.approx(measured, rel=0.05)
    assert sum(parts.values()) / 1e9 > 1.15 * measured


def test_a_part_that_fails_or_hangs_is_told(tmp_path: Path) -> None:
    """Each in a process of its own: an error, a death, a hang with a process it started, and a result."""

    def fails(work: Work) -> None:
        raise Failed("no such luck")

    def hangs(work: Work) -> None:
        child = subprocess.Popen(["sleep", "600"])
        (work.folder / "pid").write_text(str(child.pid))
        child.wait()

    work = Work(gpu=False, folder=tmp_path, seen={})
    assert gpu.in_child(lambda work: {"speed": 1.5}, work, 60)["result"] == {"speed": 1.5}
    assert gpu.in_child(fails, work, 60)["failed"] == "no such luck"
    assert "ZeroDivisionError" in gpu.in_child(lambda work: 1 / 0, work, 60)["failed"]
    assert "status 3" in gpu.in_child(lambda work: os._exit(3), work, 60)["failed"]
    found = gpu.in_child(hangs, work, 10)
    assert found["failed"] == "not done after 10 s"
    assert found["seconds"] < 300  # not the 600 of what hangs
    deadline = time.monotonic() + PATIENCE
    while is_running((tmp_path / "pid").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process: str) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--only", "step,nonsense"])
    with pytest.raises(SystemExit) as error:
        gpu.main()
    assert error.value.code == 2
    assert "no part nonsense: there are devices, step" in capsys.readouterr().err


@pytest.mark.slow
def test_devices_and_links_by_themselves() -> None:
    """Two processes in the place of devices."""
    found = measure_devices(2, "cpu")
    assert set(found["matmul_tflops"]) == {"cpu:0", "cpu:1"}
    assert all(speed > 0 for speed in found["matmul_tflops"].values())
    assert set(found["pair_gb_per_s"]) == {"0-1"}
    assert found["pair_gb_per_s"]["0-1"] > 0
    assert found["allreduce_gb_per_s"] > 0


@pytest.mark.slow
def test_the_tool_on_the_cpu(environment: dict[str, str], tmp_path: Path) -> None:
    """The parts that many others are made of; what a part needs and nobody has made yet it makes itself."""
    parts = "resume,step,compare,kernels,repeats,waits,plan,rollback,eval,export,mlm"
    words = ["--json", "sent.json", "--only", parts, "--seconds", "1500"]
    subprocess.run([str(LAUNCH / "bench_gpu.sh"), *words], env=environment, cwd=tmp_path, check=True, timeout=1800)
    results = json.loads((tmp_path / "sent.json").read_text())
    assert results["torch"]
    assert results["date"].startswith("20")
    assert "nothing of this says anything about a GPU" in results["shape"]
    step = results["step"]
    assert step["tokens_per_second"] > 0
    assert step["loss"][-1] < step["loss"][0]  # the words have frequencies to learn
    assert step["seconds_per_save"]
    assert results["resume"]["bit_identical"] is True
    assert 40 <= results["resume"]["killed_at_step"] < 60
    assert results["compare"]["variants"]["ours, 4 slots"]["times_as_long_as_ours"] == 1.0
    assert results["repeats"]["as it is"]["same"] is True
    assert results["waits"]["32-true"]["syncs"] == 0
    assert results["plan"][step["trial"]]["memory_gb"][1] == step["peak_memory_gb"]
    assert results["rollback"]["steps"] == 30
    assert results["rollback"]["skipped_steps"] == 1
    assert results["eval"]["cpu"]["perplexity"] < 500
    assert max(results["export"]["largest_score_difference"].values()) < 1e-5
