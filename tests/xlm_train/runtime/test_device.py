"""Settings that must be made before torch is loaded."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import command, process_environment
from xlm_train.runtime.device import is_accelerator, limit_openmp_spin, trim_malloc

# OpenMP reads its settings once, when torch loads it: what stands in the environment at that moment counts.
WATCHED = """
import os, runpy, sys

seen = []

def watch(event, arguments):
    if event == "import" and not seen and "gomp" in open("/proc/self/maps").read():
        seen.append("gomp")
        print("mapped", os.environ.get("GOMP_SPINCOUNT"), flush=True)
    if event == "import" and arguments[0] == "torch" and "torch" not in sys.modules:
        print("spins", os.environ.get("GOMP_SPINCOUNT"), flush=True)

sys.addaudithook(watch)
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def spins(module: str, *words: str, **environment: str) -> list[str]:
    """What GOMP_SPINCOUNT was whenever a command began to import torch, and when libgomp was first seen in its memory."""
    result = subprocess.run(
        [sys.executable, "-c", WATCHED, module, *words],
        capture_output=True, text=True, check=True, env=process_environment(**environment),
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert any(line.startswith("mapped ") for line in lines)
    return [line.split(" ")[1] for line in lines if line.startswith(("spins ", "mapped "))]


@pytest.mark.parametrize("environment", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}], ids=["ours", "the user's"])
def test_openmp_is_told_before_torch_is_loaded(
    environment: dict[str, str], corpus_folder: Path, tmp_path: Path
) -> None:
    words = [f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "run_name=x", "trainer.max_steps=1"]
    found = spins("xlm_train.commands.train", "experiment=smoke", *words, **environment)
    assert set(found) == {"None" if environment else "2000"}


def test_openmp_spins_less_on_a_busy_machine(corpus_folder: Path, tmp_path: Path) -> None:
    words = [f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "run_name=x", "trainer.max_steps=1"]
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
        try:
            found = spins("xlm_train.commands.train", "experiment=smoke", *words, OMP_NUM_THREADS="2")
        finally:
            loop.kill()
    assert set(found) == {"200"}


def test_only_real_company_changes_the_spins(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for given, others, wanted in ((None, 0.3, "2000"), (None, 0.9, "200"), ("7", 0.9, "7")):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        if given:
            monkeypatch.setenv("GOMP_SPINCOUNT", given)
        limit_openmp_spin(others)
        assert os.environ["GOMP_SPINCOUNT"] == wanted
        told = capfd.readouterr().err
        assert ("other programs use 0.9 cores" in told) == (wanted == "200")


def test_workers_tell_openmp_too(corpus_folder: Path, tmp_path: Path) -> None:
    words = [f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "run_name=x", "trainer.max_steps=1"]
    config = command("xlm_train.commands.train", "--cfg", "job", "--resolve", "experiment=smoke", *words).stdout
    (tmp_path / "launch.yaml").write_text(config)
    found = spins("xlm_train.commands.worker", str(tmp_path / "launch.yaml"))
    assert set(found) == {"2000"}


def test_a_sweep_tells_openmp_too(corpus_folder: Path, tmp_path: Path) -> None:
    words = [f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "run_name=x", "trainer.max_steps=1"]
    found = spins("xlm_train.commands.train", "-m", "experiment=smoke", *words, "seed=1,2")
    assert set(found) == {"2000"}


@pytest.mark.parametrize(
    ("accelerator", "name", "same"),
    [
        ("V100 SXM2 16 GB", "Tesla V100-SXM2-16GB", True),
        ("A100 SXM4 40 GB", "NVIDIA A100-SXM4-40GB", True),
        ("RTX 4090 24 GB", "NVIDIA GeForce RTX 4090", True),
        ("T4 16 GB", "Tesla T4", True),
        ("CPU", "CPU", True),
        ("V100 SXM2 16 GB", "NVIDIA H200", False),
        ("H100 SXM5 80 GB", "NVIDIA H200", False),
        ("T4 16 GB", "NVIDIA T400", False),
        ("H200 SXM 141 GB", "CPU", False),
    ],
)
def test_a_device_and_a_clusters_name_for_it(accelerator: str, name: str, same: bool) -> None:
    assert is_accelerator(accelerator, name) is same


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    size = 10_000  # too small to be mapped by itself
    blocks = [b"x" * size for _ in range(10_000)]
    last = b"x" * size  # what lies behind them keeps them from going back
    held = resident()
    del blocks
    trim_malloc()
    assert resident() < held - 50_000_000
    assert last
