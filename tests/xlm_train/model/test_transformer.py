"""The model's initialisation and its options."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from xlm_train.model.ops import FastOps, PlainOps
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import PAD

SHAPE = ModelShape(n_words=3000, n_langs=3, dim=128, n_layers=3, n_heads=4, ffn_dim=512, max_positions=200)


def within(values: Tensor, mean: float, std: float) -> bool:
    """Mean and deviation of a sample agree with a distribution's, to 5 standard errors."""
    n = values.numel()
    return abs(values.mean().item() - mean) < 5 * std / math.sqrt(n) and abs(
        values.std().item() / std - 1
    ) < 5 / math.sqrt(2 * n)


@pytest.fixture(scope="module")
def model() -> XLM:
    torch.manual_seed(1)
    return XLM(SHAPE)


def test_embeddings_are_normal_with_a_zero_row_for_padding(model: XLM) -> None:
    std = SHAPE.dim**-0.5
    words = model.embeddings.weight.detach()
    assert within(torch.cat([words[:PAD], words[PAD + 1 :]]), 0.0, std)
    assert not words[PAD].any()
    assert within(model.position_embeddings.weight.detach(), 0.0, std)
    assert model.lang_embeddings is not None
    assert within(model.lang_embeddings.weight.detach(), 0.0, std)
    fraction = (words[PAD + 1 :].abs() < std).float().mean().item()
    assert fraction == pytest.approx(0.6827, abs=0.005)  # normal, not uniform (0.577) of the same deviation


def test_linear_layers_are_uniform_in_one_over_root_fan_in(model: XLM) -> None:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert len(layers) == 4 * SHAPE.n_layers
    for name, layer in layers.items():
        bound = layer.in_features**-0.5
        for values in (layer.weight.detach(), layer.bias.detach()):
            assert values.abs().max() <= bound, name
            assert values.abs().max() > 0.97 * bound, name
            assert within(values, 0.0, bound / math.sqrt(3)), name
    bound = SHAPE.dim**-0.5
    assert within(model.output_bias.detach(), 0.0, bound / math.sqrt(3))
    assert model.output_bias.abs().max() <= bound


def test_layer_norms_start_at_one_and_zero(model: XLM) -> None:
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 1 + 2 * SHAPE.n_layers
    for norm in norms:
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
        assert norm.eps == 1e-12


def test_output_weights_are_the_embeddings(model: XLM) -> None:
    assert sum(p.numel() == SHAPE.n_words * SHAPE.dim for p in model.parameters()) == 1
    hidden = torch.randn(2, SHAPE.dim)
    torch.testing.assert_close(model.logits(hidden), hidden @ model.embeddings.weight.T + model.output_bias)


def test_the_padding_row_gets_gradient_through_the_softmax_only(model: XLM) -> None:
    tokens = torch.randint(14, 3000, (2, 9))
    tokens[0, 3] = PAD
    model.loss(model(tokens[:, :-1], 0), tokens[:, 1:].clamp(min=3)).backward()
    assert model.embeddings.weight.grad is not None
    softmax_only = model.embeddings.weight.grad[PAD].clone()
    model.zero_grad()
    tokens[0, 3] = 20
    model.loss(model(tokens[:, :-1], 0), tokens[:, 1:].clamp(min=3)).backward()
    assert softmax_only.any()
    assert softmax_only.norm() < 10 * model.embeddings.weight.grad[PAD].norm()
    model.zero_grad()


def test_loss_of_windows_equals_hidden_states_then_loss(model: XLM) -> None:
    """The tied weight's gradient is formed at once, with the same numbers; padding's lookup still sends nothing back."""
    windows = torch.randint(14, 3000, (4, 11))
    windows[1, 4] = windows[2, 7] = PAD
    windows[3, :5] = 77  # the same word several times
    found = []
    model.eval()
    for loss in (model.next_token_loss(windows, 1), model.loss(model(windows[:, :-1], 1), windows[:, 1:])):
        model.zero_grad()
        (loss * 0.7).backward()
        found.append(
            (loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        )
    model.train()
    model.zero_grad()
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        wanted = found[1][1][name]
        assert float((gradient - wanted).norm()) <= 1e-6 * float(wanted.norm()), name


def test_the_softmax_gradient_becomes_the_parameters_own(model: XLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second (V, D) gradient is made: the buffer that the loss fills is what `.grad` holds afterwards."""
    made: list[int] = []
    empty = torch.empty

    def recorded(*arguments: Any, **options: Any) -> Tensor:
        tensor = empty(*arguments, **options)
        if tensor.shape == model.embeddings.weight.shape:
            made.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(torch, "empty", recorded)
    model.zero_grad()
    model.next_token_loss(torch.randint(14, 3000, (2, 9)), 0).backward()
    assert model.embeddings.weight.grad is not None
    assert made == [model.embeddings.weight.grad.data_ptr()]
    model.zero_grad()


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_gelu_then_linear(dtype: torch.dtype | None, tolerance: float) -> None:
    """As PyTorch's two operations, to the precision of the type."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 64).requires_grad_()
    weight, bias = torch.randn(16, 64).requires_grad_(), torch.randn(16).requires_grad_()
    upstream = torch.randn(3, 5, 16)
    results = []
    for ops in (FastOps, PlainOps):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            value = ops.gelu_linear(x, weight, bias)
        results.append((value, *torch.autograd.grad(value, (x, weight, bias), upstream.to(value.dtype))))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert float((ours - theirs).detach().norm()) <= tolerance * float(theirs.detach().norm())


def test_sinusoidal_positions() -> None:
    table = XLM(replace(SHAPE, sinusoidal_positions=True)).position_embeddings.weight
    assert not table.requires_grad
    assert table[0, :4].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert table[7, 0].item() == pytest.approx(math.sin(7))
    assert table[7, 5].item() == pytest.approx(math.cos(7 / 10_000 ** (4 / 128)), rel=1e-6)


def test_recomputed_activations_give_the_same_gradients() -> None:
    shape = replace(SHAPE, dropout=0.2, attention_dropout=0.2)
    tokens = torch.randint(14, 3000, (2, 10))
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = XLM(shape, recompute=recompute)
        torch.manual_seed(5)  # of the dropout noise
        model.loss(model(tokens[:, :-1], 1), tokens[:, 1:]).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_rows_may_have_their_own_languages(model: XLM) -> None:
    model.eval()
    tokens = torch.randint(14, 3000, (3, 6))
    each = torch.stack([model(tokens[i : i + 1], lang)[0] for i, lang in enumerate((2, 0, 1))])
    torch.testing.assert_close(model(tokens, torch.tensor([2, 0, 1])), each, rtol=1e-5, atol=1e-5)
    model.train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 3}, "does not divide model.dim=128; model.n_heads=2 would"),
        ({"dropout": 1.0}, "model.dropout=1.0 must be in"),
        ({"n_layers": 0}, "model.n_layers=0 must be at least 1"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SHAPE, **changes)
