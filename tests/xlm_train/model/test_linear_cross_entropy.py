"""The chunked loss equals torch's cross-entropy, in value and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from xlm_train.model.ops import PlainOps
from xlm_train.model.ops import linear_cross_entropy as loss_module
from xlm_train.model.ops.linear_cross_entropy import bfloat16_softmax, linear_cross_entropy


def inputs(n: int, dim: int, words: int, dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    hidden = (torch.randn(n, dim, dtype=dtype) * scale).requires_grad_()
    weight = (torch.randn(words, dim, dtype=dtype) * dim**-0.5).requires_grad_()
    bias = torch.randn(words, dtype=dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(0, words, (n,))


def gradients(loss: torch.Tensor, tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, tensors[:3]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("chunk_elements", [1, 3000, 2**25])
def test_equals_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float, chunk_elements: int
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", chunk_elements)
    tensors = inputs(37, 16, 501, dtype)
    hidden, weight, bias, targets = tensors
    wanted = PlainOps.linear_cross_entropy(hidden, weight, bias, targets)
    found = linear_cross_entropy(hidden, weight, bias, targets)
    assert found.item() == pytest.approx(wanted.item(), rel=tolerance)
    for ours, theirs in zip(gradients(found * 3, tensors), gradients(wanted * 3, tensors), strict=True):
        assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


def test_large_scores_do_not_overflow() -> None:
    tensors = inputs(9, 8, 33, torch.float32, scale=1e4)
    found = linear_cross_entropy(*tensors)
    wanted = F.cross_entropy(F.linear(*tensors[:3]), tensors[3])
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert all(torch.isfinite(g).all() for g in gradients(found, tensors))


def test_padding_rows_are_outside_the_softmax() -> None:
    hidden, weight, bias, targets = inputs(21, 16, 104, torch.float32)
    targets = targets % 100
    found = linear_cross_entropy(hidden, weight, bias, targets, n_words=100)
    wanted = F.cross_entropy(F.linear(hidden, weight[:100], bias[:100]), targets)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert PlainOps.linear_cross_entropy(hidden, weight, bias, targets, 100).item() == wanted.item()
    _, weight_grad, bias_grad = gradients(found, (hidden, weight, bias))
    assert not weight_grad[100:].any()
    assert not bias_grad[100:].any()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)])
def test_half_precision_stays_near(dtype: torch.dtype, bound: float) -> None:
    """Under autocast with a loss scale of 65,536: relative errors are of the size of the type's own rounding (2^-11, 2^-8)."""
    tensors = inputs(2000, 32, 1000, torch.float32)
    wanted = F.cross_entropy(F.linear(*tensors[:3]), tensors[3])
    with torch.autocast("cpu", dtype=dtype):
        found = linear_cross_entropy(*tensors)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=bound)
    for ours, theirs in zip(gradients(found * 65536, tensors), gradients(wanted * 65536, tensors), strict=True):
        assert float((ours - theirs).norm()) <= bound * float(theirs.norm())


def test_small_float16_gradients_do_not_underflow() -> None:
    """Mean over 2,000 tokens: probabilities / 2,000 are below float16's smallest number, ours are not divided there."""
    hidden, weight, bias, targets = inputs(2000, 32, 1000, torch.float32)
    bias = (bias.detach() * 3).requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        found = linear_cross_entropy(hidden, weight, bias, targets)
    ours = torch.autograd.grad(found, bias)[0]
    theirs = torch.autograd.grad(F.cross_entropy(F.linear(hidden, weight, bias), targets), bias)[0]
    assert float(theirs.abs().min()) < 6e-8  # would be zero in float16
    assert ours.all()
    assert float((ours - theirs).norm()) <= 2e-3 * float(theirs.norm())


