"""One model, three sets of names: ours, the original's, and those of transformers.

The original keeps query, key and value projections apart; ours are one matrix, query rows first. It writes the
output weights though they are the embeddings; ours are written once. Ours may have padding rows below the
vocabulary; these are cut and added here. transformers' names are the original's under `transformer.`, but for
the output layer. The same goes for Adam's moments, which have the parameters' names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime.errors import CheckpointError, ConfigError

TIED = "pred_layer.proj.weight"  # the embeddings under a second name
WITH_VOCABULARY_ROWS = ("embeddings.weight", "output_bias")
FFN_FACTOR = 4
_SHOWN = 8


def _parts(shape: ModelShape, reads_source: bool) -> dict[str, list[str]]:
    """Our name -> the original's; several are stacked along the first dimension, in this order."""
    parts = {
        "position_embeddings.weight": ["position_embeddings.weight"],
        "embeddings.weight": ["embeddings.weight"],
        "output_bias": ["pred_layer.proj.bias"],
    }
    if shape.uses_languages:
        parts["lang_embeddings.weight"] = ["lang_embeddings.weight"]
    for end in ("weight", "bias"):
        parts[f"norm.{end}"] = [f"layer_norm_emb.{end}"]
        for n in range(shape.n_layers):
            parts[f"blocks.{n}.attention.qkv.{end}"] = [f"attentions.{n}.{x}_lin.{end}" for x in "qkv"]
            parts[f"blocks.{n}.attention.out.{end}"] = [f"attentions.{n}.out_lin.{end}"]
            parts[f"blocks.{n}.norm1.{end}"] = [f"layer_norm1.{n}.{end}"]
            parts[f"blocks.{n}.ffn.lin1.{end}"] = [f"ffns.{n}.lin1.{end}"]
            parts[f"blocks.{n}.ffn.lin2.{end}"] = [f"ffns.{n}.lin2.{end}"]
            parts[f"blocks.{n}.norm2.{end}"] = [f"layer_norm2.{n}.{end}"]
            if reads_source:
                parts[f"blocks.{n}.source_attention.q.{end}"] = [f"encoder_attn.{n}.q_lin.{end}"]
                parts[f"blocks.{n}.source_attention.kv.{end}"] = [f"encoder_attn.{n}.{x}_lin.{end}" for x in "kv"]
                parts[f"blocks.{n}.source_attention.out.{end}"] = [f"encoder_attn.{n}.out_lin.{end}"]
                parts[f"blocks.{n}.source_norm.{end}"] = [f"layer_norm15.{n}.{end}"]
    return parts


def unknown_to_original(shape: ModelShape, program: str) -> list[str]:
    """Say what of a model's sizes the original, and transformers' XLM as it, fixes in its code.

    Args:
        shape: The model's.
        program: Whose code, for the message.
    """
    width = FFN_FACTOR * shape.dim
    if shape.ffn_dim == width:
        return []
    return [
        f"model.ffn_dim={shape.ffn_dim}: {program} always has {FFN_FACTOR} x model.dim = {width}; such a model cannot be"
        " exported"
    ]


def original_order(shape: ModelShape, reads_source: bool = False) -> list[str]:
    """List the original's names in the order of its state dict, the tied output weights included.

    Args:
        shape: The model's.
        reads_source: It is the decoder of a translation model.
    """
    layers = range(shape.n_layers)
    reading = [name for n in layers for name in _both(f"layer_norm15.{n}")]
    reading += [name for n in layers for x in ("q", "k", "v", "out") for name in _both(f"encoder_attn.{n}.{x}_lin")]
    return [
        "position_embeddings.weight",
        *(["lang_embeddings.weight"] if shape.uses_languages else []),
        "embeddings.weight",
        *_both("layer_norm_emb"),
        *(name for n in layers for x in ("q", "k", "v", "out") for name in _both(f"attentions.{n}.{x}_lin")),
        *(name for n in layers for name in _both(f"layer_norm1.{n}")),
        *(name for n in layers for x in (1, 2) for name in _both(f"ffns.{n}.lin{x}")),
        *(name for n in layers for name in _both(f"layer_norm2.{n}")),
        *(reading if reads_source else []),
        *_both("pred_layer.proj"),
    ]


def _both(module: str) -> list[str]:
    return [f"{module}.weight", f"{module}.bias"]


def original_trained(shape: ModelShape) -> list[str]:
    """List the original's names in the order of its optimizer: what is trained, tied weights once."""
    fixed = {TIED, *(["position_embeddings.weight"] if shape.sinusoidal_positions else [])}
    return [name for name in original_order(shape) if name not in fixed]


def our_trained(shape: ModelShape) -> list[str]:
    """List our names in the order of our optimizers."""
    return [name for name, parameter in _meta(shape).items() if parameter.requires_grad]


def _meta(shape: ModelShape, reads_source: bool = False) -> dict[str, Tensor]:
    """Our parameters without memory: names, sizes, which are trained."""
    with torch.device("meta"):
        return dict(XLM(shape, reads_source=reads_source).named_parameters())


def to_original(
    ours: Mapping[str, Tensor], shape: ModelShape, tied: bool = True, reads_source: bool = False
) -> dict[str, Tensor]:
    """Bring our tensors under the original's names.

    Args:
        ours: A state dict, or moments by parameter name (those of parameters that are not trained may be missing).
        shape: The model's.
        tied: Give the output weights too, as the original writes them.
        reads_source: They are a decoder's that reads a source.

    Returns:
        Name -> tensor in the original's order, without padding rows; views where possible.
    """
    theirs: dict[str, Tensor] = {}
    for name, parts in _parts(shape, reads_source).items():
        if name in ours:
            tensor = ours[name][: shape.n_words] if name in WITH_VOCABULARY_ROWS else ours[name]
            theirs.update(zip(parts, tensor.chunk(len(parts)), strict=True))
    if tied:
        theirs[TIED] = theirs["embeddings.weight"]
    return {name: theirs[name] for name in original_order(shape, reads_source) if name in theirs}


