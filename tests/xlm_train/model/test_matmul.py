"""The two libraries behind matrix products give the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xlm_train.model.ops import FastOps, PlainOps, matmul
from xlm_train.model.transformer import XLM, ModelShape

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch was built without oneDNN's product"
)
BOTH = pytest.mark.parametrize("onednn", [False, True])
SMALL, LARGE = (40, 24, 56), (300, 160, 200)  # on both sides of matmul.SMALLEST


def close(ours: Tensor, exact: Tensor) -> bool:
    return bool((ours.double() - exact).norm() <= 1e-6 * exact.norm())


@BOTH
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_product(onednn: bool, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """In all layouts that a training step has, with and without a bias."""
    monkeypatch.setattr(matmul, "ONEDNN", onednn)
    torch.manual_seed(0)
    N, K, M = size
    assert (N * K * M >= matmul.SMALLEST) == (size == LARGE)
    bias = torch.randn(M)
    for a in (torch.randn(N, K), torch.randn(K, N).t(), torch.randn(N + 3, K)[1:-2]):
        for b in (torch.randn(K, M), torch.randn(M, K).t(), torch.randn(K, M + 5)[:, 2:-3]):
            exact = a.double() @ b.double()
            assert close(matmul.product(a, b), exact)
            assert close(matmul.product(a, b, bias), exact + bias)
    wide = torch.randn(N, K, dtype=torch.float64)
    assert matmul.product(wide, wide.t()).dtype == torch.float64
    for dtype in (torch.bfloat16, torch.float16):
        assert matmul.product(wide.to(dtype), wide.to(dtype).t()).dtype == dtype


@BOTH
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("block_bytes", [1, 200 * 4 * 70, 2**25])
def test_product_into(onednn: bool, add: bool, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the blocks: of a row, not dividing the rows, wider than the matrix. What was there counts only if asked."""
    monkeypatch.setattr(matmul, "ONEDNN", onednn)
    monkeypatch.setattr(matmul, "SMALLEST", 1)
    monkeypatch.setattr(matmul, "BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    into, a, b = torch.randn(300, 200), torch.randn(160, 300).t(), torch.randn(160, 200)
    exact, place = 0.3 * (a.double() @ b.double()), into.data_ptr()
    if add:
        exact += into
    else:
        into.fill_(torch.nan)
    matmul.product_into(into, a, b, 0.3, add)
    assert close(into, exact)
    assert into.data_ptr() == place


@BOTH
@pytest.mark.parametrize("shape", [(300,), (3, 100)])
def test_linear_is_torchs(onednn: bool, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and all gradients, also where the input wants none."""
    monkeypatch.setattr(matmul, "ONEDNN", onednn)
    torch.manual_seed(0)
    ours = matmul.Linear(160, 200)
    exact = PlainOps.Linear(160, 200, dtype=torch.float64)
    exact.load_state_dict(ours.state_dict())
    x = torch.randn(*shape, 160)
    for wants in (True, False):
        mine, its = x.clone().requires_grad_(wants), x.double().requires_grad_(wants)
        ours.zero_grad()
        exact.zero_grad()
        weights = torch.randn(*shape, 200)
        y, exact_y = ours(mine), exact(its)
        assert close(y, exact_y)
        (y * weights).sum().backward()
        (exact_y * weights.double()).sum().backward()
        for a, b in ((mine.grad, its.grad), (ours.weight.grad, exact.weight.grad), (ours.bias.grad, exact.bias.grad)):
            assert a is b is None or (a is not None and b is not None and close(a, b))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    ours.weight.requires_grad_(False)  # frozen
    ours.zero_grad()
    ours(x.requires_grad_()).sum().backward()
    assert ours.weight.grad is None
    assert ours.bias.grad is not None
    assert ours(torch.empty(0, *shape[1:], 160)).shape == (0, *shape[1:], 200)


@BOTH
@pytest.mark.parametrize("shape", [(), (7,), (8,), (4, 2), (64,), (64, 1), (65,)])
def test_few_rows_without_gradients(onednn: bool, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "ONEDNN", onednn)
    monkeypatch.setattr(matmul, "SMALLEST", 1)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(*shape, 160), torch.randn(200, 160), torch.randn(200)
    with torch.no_grad():
        y = matmul.linear(x, weight, bias)
        hidden = PlainOps.gelu_linear(x.double(), weight.double(), bias.double())
        assert y.shape == (*shape, 200)
        assert close(y, PlainOps.linear(x.double(), weight.double(), bias.double()))
        assert close(FastOps.gelu_linear(x, weight, bias), hidden)


def test_decoding_takes_the_product_for_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of the real width: only between 8 and 64 rows, only without gradients; then the result is a transposed one."""
    monkeypatch.setattr(matmul, "ONEDNN", False)
    layer = matmul.Linear(1024, 1024)
    for rows, few in ((7, False), (8, True), (64, True), (65, False)):
        x = torch.randn(rows, 1024)
        assert layer(x).is_contiguous()
        with torch.no_grad():
            assert layer(x).t().is_contiguous() == (few and torch.backends.mkl.is_available())


def test_a_whole_model_learns_the_same_with_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of a model whose products are large enough, in chunks of the softmax too."""
    monkeypatch.setattr("xlm_train.model.ops.linear_cross_entropy.CHUNK_ELEMENTS", 3000 * 200)  # three chunks
    monkeypatch.setattr(matmul, "BLOCK_BYTES", 2**18)  # six blocks
    torch.manual_seed(0)
    model = XLM(ModelShape(n_words=3000, dim=128, n_layers=2, n_heads=4, ffn_dim=512, dropout=0, attention_dropout=0))
    windows = torch.randint(14, 3000, (8, 65))
    found = []
    for onednn in (False, True):
        monkeypatch.setattr(matmul, "ONEDNN", onednn)
        model.zero_grad()
        loss = model.next_token_loss(windows, 0)
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (loss, gradient), (loss_onednn, gradient_onednn) = found
    assert loss_onednn == pytest.approx(loss, rel=1e-6)
    assert (gradient - gradient_onednn).norm() <= 1e-6 * gradient.norm()
    assert not torch.equal(gradient, gradient_onednn), "both went through the same library"
