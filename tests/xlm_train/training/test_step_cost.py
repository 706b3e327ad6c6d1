"""What a step may not do: wait for the device, hold all logits, fetch its memory again."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import process_environment
from xlm_train.data.datamodule import SlotBatch, StepBatch
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.objectives.clm import CausalLM, Windows
from xlm_train.objectives.masked import MaskedLM, masked
from xlm_train.training.module import LanguageModel
from xlm_train.training.precision import Autocast

SHAPE = ModelShape(n_words=50, dim=16, n_layers=2, n_heads=2, ffn_dim=32, max_positions=16)
STEPS, SLOTS = 6, 3

# Operations that make the host wait for a GPU: they hand a tensor's value, or a size that depends on it, to Python,
# or they make a tensor of a Python number and send it over (lift_fresh).
WAITING = ("_local_scalar_dense", "lift_fresh", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")


READING = ("tolist", "numpy", "cpu")  # methods that on a CPU call no operation


class Waits(TorchDispatchMode):
    """Counts operations that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __enter__(self) -> Waits:
        self.patch = pytest.MonkeyPatch()
        for name in READING:
            self.patch.setattr(torch.Tensor, name, self.counted(name))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patch.undo()

    def counted(self, name: str) -> Any:
        method = getattr(torch.Tensor, name)

        def count(*arguments: Any, **options: Any) -> Any:
            self.found[name] += 1
            return method(*arguments, **options)

        return count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.found[name] += 1
        if name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self.found["index by booleans"] += 1
        return func(*args, **(kwargs or {}))


class Counted(LanguageModel):
    """Counts waits inside the training step: accumulation, clipping, update."""

    waits: Waits

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        with self.waits:
            super().training_step(batch, batch_idx)


CAUSAL = CausalLM(None)  # type: ignore[arg-type]  # the batches are made here
MASKED = MaskedLM(SimpleNamespace(n_words=50, float16=False))  # type: ignore[arg-type]


def batch_of(objective: Any, language: int) -> Any:
    tokens = torch.randint(14, 50, (3, 9))
    if objective is CAUSAL:
        return Windows(tokens, language)
    return masked(tokens.numpy(), language, objective.masking, np.random.default_rng(language))


def waits_of_a_run(objective: Any = CAUSAL, plugins: Any = None, **options: Any) -> Counter[str]:
    torch.manual_seed(0)
    module = Counted(
        XLM(SHAPE),
        objective,
        lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
        lambda k: 1e-3,
        stop=1000,
        slots=SLOTS,
        clip_norm=0.1,
        seed=5,
        **options,
    )
    module.waits = Waits()
    batches = [
        StepBatch(t, tuple(SlotBatch(s, s % 2, batch_of(objective, s % 2)) for s in range(SLOTS))) for t in range(STEPS)
    ]
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=plugins,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert module.state.updates == STEPS
    return module.waits.found


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlm_train.runtime.device.is_free_to_read", lambda tensor: False)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("objective", [CAUSAL, MASKED], ids=["clm", "mlm"])
def test_a_float32_step_never_waits_for_the_device(objective: Any) -> None:
    assert waits_of_a_run(objective) == Counter()


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_float16_step_waits_once() -> None:
    assert waits_of_a_run(plugins=Autocast("16-mixed", "cpu"), float16=True) == Counter({"_local_scalar_dense": STEPS})


def test_the_count_sees_what_a_cpu_may_read() -> None:
    """The same steps with a CPU's freedom: the norm, the clipping factor, and each slot's weight are looked at."""
    assert waits_of_a_run()["_local_scalar_dense"] >= STEPS * (2 + SLOTS)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.item(), bool, float, int, lambda x: x.tolist(), lambda x: x.cpu(), lambda x: x.numpy(),
        torch.nonzero, lambda x: x[x > 0], lambda x: torch.tensor(3),
    ],
)  # fmt: skip
def test_each_kind_of_wait_is_seen(wait: Any) -> None:
    value, waits = torch.ones(1), Waits()
    with waits:
        wait(value)
    assert waits.found.total() >= 1


STEP_IN_A_PROCESS = """
import resource, statistics, sys, torch
from xlm_train.runtime.device import disable_malloc_trim
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.objectives.clm import CausalLM, Windows
if sys.argv[1] == "kept":
    assert disable_malloc_trim()
torch.manual_seed(0)
model = XLM(ModelShape(n_words=35_000, dim=256, n_layers=1, n_heads=4, ffn_dim=256, max_positions=32))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
windows = torch.randint(14, 35_000, (4, 33))
faults = []
for step in range(13):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model.next_token_loss(windows, 0).backward()
    optimizer.step()
    optimizer.zero_grad()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median(faults[4:]))
"""


def faults_of_a_step(how: str) -> float:
    """Pages fetched by a step after the first four, median of nine, in a process of its own. (Once in a while a step finds the heap
    laid out otherwise and lets it grow.) Its embedding's gradient takes 36 MB: above glibc's own limit for keeping memory."""
    result = subprocess.run(
        [sys.executable, "-c", STEP_IN_A_PROCESS, how],
        capture_output=True, text=True, check=True, env=process_environment(),
    )  # fmt: skip
    return float(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc's allocator")
def test_a_step_fetches_no_memory_anew() -> None:
    assert faults_of_a_step("as it comes") > 8000  # 36 MB and more are fetched each step
    assert faults_of_a_step("kept") < 100