def to_ours(
    theirs: Mapping[str, Tensor],
    shape: ModelShape,
    where: str,
    trained_only: bool = False,
    reads_source: bool = False,
) -> dict[str, Tensor]:
    """Bring the original's tensors under our names.

    Args:
        theirs: A state dict, with or without the tied output weights; with `trained_only`, moments by name.
        shape: The model's.
        where: The file's name, for messages.
        trained_only: Expect only what is trained.
        reads_source: They are a decoder's that reads a source.

    Returns:
        Name -> tensor, in float32 and copied; padding rows are zero.

    Raises:
        CheckpointError: If a name is missing or unknown, or a tensor has another size.
    """
    names = original_trained(shape) if trained_only else original_order(shape, reads_source)
    problems = _name_problems(theirs, {*names} - {TIED}, where)
    if problems:
        raise CheckpointError(problems)
    sizes = {
        name: tensor.shape
        for name, tensor in to_original(_meta(shape, reads_source), shape, reads_source=reads_source).items()
    }
    problems = [
        f"{where}: {name} has size {tuple(tensor.shape)} where {tuple(sizes[name])} was expected"
        for name, tensor in theirs.items()
        if tensor.shape != sizes[name]
    ]
    if not problems and TIED in theirs and not torch.equal(theirs[TIED], theirs["embeddings.weight"]):
        problems = [
            f"{where}: {TIED} differs from embeddings.weight: a model without tied output weights is not supported"
        ]
    if problems:
        raise CheckpointError(problems[:_SHOWN])
    ours = {}
    for name, parts in _parts(shape, reads_source).items():
        if parts[0] in theirs:
            tensor = torch.cat([theirs[part].float() for part in parts])
            if name in WITH_VOCABULARY_ROWS:
                tensor = torch.cat([tensor, tensor.new_zeros(shape.n_rows - shape.n_words, *tensor.shape[1:])])
            ours[name] = tensor
    return ours


def _name_problems(found: Mapping[str, Tensor], expected: set[str], where: str) -> list[str]:
    missing = sorted(expected - found.keys())
    unknown = sorted(found.keys() - expected - {TIED})
    problems = []
    if any("encoder_attn" in name or "layer_norm15" in name for name in unknown):
        problems.append(f"{where}: is the decoder of a translation model, where a language model was expected")
    for names, what in ((missing, "lacks"), (unknown, "has parameters that this model does not have:")):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            problems.append(f"{where}: {what} {', '.join(names[:_SHOWN])}{more}")
    return problems


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove `prefix` from the names, if all of them have it (the original's `module.` of distributed training)."""
    if state and all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def to_transformers(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the original's tensors under the names of transformers' XLMWithLMHeadModel."""
    return {
        name if name.startswith("pred_layer.") else f"transformer.{name}": tensor for name, tensor in theirs.items()
    }


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors of XLMWithLMHeadModel under the original's names.

    Position numbers, which old versions saved as a buffer, are left out.
    """
    return {
        name.removeprefix("transformer."): tensor
        for name, tensor in state.items()
        if name != "transformer.position_ids"
    }


def infer_shape(
    theirs: Mapping[str, Tensor],
    where: str,
    *,
    n_langs: int,
    n_heads: int,
    dropout: float,
    attention_dropout: float,
    sinusoidal_positions: bool,
    vocab_multiple: int = 1,
) -> ModelShape:
    """Infer the model's shape from the sizes of its tensors; what these cannot tell is given.

    Args:
        theirs: State dict under the original's names.
        where: The file's name, for messages.
        n_langs: Number of languages.
        n_heads: Number of attention heads.
        dropout: See ModelShape.
        attention_dropout: See ModelShape.
        sinusoidal_positions: See ModelShape.
        vocab_multiple: See ModelShape.

    Returns:
        The shape.

    Raises:
        CheckpointError: If tensors are missing or do not make a model.
    """
    needed = ("embeddings.weight", "position_embeddings.weight", "ffns.0.lin1.weight")
    problems = [f"{where}: lacks {name}" for name in needed if name not in theirs]
    if problems:
        raise CheckpointError(problems)
    layers = [int(found[1]) for name in theirs if (found := re.match(r"attentions\.(\d{1,4})\.", name))]
    problems = [f"{where}: {name} is not a matrix" for name in needed if theirs[name].ndim != 2]
    if problems:
        raise CheckpointError(problems)
    languages = theirs.get("lang_embeddings.weight")
    if languages is not None and len(languages) != n_langs:
        raise CheckpointError(f"{where}: has embeddings of {len(languages)} languages, but names {n_langs}")
    n_words, dim = theirs["embeddings.weight"].shape
    try:
        return ModelShape(
            n_words=n_words,
            n_langs=n_langs,
            dim=dim,
            n_layers=1 + max(layers, default=0),
            n_heads=n_heads,
            ffn_dim=len(theirs["ffns.0.lin1.weight"]),
            max_positions=len(theirs["position_embeddings.weight"]),
            dropout=dropout,
            attention_dropout=attention_dropout,
            sinusoidal_positions=sinusoidal_positions,
            language_embeddings=languages is not None or n_langs == 1,  # one language has none either way
            vocab_multiple=vocab_multiple,
        )
    except ConfigError as error:
        raise CheckpointError([f"{where}: {problem}" for problem in error.problems]) from error