def test_float16_of_many_tokens_loses_no_digits_of_the_hidden_states() -> None:
    """A V100's slot has 16,320 tokens: divided by as many in float16, their gradients would be below its normal numbers."""
    hidden, weight, bias, targets = inputs(16_320, 16, 64, torch.float32)
    with torch.autocast("cpu", dtype=torch.float16):
        found = linear_cross_entropy(hidden, weight, bias, targets)
    wanted = F.cross_entropy(F.linear(hidden.double(), weight.double(), bias.double()), targets)
    for ours, theirs in zip(*(gradients(loss * 65536, (hidden, weight)) for loss in (found, wanted)), strict=True):
        assert float((ours - theirs).norm()) <= 1e-3 * float(theirs.norm())


def test_no_gradient_is_formed_when_none_is_needed() -> None:
    hidden, weight, bias, targets = (t.detach() for t in inputs(5, 4, 20, torch.float32))
    assert not linear_cross_entropy(hidden, weight, bias, targets).requires_grad


def test_logits_are_never_all_there() -> None:
    """Peak memory of a loss over 64,699 words and 4,080 tokens stays far below its 1.06 GB of logits."""
    import subprocess
    import sys

    script = """
import resource, torch
from xlm_train.model.ops.linear_cross_entropy import linear_cross_entropy, bfloat16_softmax
hidden = torch.randn(4080, 64).requires_grad_(); weight = torch.randn(64699, 64).requires_grad_()
bias = torch.zeros(64699).requires_grad_(); targets = torch.randint(0, 64699, (4080,))
linear_cross_entropy(hidden[:8], weight, bias, targets[:8]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear_cross_entropy(hidden, weight, bias, targets).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    from tests.conftest import process_environment

    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=process_environment()
    )
    assert float(out.stdout) < 450  # MiB; full logits alone are 1,007, with their gradient 2,014


@pytest.mark.parametrize(
    ("dtype", "value", "gradient"),
    [(torch.float32, 1e-6, 1e-6), (torch.float16, 2e-4, 6e-4), (torch.bfloat16, 2e-3, 5e-3)],
)
def test_bounds_over_a_large_vocabulary(dtype: torch.dtype, value: float, gradient: float) -> None:
    """64,699 words with probabilities down to 1e-8, against float64: relative errors of the loss and of each gradient.

    Most of float16's probabilities are below its smallest normal number here; what is lost of them stays within the bound.
    """
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32).requires_grad_(), (torch.randn(64_699, 32) * 0.3).requires_grad_()
    bias = (torch.randn(64_699)).requires_grad_()
    targets = torch.randint(0, 64_699, (64,))
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
    wanted = F.cross_entropy(F.linear(*exact), targets)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        found = linear_cross_entropy(hidden, weight, bias, targets)
    assert found.item() == pytest.approx(wanted.item(), rel=value)
    ours = torch.autograd.grad(found * 65536, (hidden, weight, bias))
    for mine, true in zip(ours, torch.autograd.grad(wanted * 65536, exact), strict=True):
        error = float((mine.double() - true).norm() / true.norm())
        assert error <= gradient


@pytest.mark.parametrize("certain", [0.0, 12.0, 20.0])
def test_bfloat16_keeps_the_digits_of_nearly_certain_targets(certain: float) -> None:
    torch.manual_seed(0)
    targets = torch.randint(0, 3000, (64, 1))
    logits = torch.randn(64, 3000).scatter_add(1, targets, torch.full((64, 1), certain)).bfloat16()
    exact = logits.double().requires_grad_()
    wanted = F.cross_entropy(exact, targets[:, 0], reduction="none")
    (wanted_gradients,) = torch.autograd.grad(wanted.sum(), exact)
    losses, found = bfloat16_softmax(logits, targets)
    assert losses.dtype == torch.float32
    assert ((losses - wanted).abs() <= 2**-8 * wanted.clamp(max=1.0)).all()
    assert ((found - wanted_gradients).abs() <= 2**-8 * wanted_gradients.abs()).all()
