"""`model.ops=plain` and `fast` are one model: the same weights, losses, gradients and hidden states."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F

from xlm_train.model.ops import OPS, FastOps, PlainOps
from xlm_train.model.ops.casts import cast, shared_casts
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import PAD

NAMES = [name for name in vars(PlainOps) if not name.startswith("_")]


def model(ops: str, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> XLM:
    torch.manual_seed(0)
    shape = ModelShape(
        n_words=3000, dim=128, n_layers=3, n_heads=4, ffn_dim=512, max_positions=200,
        dropout=dropout, attention_dropout=dropout, vocab_multiple=64,
    )  # fmt: skip
    return XLM(shape, ops=ops).to(dtype)


def test_each_operation_has_its_plain_twin() -> None:
    assert {name for name in vars(FastOps) if not name.startswith("_")} == set(NAMES)
    for name in NAMES:
        plain, fast = getattr(PlainOps, name), getattr(FastOps, name)
        assert plain is not fast, name
        if name != "Linear":
            assert inspect.signature(plain) == inspect.signature(fast), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_loss_and_gradients_of_a_whole_model(dtype: torch.dtype, tolerance: float) -> None:
    """Without dropout: its noise differs between the two. Windows longer than a block of the fast attention."""
    windows = torch.randint(14, 3000, (4, 151), generator=torch.Generator().manual_seed(1))
    windows[1, 4] = windows[2, 7] = PAD
    found = {}
    for ops in OPS:
        network = model(ops, dtype)
        loss = network.next_token_loss(windows, 1)
        loss.backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        found[ops] = loss.item(), gradients
    (loss, gradients), (plain_loss, plain_gradients) = found["fast"], found["plain"]
    assert loss == pytest.approx(plain_loss, rel=tolerance)
    assert gradients.keys() == plain_gradients.keys()
    fast, plain = (torch.cat([g.flatten() for g in both.values()]) for both in (gradients, plain_gradients))
    assert not torch.equal(fast, plain), "both ran the same operations"
    assert float((fast - plain).norm()) <= tolerance * float(plain.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_loss_is_the_cross_entropy_of_the_chosen_places(dtype: torch.dtype) -> None:
    """Value and gradients against whole logits of `forward`, with padding, one language a token, and positions."""
    torch.manual_seed(0)
    tokens, langs = torch.randint(14, 3000, (3, 140)), torch.randint(2, (3, 140))
    lengths, positions = torch.tensor([140, 7, 133]), torch.arange(140).roll(3).expand(3, -1)
    chosen, targets = torch.tensor([0, 5, 140, 146, 280, 412]), torch.randint(14, 3000, (6,))
    found = []
    for ops in OPS:
        network = model(ops, dtype)
        if ops == "fast":
            loss = network.masked_loss(tokens, langs, chosen, targets, lengths, positions)
        else:
            logits = network.logits(network(tokens, langs, lengths, causal=False, positions_BT=positions))
            loss = F.cross_entropy(logits.flatten(0, 1)[chosen], targets)
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])))
    (loss, gradient), (wanted, exact) = found
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    assert loss == pytest.approx(wanted, rel=tolerance)
    assert float((gradient - exact).norm()) <= tolerance * float(exact.norm())


def test_bfloat16_stays_near_float32() -> None:
    """Loss and gradients of both objectives under autocast, within a few of bfloat16's roundings (2^-8)."""
    windows = torch.randint(14, 3000, (4, 151), generator=torch.Generator().manual_seed(1))
    chosen = torch.arange(0, 4 * 151, 7)
    for objective in ("clm", "mlm"):
        found = []
        for enabled in (False, True):
            network = model("fast")
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled), shared_casts():
                if objective == "clm":
                    loss = network.next_token_loss(windows, 1)
                else:
                    loss = network.masked_loss(windows, 1, chosen, windows.flatten()[chosen])
                loss.backward()
            assert loss.dtype == torch.float32
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            assert all(gradient.dtype == torch.float32 for gradient in gradients)
            found.append((loss.item(), torch.cat([gradient.flatten() for gradient in gradients])))
        (exact_loss, exact), (loss_found, gradient) = found
        assert loss_found == pytest.approx(exact_loss, rel=1e-3)
        assert 0 < float((gradient - exact).norm()) <= 2e-2 * float(exact.norm())


def test_a_weight_is_cast_once_a_step() -> None:
    weight = torch.randn(5, 3)
    with shared_casts():
        first = cast(weight, torch.bfloat16)
        assert cast(weight.view_as(weight), torch.bfloat16) is first  # the softmax layer's view of the embeddings
        assert cast(torch.randn(5, 3), torch.bfloat16) is not first
    weight += 1
    with shared_casts():
        assert torch.equal(cast(weight, torch.bfloat16), weight.bfloat16())
    assert cast(weight, torch.float32) is weight


@pytest.mark.parametrize("causal", [True, False])
def test_hidden_states_of_padded_rows_in_evaluation(causal: bool) -> None:
    """Dropout takes no part in evaluation, so the two agree with it set too."""
    tokens = torch.randint(14, 3000, (3, 40), generator=torch.Generator().manual_seed(2))
    lengths, langs = torch.tensor([40, 7, 23]), torch.tensor([0, 1, 1])
    with torch.no_grad():
        fast, plain = (model(ops, dropout=0.1).eval()(tokens, langs, lengths, causal) for ops in ("fast", "plain"))
    assert float((fast - plain).norm()) <= 1e-6 * float(plain.norm())


def test_tied_lookup() -> None:
    """The rows of both uses of the weight are added; padding's lookup sends nothing back."""
    torch.manual_seed(0)
    weight = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([[3, PAD, 3], [49, 0, 7]])
    found = []
    for ops in (FastOps, PlainOps):
        rows, softmax = ops.tied_lookup(weight, tokens, PAD)
        (gradient,) = torch.autograd.grad((rows**2).sum() + (softmax**3).sum(), weight)
        found.append((rows, softmax, gradient))
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-14, atol=0)


def test_the_same_seed_gives_the_same_weights() -> None:
    fast, plain = (model(ops).state_dict() for ops in ("fast", "plain"))
    assert fast.keys() == plain.keys()
    assert all(torch.equal(fast[name], plain[name]) for name in fast)


def test_dropout_of_the_two_agrees_in_distribution() -> None:
    torch.manual_seed(0)
    x = torch.ones(500, 500)
    for p in (0.1, 0.5):
        for ops in (FastOps, PlainOps):
            y = ops.dropout(x, p, True)
            assert (y != 0).double().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5)
            torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)))
    assert all(torch.equal(ops.dropout(x, 0.1, False), x) for ops in (FastOps, PlainOps))


def test_other_operations_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.ops=slow: must be one of fast, plain"):
        model("slow")
