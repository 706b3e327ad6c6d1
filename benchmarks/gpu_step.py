"""The step itself on one device, in one process: variants in turn, the kernels it runs, whether it repeats itself."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu_machine import peak_tflops, runs
from benchmarks.step import BETAS, CLIP_NORM, EPS, LR, SHAPE, PlainModel
from xlm_train.data.noise import seed_noise
from xlm_train.model.flops import Row, training_flops_per_token
from xlm_train.model.ops import FastOps, PlainOps
from xlm_train.model.ops import linear_cross_entropy as softmax_loss
from xlm_train.model.ops.casts import shared_casts
from xlm_train.model.transformer import XLM, ModelShape

STEPS = 3  # of a turn
ROUNDS = 7  # two on a CPU
SMALL = ModelShape(n_words=500, dim=64, n_layers=2, n_heads=2, ffn_dim=128, max_positions=64)
DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
Step = Callable[[], None]


def place(gpu: bool) -> tuple[torch.device, ModelShape, int, int]:
    """Device, shape, streams and window of the measurements: real on a GPU, small on a CPU."""
    return (torch.device("cuda"), SHAPE, 64, 256) if gpu else (torch.device("cpu"), SMALL, 8, 32)


def windows(shape: ModelShape, streams: int, bptt: int, device: torch.device) -> Tensor:
    """Random tokens."""
    return torch.randint(14, shape.n_words, (streams, bptt), generator=torch.Generator().manual_seed(0)).to(device)


def mixed(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass."""
    return torch.autocast(device.type, dtype=DTYPES.get(precision), enabled=precision in DTYPES)


