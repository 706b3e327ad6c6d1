"""The GPU benchmark: its decisions at hand-computed points, its link test with real processes, the whole tool on the CPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_links import measure_devices, stragglers
from tests.launch.conftest import LAUNCH

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
    assert gpu.covers(architectures, capability) is expected


def test_what_fixes_a_wheel_without_volta() -> None:
    text = gpu.missing_code("Tesla V100-SXM2-32GB", (7, 0))
    assert "sm_70" in text
    assert "pip install --force-reinstall 'torch<2.11'" in text
    assert "--index-url https://download.pytorch.org/whl/cu126" in text


def test_stragglers_are_those_below_the_median() -> None:
    assert stragglers({"cuda:0": 100.0, "cuda:1": 101.0, "cuda:2": 89.0, "cuda:3": 99.0}) == ["cuda:2"]  # median 99.5
    assert stragglers({"cuda:0": 100.0, "cuda:1": 91.0, "cuda:2": 100.0}) == []
    assert stragglers({}) == []


def test_the_kernel_is_named_by_the_operator_that_ran() -> None:
    assert gpu.kernel_named({"aten::linear", "aten::_scaled_dot_product_efficient_attention"}) == "memory-efficient"
    assert gpu.kernel_named({"aten::_scaled_dot_product_flash_attention"}) == "flash"
    assert "blocks" in gpu.attention_kernel("32-true", gpu=False)


@pytest.mark.parametrize(
    ("name", "cluster", "share"),
    [
        ("Tesla V100-SXM2-32GB", "v100_8", 0.50),
        ("NVIDIA A100-SXM4-80GB", "a100_8", 0.60),
        ("NVIDIA H100 80GB HBM3", "h100_8", 0.45),
        ("NVIDIA H200", "h100_8", None),
    ],
)
def test_goals_by_device(name: str, cluster: str, share: float | None) -> None:
    goal = gpu.goal_of(name)
    assert goal is not None
    assert (goal.cluster, goal.share) == (cluster, share)
    assert (gpu.config_folder() / "cluster" / f"{cluster}.yaml").is_file()


def test_no_goal_for_an_unknown_device() -> None:
    assert gpu.goal_of("NVIDIA GeForce RTX 4090") is None


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
def test_the_whole_tool_on_the_cpu(environment: dict[str, str], tmp_path: Path) -> None:
    subprocess.run(
        [str(LAUNCH / "bench_gpu.sh"), "--json", "sent.json"], env=environment, cwd=tmp_path, check=True, timeout=400
    )
    results = json.loads((tmp_path / "sent.json").read_text())
    assert results["torch"]
    assert results["date"].startswith("20")
    assert "nothing of this says anything about a GPU" in results["shape"]
    (step,) = results["steps"]
    assert step["tokens_per_second"] > 0
    assert step["tflops"] == pytest.approx(step["tokens_per_second"] * step["gflop_per_token"] / 1e3)
    assert step["loss"][1] < step["loss"][0]  # the words have frequencies to learn
    assert results["resume"]["bit_identical"] is True
    assert 15 <= results["resume"]["killed_at_step"] < 30
