"""Parameter names between ours, the original and transformers: exact both ways, and every misfit named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from xlm_train.interop.original import names
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime.errors import CheckpointError

SHAPE = ModelShape(n_words=21, n_langs=2, dim=8, n_layers=12, n_heads=2, ffn_dim=32, max_positions=10)
SHAPES = {
    "usual": {},
    "padding rows": {"vocab_multiple": 8},
    "no language embeddings": {"language_embeddings": False},
    "one language": {"n_langs": 1},
    "sinusoidal positions": {"sinusoidal_positions": True},
}


def weights(shape: ModelShape) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return XLM(shape).state_dict()


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_to_the_original_and_back(changes: dict[str, Any]) -> None:
    shape = replace(SHAPE, **changes)
    ours = weights(shape)
    theirs = names.to_original(ours, shape)
    assert list(theirs) == names.original_order(shape)
    assert theirs[names.TIED] is theirs["embeddings.weight"]
    assert theirs["embeddings.weight"].shape == (21, 8)
    assert theirs["pred_layer.proj.bias"].shape == (21,)
    assert torch.equal(theirs["attentions.11.v_lin.weight"], ours["blocks.11.attention.qkv.weight"][16:])
    again = names.to_ours(theirs, shape, "x")
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)
    assert all(again[name].data_ptr() != ours[name].data_ptr() for name in ours)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_moments_to_the_original_and_back(changes: dict[str, Any]) -> None:
    """Moments are of what is trained: fixed positions have none."""
    shape = replace(SHAPE, **changes)
    all_ours = weights(shape)
    ours = {name: all_ours[name] for name in names.our_trained(shape)}
    theirs = names.to_original(ours, shape, tied=False)
    assert list(theirs) == names.original_trained(shape)
    again = names.to_ours(theirs, shape, "x", trained_only=True)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_the_order_of_training_is_that_of_the_optimizer() -> None:
    model = XLM(replace(SHAPE, sinusoidal_positions=True))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names.our_trained(model.shape) == trained
    assert "position_embeddings.weight" not in names.original_trained(model.shape)


def test_the_names_of_transformers() -> None:
    theirs = names.to_original(weights(SHAPE), SHAPE)
    hf = names.to_transformers(theirs)
    assert {"transformer.embeddings.weight", "pred_layer.proj.weight", "pred_layer.proj.bias"} <= hf.keys()
    assert len([name for name in hf if name.startswith("transformer.")]) == len(hf) - 2
    buffer = {"transformer.position_ids": torch.arange(10)[None]}
    assert names.from_transformers({**hf, **buffer}).keys() == theirs.keys()


def test_the_prefix_of_distributed_training_goes_only_where_all_have_it() -> None:
    theirs = names.to_original(weights(SHAPE), SHAPE)
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.items()}
    assert names.without_prefix(wrapped, "module.").keys() == theirs.keys()
    mixed = {**theirs, "module.x": torch.ones(1)}
    assert names.without_prefix(mixed, "module.").keys() == mixed.keys()


def test_lower_precision_becomes_float32() -> None:
    theirs = {name: tensor.half() for name, tensor in names.to_original(weights(SHAPE), SHAPE).items()}
    ours = names.to_ours(theirs, SHAPE, "x")
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())


def test_every_misfit_is_named() -> None:
    theirs = names.to_original(weights(SHAPE), SHAPE)
    del theirs["layer_norm1.3.bias"], theirs["ffns.0.lin2.weight"]
    theirs["memories.1.keys"] = torch.ones(2)
    with pytest.raises(CheckpointError) as caught:
        names.to_ours(theirs, SHAPE, "file.pth")
    message = str(caught.value)
    assert "lacks ffns.0.lin2.weight, layer_norm1.3.bias" in message
    assert "memories.1.keys" in message
    assert message.count("file.pth") == 2


def test_another_size_is_named() -> None:
    theirs = {**names.to_original(weights(SHAPE), SHAPE), "attentions.2.q_lin.bias": torch.ones(9)}
    with pytest.raises(CheckpointError, match=r"file\.pth: attentions\.2\.q_lin\.bias has size \(9,\) where \(8,\)"):
        names.to_ours(theirs, SHAPE, "file.pth")


def test_a_decoder_is_told_apart() -> None:
    theirs = {**names.to_original(weights(SHAPE), SHAPE), "encoder_attn.0.q_lin.bias": torch.ones(8)}
    with pytest.raises(CheckpointError, match=r"file\.pth: is the decoder of a translation model"):
        names.to_ours(theirs, SHAPE, "file.pth")


def test_untied_output_weights_are_refused() -> None:
    theirs = {**names.to_original(weights(SHAPE), SHAPE), names.TIED: torch.ones(21, 8)}
    with pytest.raises(CheckpointError, match="tied"):
        names.to_ours(theirs, SHAPE, "file.pth")


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_the_shape_follows_from_the_tensors(changes: dict[str, Any]) -> None:
    shape = replace(SHAPE, **changes)
    found = names.infer_shape(
        names.to_original(weights(shape), shape),
        "x",
        n_langs=shape.n_langs,
        n_heads=shape.n_heads,
        dropout=shape.dropout,
        attention_dropout=shape.attention_dropout,
        sinusoidal_positions=shape.sinusoidal_positions,
        vocab_multiple=shape.vocab_multiple,
    )
    assert found == shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 does not divide"),
        ({"n_langs": 5}, "embeddings of 2 languages, but names 5"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_settings_that_do_not_fit_the_tensors(changes: dict[str, Any], message: str) -> None:
    settings = {"n_langs": 2, "n_heads": 2, "dropout": 0.1, "attention_dropout": 0.1, "sinusoidal_positions": False}
    with pytest.raises(CheckpointError, match=message) as caught:
        names.infer_shape(names.to_original(weights(SHAPE), SHAPE), "file.pth", **{**settings, **changes})
    assert "file.pth" in str(caught.value)
