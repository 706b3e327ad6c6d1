"""What this machine's GPUs do with the model: the wheel, the kernels, every device and link, the step, and a resume.

    launch/bench_gpu.sh [--json gpu.json]

The step is measured by `xlm-train` itself, at the real shape on one GPU, on random tokens with the frequencies of words.
Without a GPU everything runs at a small shape on the CPU: that shows that the tool works, and nothing of a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_links import STRAGGLER, measure_devices, stragglers
from benchmarks.start import make_corpus
from xlm_train.config.overrides import config_folder
from xlm_train.model.flops import flops_per_token
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime import checkpoint_file
from xlm_train.training.loggers import read_metrics

REPOSITORY = Path(__file__).resolve().parent.parent
CUDA_INDEX = "https://download.pytorch.org/whl/cu126"
TOKENS = 1_000_000  # a language


@dataclass(frozen=True)
class Goal:
    """cluster: the file of configs/cluster with the device's peak. share: of that peak which one GPU is to reach."""

    cluster: str
    share: float | None


GOALS = {
    "V100": Goal("v100_8", 0.50),
    "A100": Goal("a100_8", 0.60),
    "H100": Goal("h100_8", 0.45),
    "H200": Goal("h100_8", None),
}


@dataclass(frozen=True)
class Scale:
    """What is run. overrides: of xlm-train. n_words: vocabulary of the corpus. trials: (precision, slots, streams)."""

    overrides: tuple[str, ...]
    n_words: int
    steps: int
    trials: tuple[tuple[str, int, int], ...]


ONE_GPU = ("experiment=clm_ende_1024", "trainer.devices=1", "trainer.nodes=1")
REAL = Scale(ONE_GPU, 64_699, 60, (("16-mixed", 4, 16), ("16-mixed", 1, 64), ("bf16-mixed", 4, 16)))
SMALL = Scale(("experiment=smoke", "trainer.accelerator=cpu"), 500, 30, (("32-true", 4, 4),))


class Failed(Exception):
    """The benchmark cannot go on; the message says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the results go: send this file back")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **versions()}
    show("machine", results)
    try:
        check_wheel()
        gpu = torch.cuda.is_available()
        scale = REAL if gpu else SMALL
        results["shape"] = (
            "the real one" if gpu else "a small one, on the CPU: nothing of this says anything about a GPU"
        )
        devices = measure_devices(torch.cuda.device_count() if gpu else 2, "cuda" if gpu else "cpu")
        devices["stragglers"] = [
            *stragglers(devices["matmul_tflops"]),
            *(f"link {pair}" for pair in stragglers(devices["pair_gb_per_s"])),
        ]
        results["devices"] = devices
        show("each device and link by itself", devices)
        for name in devices["stragglers"]:
            print(f"  STRAGGLER: {name} is more than {STRAGGLER:.0%} slower than the median")
        if any(name.startswith("link") for name in devices["stragglers"]):
            print("  `nvidia-smi topo -m` says whether these two are joined like the others at all")
        results["attention_kernel"] = {
            p: attention_kernel(p, gpu) for p in sorted({t[0] for t in scale.trials}) if runs(p)
        }
        show("attention kernel", results["attention_kernel"])
        with tempfile.TemporaryDirectory() as folder:
            corpus = make_text(Path(folder), scale.n_words)
            results["steps"] = [step_speed(scale, trial, corpus, Path(folder)) for trial in scale.trials]
            results["goal"] = compare_with_goal(results["steps"])
            show("against the goal", results["goal"])
            results["resume"] = resume_is_exact(scale, corpus, Path(folder))
            show("killed and resumed", results["resume"])
    except Failed as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        return 2
    arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {arguments.json}: please send it back")
    return 0


def show(title: str, values: Mapping[str, Any]) -> None:
    print(f"\n{title}", flush=True)
    for name, value in values.items():
        print(f"  {name:24} {value:.4g}" if isinstance(value, float) else f"  {name:24} {value}", flush=True)


def versions() -> dict[str, Any]:
    """Everything a reader of the figures must know about the machine."""
    gpu = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if gpu else None,
        "driver": nvidia_smi("driver_version"),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "compute_capability": [torch.cuda.get_device_capability(number) for number in range(torch.cuda.device_count())],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def nvidia_smi(field: str) -> list[str]:
    """One field of every GPU that the driver sees; nothing where there is no driver."""
    try:
        words = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.split("\n")[:-1]
    except (OSError, subprocess.SubprocessError):
        return []


def check_wheel() -> None:
    """Raises Failed, with the line that fixes it, where the installed PyTorch has no code for this machine's GPUs."""
    seen = nvidia_smi("name")
    if seen and not torch.cuda.is_available():
        raise Failed(
            f"the driver sees {', '.join(seen)}, PyTorch {torch.__version__} sees no GPU: a wheel for CPUs, or a driver older than"
            f" its CUDA {torch.version.cuda}. pip install --force-reinstall 'torch<2.15' --index-url {CUDA_INDEX}"
        )
    for number in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(number)
        if not covers(torch.cuda.get_arch_list(), capability):
            raise Failed(missing_code(torch.cuda.get_device_name(number), capability))


