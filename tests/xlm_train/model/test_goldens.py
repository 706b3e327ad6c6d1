"""The model against the original's own numbers: activations, logits, loss and gradients of an imported checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xlm_train.interop.original.checkpoint import import_checkpoint
from xlm_train.interop.original.names import to_original
from xlm_train.model.transformer import XLM, ModelShape

ABSOLUTE = 1e-5  # hidden states and logits
LOSS = 1e-6
GRADIENT, GRADIENT_OF_ONE = 1e-6, 2e-6  # of the norm: the whole vector, each tensor
K_BIAS = 1e-7  # softmax does not see a constant added to all keys: in theory this gradient is zero


@pytest.fixture(scope="module")
def content(shared: Path) -> dict[str, Any]:
    return import_checkpoint(shared / "goldens/model/best-valid_clm_ppl.pth").content


@pytest.fixture(params=[1, 8], ids=["", "padded_vocabulary"], scope="module")
def model(request: pytest.FixtureRequest, content: dict[str, Any], shared: Path) -> XLM:
    file = shared / "goldens/model/best-valid_clm_ppl.pth"
    return load(import_checkpoint(file, vocab_multiple=request.param).content if request.param > 1 else content)


BATCHES = [
    *(pytest.param(("shared", name), id=name) for name in ("batch_full", "batch_padded")),
    *(
        pytest.param(("complete", name), id=f"{name}, all logits", marks=pytest.mark.slow)
        for name in ("batch_full", "batch_padded")
    ),
]


@pytest.fixture(params=BATCHES, scope="module")
def batch(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    """The golden arrays with streams first: the original's tensors are (positions, streams).

    `logit_words`: the words whose logits the file has.
    """
    folder, name = request.param
    with np.load(request.getfixturevalue(folder) / f"goldens/model/{name}.npz") as arrays:
        golden = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    golden.setdefault("logit_words", torch.arange(golden["causal_logits"].shape[-1]))
    by_stream = {"x", "langs", "pred_mask"} | {name for name in golden if name.endswith(("_hidden", "_logits"))}
    return {name: tensor.transpose(0, 1) if name in by_stream else tensor for name, tensor in golden.items()}


def load(content: dict[str, Any], **changes: Any) -> XLM:
    model = XLM(ModelShape(**{**content["shape"], **changes}))
    model.load_state_dict(content["model"])
    return model.eval()


def loss_of(model: XLM, batch: dict[str, Tensor]) -> Tensor:
    """The batch's own loss: the mean over the positions that pred_mask marks, in the original's order."""
    hidden = model(batch["x"], batch["langs"], batch["lengths"])
    # the original's positions run first, then its streams
    chosen = hidden.transpose(0, 1)[batch["pred_mask"].transpose(0, 1)]
    return model.loss(chosen[None], batch["y"][None])


def norm(tensors: Iterable[Tensor]) -> float:
    """Of all of them as one vector; summed in double precision, as float32 sums are off by more than what is tested."""
    return math.sqrt(sum(float((tensor.double() ** 2).sum()) for tensor in tensors))


@pytest.mark.parametrize("mode", ["causal", "bidir"])
def test_hidden_states_and_logits(model: XLM, batch: dict[str, Tensor], mode: str) -> None:
    with torch.no_grad():
        hidden = model(batch["x"], batch["langs"], batch["lengths"], causal=mode == "causal")
        logits = model.logits(hidden)
    assert logits.shape[-1] == model.shape.n_words
    torch.testing.assert_close(hidden, batch[f"{mode}_hidden"], rtol=0, atol=ABSOLUTE)
    torch.testing.assert_close(logits[..., batch["logit_words"]], batch[f"{mode}_logits"], rtol=0, atol=ABSOLUTE)


def test_full_rows_need_no_lengths(model: XLM, shared: Path) -> None:
    with np.load(shared / "goldens/model/batch_full.npz") as golden, torch.no_grad():
        hidden = model(torch.from_numpy(golden["x"].T), torch.from_numpy(golden["langs"].T))
        torch.testing.assert_close(
            hidden, torch.from_numpy(golden["causal_hidden"]).transpose(0, 1), rtol=0, atol=ABSOLUTE
        )


def test_every_stage(model: XLM, shared: Path) -> None:
    """Where the numbers first part is where an error is: embeddings, and each half of each layer."""
    with np.load(shared / "goldens/model/batch_padded.npz") as arrays:
        golden = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    seen: dict[str, Tensor] = {}
    modules = {"emb_ln": model.norm}
    for number, block in enumerate(model.blocks):
        modules |= {f"attn{number}": block.attention, f"ln1_{number}": block.norm1}
        modules |= {f"ffn{number}": block.ffn, f"ln2_{number}": block.norm2}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        model(golden["x"].T, golden["langs"].T, golden["lengths"])
    for hook in hooks:
        hook.remove()
    keep = torch.arange(golden["x"].shape[0]) < golden["lengths"][:, None]  # padding is zeroed after each stage
    for name, output in seen.items():
        torch.testing.assert_close(output[keep], golden[f"causal_{name}"][keep], rtol=0, atol=ABSOLUTE, msg=name)


def test_loss_and_gradients(model: XLM, batch: dict[str, Tensor]) -> None:
    model.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(batch["loss"].item(), rel=LOSS)
    ours = to_original({name: p.grad for name, p in model.named_parameters()}, model.shape, tied=False)
    assert norm(ours.values()) == pytest.approx(batch["grad_norm"].item(), rel=GRADIENT)
    golden = {name.removeprefix("grad."): tensor for name, tensor in batch.items() if name.startswith("grad.")}
    if not golden:
        return  # of the full batch only the norm was kept
    assert ours.keys() == golden.keys()
    differences = {name: ours[name].double() - golden[name].double() for name in golden}
    assert norm(differences.values()) <= GRADIENT * norm(golden.values())
    for name, difference in differences.items():
        if name.endswith("k_lin.bias"):
            assert ours[name].abs().max() < K_BIAS, name
        else:
            assert norm([difference]) <= GRADIENT_OF_ONE * norm([golden[name]]), name


def test_float64(content: dict[str, Any], batch: dict[str, Tensor]) -> None:
    """The same numbers in double precision, where rounding hides nothing: the gradient of the key bias is zero."""
    model = load(content).double()
    hidden = model(batch["x"], batch["langs"], batch["lengths"])
    assert hidden.dtype == torch.float64
    torch.testing.assert_close(hidden.float(), batch["causal_hidden"], rtol=0, atol=ABSOLUTE)
    logits = model.logits(hidden).float()[..., batch["logit_words"]]
    torch.testing.assert_close(logits, batch["causal_logits"], rtol=0, atol=ABSOLUTE)
    loss = loss_of(model, batch)
    loss.backward()
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(batch["loss"].item(), rel=LOSS)
    k_bias = model.blocks[0].attention.qkv.bias.grad[64:128]
    assert k_bias.abs().max() < 1e-15


def test_dropout_zero_is_the_same_in_training_mode(content: dict[str, Any], batch: dict[str, Tensor]) -> None:
    assert content["shape"]["dropout"] == content["shape"]["attention_dropout"] == 0.0
    model = load(content)
    arguments = (batch["x"], batch["langs"], batch["lengths"])
    assert torch.equal(model.train()(*arguments), model.eval()(*arguments))
    noisy = load(content, dropout=0.1, attention_dropout=0.1)
    assert torch.equal(noisy(*arguments), model(*arguments))
    assert not torch.equal(noisy.train()(*arguments), model(*arguments))


def test_the_future_is_not_seen(model: XLM, batch: dict[str, Tensor]) -> None:
    """Every token in turn is replaced: hidden states before it stay as they are to the last bit, its own does not."""
    tokens = batch["x"][:1, : int(batch["lengths"][0])]
    langs = batch["langs"][:1, : tokens.shape[1]]
    with torch.no_grad():
        before = model(tokens, langs)
        for position in range(tokens.shape[1]):
            other = tokens.clone()
            other[0, position] = (other[0, position] + 7) % model.shape.n_words
            after = model(other, langs)
            assert torch.equal(after[:, :position], before[:, :position])
            assert (after[:, position:] != before[:, position:]).any(dim=2).all()


def test_another_language_changes_the_rest(model: XLM, batch: dict[str, Tensor]) -> None:
    """Languages are per position: changing one leaves earlier positions alone and changes all later ones."""
    langs = batch["langs"][:1].clone()
    langs[0, 5] = 1 - langs[0, 5]
    with torch.no_grad():
        before, after = model(batch["x"][:1], batch["langs"][:1]), model(batch["x"][:1], langs)
    assert torch.equal(after[:, :5], before[:, :5])
    assert (after[:, 5:] != before[:, 5:]).any(dim=2).all()


SHAPES = {
    "sinusoidal": {"sinusoidal_positions": True},
    "no_language_embedding": {"language_embeddings": False},
    "one_language": {"n_langs": 1},
    "three_languages": {"n_langs": 3},
    "one_head_wide": {"dim": 48, "ffn_dim": 192, "n_heads": 1, "n_layers": 1},
    "many_heads": {"dim": 64, "ffn_dim": 256, "n_heads": 16, "n_layers": 3},
    "padded_vocabulary": {"vocab_multiple": 8},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("causal", [True, False])
def test_other_shapes_against_transformers(changes: dict[str, Any], causal: bool) -> None:
    """Shapes no golden has, with languages mixed within a row and uneven lengths, against transformers'
    independent XLM.
    """
    transformers = pytest.importorskip("transformers")
    from xlm_train.interop.original.names import to_transformers

    torch.manual_seed(0)
    shape = replace(
        ModelShape(n_words=101, n_langs=2, dim=32, n_layers=2, n_heads=4, ffn_dim=128, max_positions=40), **changes
    )
    ours = XLM(shape).eval()
    for parameter in ours.parameters():  # biases and norms too: their initial values hide mistakes
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    config = transformers.XLMConfig(
        vocab_size=shape.n_words, emb_dim=shape.dim, n_layers=shape.n_layers, n_heads=shape.n_heads, causal=causal,
        n_langs=shape.n_langs, use_lang_emb=shape.language_embeddings, max_position_embeddings=shape.max_positions,
        sinusoidal_embeddings=shape.sinusoidal_positions,
    )  # fmt: skip
    theirs = transformers.XLMWithLMHeadModel(config).eval()
    if shape.sinusoidal_positions:  # each computes its own table
        table = theirs.transformer.position_embeddings.weight
        torch.testing.assert_close(ours.position_embeddings.weight, table, rtol=0, atol=1e-6)
    theirs.load_state_dict(to_transformers(to_original(ours.state_dict(), shape)))

    lengths = torch.tensor([40, 23, 1])
    tokens = torch.randint(14, shape.n_words, (3, 40))
    tokens[torch.arange(40) >= lengths[:, None]] = 2
    langs = torch.randint(0, shape.n_langs, (3, 40))
    with torch.no_grad():
        hidden = ours(tokens, langs if shape.uses_languages else None, lengths, causal=causal)
        logits = theirs(tokens, langs=langs, lengths=lengths).logits
    keep = torch.arange(40) < lengths[:, None]
    torch.testing.assert_close(ours.logits(hidden)[keep], logits[keep], rtol=0, atol=1e-5)
    assert not hidden[~keep].any()