def ours(
    gpu: bool,
    precision: str,
    slots: int = 1,
    ops: str = "fast",
    change: contextlib.AbstractContextManager[Any] | None = None,
) -> Step:
    """The step of xlm-train without Lightning around it, in bfloat16 or float32 (float16 has a loss scale besides).

    change: entered for each step, to measure one thing otherwise; must be enterable again.
    """
    device, shape, streams, bptt = place(gpu)
    torch.manual_seed(0)
    model = XLM(replace(shape, vocab_multiple=8), ops=ops).to(device)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)
    tokens = windows(shape, streams, bptt, device)
    count = 0

    def step() -> None:
        nonlocal count
        with mixed(device, precision), shared_casts(), change or contextlib.nullcontext():
            for number, slot in enumerate(tokens.chunk(slots)):
                seed_noise(0, count, number)
                (model.next_token_loss(slot, 0) / slots).backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        factor = (CLIP_NORM / (torch.nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor)
        optimizer.step()
        optimizer.zero_grad()
        count += 1

    return step


def float32_softmax(logits_NV: Tensor, targets_N1: Tensor) -> tuple[Tensor, Tensor]:
    """What ops/linear_cross_entropy.py does in bfloat16, with float32 probabilities in between."""
    highest = logits_NV.amax(dim=1, keepdim=True).float()
    wanted = logits_NV.gather(1, targets_N1).float()
    probabilities = torch.softmax(logits_NV, dim=1, dtype=torch.float32)
    losses = highest - wanted - probabilities.amax(dim=1, keepdim=True).log()
    probabilities.scatter_add_(1, targets_N1, torch.full_like(wanted, -1.0))
    return losses.squeeze(1), logits_NV.copy_(probabilities)


def sum_in_product(into_NM: Tensor, a_NK: Tensor, b_KM: Tensor, alpha: float, add: bool) -> None:
    """What ops/matmul.py's `product_into` does, by one product of half precision into float32 (GPUs only)."""
    torch.addmm(into_NM, a_NK, b_KM, out_dtype=into_NM.dtype, beta=float(add), alpha=alpha, out=into_NM)  # type: ignore[call-overload]


def changed(target: Any, name: str, value: Any) -> contextlib.AbstractContextManager[Any]:
    """A change for `ours`."""
    return mock.patch.object(target, name, value)


def plain(gpu: bool, precision: str, fused: bool = False) -> Step:
    """A PyTorch loop as a tutorial writes it.

    fused: as one who knows tunes it, with PyTorch's fast attention and optimizer, and a vocabulary that is a multiple of 8.
    """
    device, shape, streams, bptt = place(gpu)
    torch.manual_seed(0)
    if fused:
        shape = replace(shape, n_words=-(-shape.n_words // 8) * 8)
    model = PlainModel(shape, fused).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, betas=BETAS, eps=EPS, fused=fused or None)
    tokens = windows(shape, streams, bptt, device)
    langs = torch.zeros(streams, bptt - 1, dtype=torch.int64, device=device)

    def step() -> None:
        optimizer.zero_grad()
        with mixed(device, precision):
            logits = model(tokens[:, :-1], langs)
            loss = F.cross_entropy(logits.reshape(-1, shape.n_words), tokens[:, 1:].reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    return step


def compare(gpu: bool, precision: str) -> dict[str, Any]:
    """Variants of the step at the same windows, in turn in one process; the first is what xlm-train does.

    Memory is what a variant adds at its peak to what was there before it.
    """
    if not runs(precision):
        return {"refused": f"{precision} is not for this device"}
    device, shape, streams, bptt = place(gpu)
    builders: dict[str, Callable[[], Step]] = {
        "ours, 4 slots": lambda: ours(gpu, precision, slots=4),
        "ours, 1 slot": lambda: ours(gpu, precision),
        "ours, 1 slot, model.ops=plain": lambda: ours(gpu, precision, ops="plain"),
        "plain loop": lambda: plain(gpu, precision),
        "plain loop, tuned": lambda: plain(gpu, precision, fused=True),
        "ours, 1 slot, 2^25 logits at once": lambda: ours(
            gpu, precision, change=changed(softmax_loss, "GPU_CHUNK_ELEMENTS", 2**25)
        ),
        "ours, 1 slot, 2^29 logits at once": lambda: ours(
            gpu, precision, change=changed(softmax_loss, "GPU_CHUNK_ELEMENTS", 2**29)
        ),
        "ours, 1 slot, softmax in float32": lambda: ours(
            gpu, precision, change=changed(softmax_loss, "bfloat16_softmax", float32_softmax)
        ),
        "ours, 1 slot, attention of ops=plain": lambda: ours(
            gpu, precision, change=changed(FastOps, "attention", staticmethod(PlainOps.attention))
        ),
    }
    if gpu:
        builders["ours, 1 slot, sums in the product"] = lambda: ours(
            gpu, precision, change=changed(softmax_loss, "product_into", sum_in_product)
        )
    steps: dict[str, Step] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name, build in builders.items():
        try:
            before = _reset_memory(device)
            step = build()
            for _ in range(3 if gpu else 1):
                step()
            wait(device)
            figures[name] = {"peak_memory_gb": (torch.cuda.max_memory_allocated() - before) / 1e9 if gpu else None}
            steps[name] = step
        except (RuntimeError, TypeError) as error:  # out of memory, or not in this torch
            figures[name] = {"failed": str(error)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(ROUNDS if gpu else 2):
        for name in list(steps) if number % 2 == 0 else list(steps)[::-1]:
            seconds[name].append(timed(steps[name], device))
    flops, peak = (
        training_flops_per_token(replace(shape, vocab_multiple=8), Row(bptt, bptt - 1), recompute=False),
        peak_tflops(precision),
    )
    for name, each in seconds.items():
        tokens_per_second = streams * bptt / statistics.median(each)
        ratios = [other / mine for other, mine in zip(each, seconds["ours, 4 slots"], strict=True)]
        figures[name] |= {
            "ms_per_step": 1e3 * statistics.median(each),
            "spread_ms": [1e3 * min(each), 1e3 * max(each)],
            "tokens_per_second": tokens_per_second,
            "tflops": tokens_per_second * flops / 1e12,
            "mfu": None if peak is None else tokens_per_second * flops / 1e12 / peak,
            "times_as_long_as_ours": statistics.median(ratios),
        }
    return {"precision": precision, "tokens_per_step": streams * bptt, "variants": figures}


def _reset_memory(device: torch.device) -> int:
    """Bytes allocated now, from which the next peak counts."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def timed(step: Step, device: torch.device) -> float:
    """Seconds of a step, the device waited for before and after a turn."""
    wait(device)
    start = time.perf_counter()
    steps = STEPS if device.type == "cuda" else 1
    for _ in range(steps):
        step()
    wait(device)
    return (time.perf_counter() - start) / steps


def wait(device: torch.device) -> None:
    """Wait for all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kernels(gpu: bool, precisions: Sequence[str]) -> dict[str, Any]:
    """Per precision: which kernel training takes for attention, and where a step's time on the device goes."""
    device, *_ = place(gpu)
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if gpu else [])]
    found: dict[str, Any] = {}
    for precision in precisions:
        if not runs(precision):
            continue
        step = ours(gpu, precision)
        for _ in range(2):
            step()
        wait(device)
        with torch.profiler.profile(activities=activities) as profile:
            step()
            wait(device)
        events = profile.key_averages()
        on_device = sorted(
            ((e.self_device_time_total, e.count, e.key) for e in events if "cuda" in str(e.device_type).lower()),
            reverse=True,
        )
        total = sum(microseconds for microseconds, *_ in on_device)
        found[precision] = {
            "attention": kernel_named({event.key for event in events}),
            "attention_kernels": [k[:160] for _, _, k in on_device if any(w in k for w in ("flash", "fmha", "sdpa", "attention"))],
            "ms_on_the_device": total / 1e3,
            "kernels": [f"{t / total:6.1%} {t / 1e3:8.3f} ms {n:4} x {key[:120]}" for t, n, key in on_device[:25]],
        }  # fmt: skip
    return found


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


def repeats(gpu: bool, precision: str) -> dict[str, Any]:
    """Whether one slot's gradients come out the same bit for bit three times, per attention kernel, and at which cost."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = (
        ":4096:8"  # read when cuBLAS is first used; deterministic algorithms ask for it
    )
    device, shape, streams, bptt = place(gpu)
    torch.manual_seed(0)
    model = XLM(replace(shape, vocab_multiple=8)).to(device)
    tokens = windows(shape, streams // 4, bptt, device)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        seed_noise(0, 0, 0)
        with mixed(device, precision):
            loss = model.next_token_loss(tokens, 0)
        (loss * (2.0**16 if precision == "16-mixed" else 1.0)).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    found: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        try:
            with setting():
                first = gradients()
                others = [gradients() for _ in range(3)]
                seconds = statistics.median(timed(lambda: gradients() and None, device) for _ in range(5))
        except RuntimeError as error:
            found[name] = {"failed": str(error)[:500]}
            continue
        differing = sorted({key for other in others for key in first if not torch.equal(first[key], other[key])})
        found[name] = {"same": not differing, "differing": differing[:8], "ms_per_slot": 1e3 * seconds}
    return found


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _only(backend: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return lambda: sdpa_kernel(getattr(SDPBackend, backend))  # type: ignore[no-any-return]


SETTINGS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "as it is": contextlib.nullcontext,
    "torch.use_deterministic_algorithms": _deterministic,
    "flash": _only("FLASH_ATTENTION"),
    "memory-efficient": _only("EFFICIENT_ATTENTION"),
    "cuDNN": _only("CUDNN_ATTENTION"),
    "math": _only("MATH"),
}