def covers(architectures: Collection[str], capability: tuple[int, int]) -> bool:
    """Whether a wheel built for `architectures` (torch.cuda.get_arch_list()) runs on a device.

    sm_XY holds machine code for compute capability X.Y and later ones of the same X; compute_XY is compiled on the
    spot for any later device.
    """
    for name in architectures:
        if match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name):
            kind, version, special = match[1], (int(match[2]), int(match[3])), match[4]
            if version == capability or (
                not special and version < capability and (kind == "compute" or version[0] == capability[0])
            ):
                return True
    return False


def missing_code(name: str, capability: tuple[int, int]) -> str:
    """The message, with what to install, where the wheel has no code for a device."""
    what = f"PyTorch {torch.__version__} has no code for {name} (sm_{capability[0]}{capability[1]})"
    if capability == (7, 0):
        return (
            f"{what}: PyPI's wheels have it up to 2.10, those for CUDA 12.6 up to 2.14. pip install --force-reinstall 'torch<2.11'"
            f"   or   pip install --force-reinstall 'torch<2.15' --index-url {CUDA_INDEX}"
        )
    return f"{what}: see https://pytorch.org/get-started/locally for a wheel that has"


def runs(precision: str) -> bool:
    """bfloat16 only where the device computes in it (compute capability 8.0); before, PyTorch emulates it."""
    return precision != "bf16-mixed" or torch.cuda.get_device_capability() >= (8, 0)


def attention_kernel(precision: str, gpu: bool) -> str:
    """Which kernel a training forward pass of the model takes for attention, by the operators that ran."""
    shape = ModelShape(n_words=64, n_layers=1, dim=1024 if gpu else 64)
    device = torch.device("cuda" if gpu else "cpu")
    dtype = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(precision)
    model, tokens = XLM(shape).to(device), torch.zeros(16 if gpu else 2, 255, dtype=torch.int64, device=device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None), torch.profiler.profile() as profile:
        model(tokens, 0)
    return kernel_named({event.key for event in profile.key_averages()})


def kernel_named(operators: Collection[str]) -> str:
    """The attention kernel that the names of PyTorch operators stand for."""
    names = {
        "_scaled_dot_product_flash_attention": "flash",
        "_scaled_dot_product_cudnn_attention": "cuDNN",
        "_scaled_dot_product_efficient_attention": "memory-efficient",
        "_scaled_dot_product_flash_attention_for_cpu": "flash, on the CPU",
        "_scaled_dot_product_attention_math": "math (whole squares of scores)",
    }
    found = [kernel for operator, kernel in names.items() if f"aten::{operator}" in operators]
    return found[0] if found else "our own, in blocks (CPU, float32)"


def make_text(folder: Path, n_words: int) -> Path:
    """A corpus of random words as frequent as Zipf's law has them, in sentences of 25 tokens."""
    corpus = make_corpus(folder / "corpus", TOKENS)
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["vocabulary"]["entries"] = n_words
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    frequency = 1 / np.arange(1, n_words - 14 + 1)
    generator = np.random.default_rng(0)
    for language in manifest["languages"]:
        words = 14 + generator.choice(n_words - 14, TOKENS, p=frequency / frequency.sum())
        words[24::25] = 1
        np.lib.format.open_memmap(corpus / f"train.{language}.npy", mode="r+")[:] = words
        starts = np.lib.format.open_memmap(corpus / f"train.{language}.idx.npy", mode="r+")
        starts[:] = 25 * np.arange(len(starts))
    return corpus


