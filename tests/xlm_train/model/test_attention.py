"""The blocked attention equals PyTorch's, in value, gradient and noise statistics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xlm_train.model.ops import FastOps, PlainOps
from xlm_train.model.ops import attention as attention_module
from xlm_train.model.ops.dropout import dropout, keep_mask


@pytest.mark.parametrize("positions", [1, 7, 8, 9, 33])
@pytest.mark.parametrize(
    ("causal", "hidden"), [(True, "nothing"), (False, "nothing"), (False, "padding"), (False, "anything")]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_equals_scaled_dot_product_attention(
    positions: int, causal: bool, hidden: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "BLOCK", 8)
    torch.manual_seed(0)
    visible = {
        "nothing": None,
        "padding": (torch.arange(positions) < torch.tensor([positions, 1, positions // 2 + 1])[:, None])[:, None, None],
        "anything": torch.rand(3, 2, positions, positions) < 0.5,
    }[hidden]
    if hidden == "anything":
        visible[..., 0] = True  # type: ignore[index] - every query sees a key
    qkv = torch.randn(3, positions, 3, 2, 16, dtype=dtype, requires_grad=True)
    upstream = torch.randn(3, positions, 2, 16, dtype=dtype)
    found, wanted = (ops.attention(qkv, 0.0, causal, visible) for ops in (FastOps, PlainOps))
    assert float((found - wanted).detach().norm()) <= tolerance * float(wanted.detach().norm())
    ours, theirs = (torch.autograd.grad(value, qkv, upstream)[0] for value in (found, wanted))
    assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


@pytest.mark.parametrize("causal", [True, False])
def test_bfloat16_rounds_input_and_output_alone(causal: bool) -> None:
    """Under autocast, scores and weights are float32: the context is the float32 context, rounded."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 33, 3, 2, 16).bfloat16().requires_grad_()
    exact = PlainOps.attention(qkv.float(), 0.0, causal)
    with torch.autocast("cpu", torch.bfloat16):
        found = FastOps.attention(qkv, 0.0, causal)
        gradient = torch.autograd.grad(found.square().sum() / 2, qkv)[0]
    assert found.dtype == gradient.dtype == torch.bfloat16
    assert float((found - exact).detach().abs().max()) <= 2**-8 * float(exact.detach().abs().max())
    wanted = torch.autograd.grad(exact.square().sum() / 2, qkv)[0]
    assert float((gradient - wanted).norm()) <= 2**-8 * float(wanted.norm())


@pytest.mark.parametrize("causal", [True, False])
def test_gradient_under_dropout(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the noise held fixed the gradient is that of the value, by finite differences in float64."""
    monkeypatch.setattr(attention_module, "BLOCK", 4)

    def noisy(qkv: Tensor) -> Tensor:
        torch.manual_seed(3)
        return FastOps.attention(qkv, 0.3, causal)

    torch.manual_seed(0)
    qkv = torch.randn(2, 7, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(noisy, (qkv,))


def test_attention_dropout_keeps_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each weight is dropped alone: over many rows the context is the one without dropout, and each row's differs."""
    monkeypatch.setattr(attention_module, "BLOCK", 8)
    torch.manual_seed(0)
    row = torch.randn(1, 20, 3, 1, 4)
    many = FastOps.attention(row.expand(4000, -1, -1, -1, -1), 0.25, causal=True)
    wanted = FastOps.attention(row, 0.0, causal=True)[0]
    error = many.std(dim=0) / 4000**0.5
    assert bool(((many.mean(dim=0) - wanted).abs() < 5 * error).all())
    assert bool((many[:, 0] == 0).all(dim=(1, 2)).float().mean() == pytest.approx(0.25, abs=0.035))
    assert len(torch.unique(many[:, -1, 0, 0])) > 3000


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_a_share_and_scales_the_rest(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 1003, requires_grad=True)
    y = dropout(x, p, training=True)
    kept = y != 0
    share = kept.double().mean().item()
    assert share == pytest.approx(1 - p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-17)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], y)  # the same noise on the way back


def test_neighbouring_elements_are_dropped_independently() -> None:
    """Four elements share a random word: all pairs among them, and with the next word, must agree by chance alone."""
    torch.manual_seed(0)
    keep = keep_mask((400_000,), 0.5).double() * 2 - 1
    for distance in (1, 2, 3, 4, 5, 8):
        assert abs(float((keep[distance:] * keep[:-distance]).mean())) < 5 / 400_000**0.5


def test_no_dropout_where_there_is_none_to_do() -> None:
    x = torch.randn(3, 4)
    assert dropout(x, 0.1, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    assert keep_mask((3, 5), 0.0).all()