def training(scale: Scale, corpus: Path, runs_folder: Path, name: str, *more: str) -> subprocess.Popen[str]:
    """Start xlm-train in a process of its own; its output goes to the run's .log."""
    words = [
        *scale.overrides, f"data.path={corpus}", f"paths.runs={runs_folder}", f"run_name={name}", f"trainer.max_steps={scale.steps}",
        "callbacks.metrics.every_n_steps=5", *more,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with open(runs_folder / f"{name}.log", "a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "xlm_train.commands.train", *words],
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
        )


def step_speed(scale: Scale, trial: tuple[str, int, int], corpus: Path, folder: Path) -> dict[str, Any]:
    """Training steps of one device in one precision: speed, memory, loss and loss scale as xlm-train reports them."""
    precision, slots, streams = trial
    title = f"{precision}, {slots} slots of {streams} streams"
    name = f"{precision}-{slots}x{streams}"
    words = [f"trainer.precision={precision}", f"data.slots={slots}", f"data.slot_streams={streams}"]
    status = training(
        scale, corpus, folder, name, *words, f"callbacks.checkpointing.every_n_steps={scale.steps}"
    ).wait()
    log = (folder / f"{name}.log").read_text()
    if not runs(precision):
        result: dict[str, Any] = {"trial": title, "refused": status == 2 and "compute capability 8.0" in log}
        show(f"step, {title}", result)
        return result
    if status != 0:
        raise Failed(f"xlm-train ended with status {status} ({title}):\n{log[-3000:]}")
    lines = [line for line in read_metrics(folder / name / "metrics.jsonl") if "train/loss" in line]
    steady = lines[len(lines) // 3 :]  # after kernels are chosen and memory is laid out
    tokens_per_second = statistics.median(line["speed/tokens_per_second"] for line in steady)
    content = checkpoint_file.newest(folder / name / "checkpoints").content
    assert content is not None
    bptt = content["config"]["data"]["bptt"]
    shape = ModelShape(**content["shape"])
    flops = sum(part.total for part in flops_per_token(shape, bptt - 1, recompute=False).values()) * (bptt - 1) / bptt
    result = {
        "trial": title,
        "tokens_per_second": tokens_per_second,
        "gflop_per_token": flops / 1e9,
        "tflops": tokens_per_second * flops / 1e12,
        "peak_memory_gb": max(line["memory/peak_gb"] for line in lines),
        "loss": [lines[0]["train/loss"], lines[-1]["train/loss"]],
        "loss_scale": [line["optim/loss_scale"] for line in lines if "optim/loss_scale" in line],
        "skipped_steps": lines[-1].get("optim/skipped_steps", 0),
    }
    peak = peak_tflops(precision)
    result["mfu"] = None if peak is None else result["tflops"] / peak
    show(f"step, {title}", result)
    return result


def goal_of(device: str) -> Goal | None:
    """The goal for a device of this name, or None where its peak is not known here."""
    return next((goal for name, goal in GOALS.items() if name in device), None)


def peak_tflops(precision: str) -> float | None:
    """Dense peak of the first GPU in this precision, from configs/cluster; None where it is not known."""
    from omegaconf import OmegaConf

    goal = goal_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if goal is None:
        return None
    return OmegaConf.load(config_folder() / "cluster" / f"{goal.cluster}.yaml").peak_tflops.get(precision)


def compare_with_goal(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best trial's share of the peak beside what is aimed for on this device."""
    if not torch.cuda.is_available():
        return {"device": "CPU: no goal"}
    device = torch.cuda.get_device_name()
    goal = goal_of(device)
    if goal is None:
        return {"device": f"{device}: its peak is not known here; tokens/s and TFLOP/s stand above"}
    reached = max(step["mfu"] for step in steps if step.get("mfu") is not None)
    return {
        "device": device,
        "mfu": reached,
        "goal": goal.share if goal.share is not None else "none stated",
        "reached": None if goal.share is None else reached >= goal.share,
    }


def resume_is_exact(scale: Scale, corpus: Path, folder: Path) -> dict[str, Any]:
    """Whether a run that was killed and started again ends with the undisturbed run's weights and moments, bit for bit."""
    precision, slots, streams = scale.trials[0]
    words = [f"trainer.precision={precision}", f"data.slots={slots}", f"data.slot_streams={streams}"]
    words += ["callbacks.checkpointing.every_n_steps=10"]
    for name in ("undisturbed", "undisturbed-again"):
        if training(scale, corpus, folder, name, *words).wait():
            raise Failed(f"xlm-train failed:\n{(folder / f'{name}.log').read_text()[-3000:]}")
    process = training(scale, corpus, folder, "killed", *words)
    killed_at = 0
    while killed_at < scale.steps // 2:
        if process.poll() is not None:
            raise Failed(f"xlm-train ended before it could be killed:\n{(folder / 'killed.log').read_text()[-3000:]}")
        killed_at = max((line["step"] for line in read_metrics(folder / "killed" / "metrics.jsonl")), default=0)
        time.sleep(0.01)
    process.kill()
    process.wait()
    if training(scale, corpus, folder, "killed", *words).wait():
        raise Failed(f"xlm-train did not resume:\n{(folder / 'killed.log').read_text()[-3000:]}")
    reference = weights(folder / "undisturbed")
    return {
        "killed_at_step": killed_at,
        "steps": scale.steps,
        "largest_difference": largest_difference(reference, weights(folder / "killed")),
        "largest_difference_of_two_undisturbed_runs": largest_difference(
            reference, weights(folder / "undisturbed-again")
        ),
        "bit_identical": largest_difference(reference, weights(folder / "killed")) == 0.0,
    }


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Weights and moments of a run's newest checkpoint."""
    content = checkpoint_file.newest(run / "checkpoints").content
    assert content is not None
    view = checkpoint_file.to_view(content)
    moments = {
        f"{number}.{name}": value
        for number, state in view["optimizer"]["state"].items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    return {**view["model"], **moments}


def largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Largest absolute difference of two sets of tensors; 0 means equal bit for bit (but for the sign of zero)."""
    if a.keys() != b.keys():
        raise Failed(f"the checkpoints hold different tensors: {sorted(a.keys() ^ b.keys())}")
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


if __name__ == "__main__":
    sys.exit(main())
