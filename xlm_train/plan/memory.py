"""Memory of one process at its highest point, by part.

Where the peak is: at the end of a slot's forward pass, when everything the backward pass needs is kept and the loss
works on a chunk of logits, or a moment later, in the backward pass of the last block. Slots of a step run one after
the other, so it is one slot's activations, however many slots there are.

What is kept is counted tensor by tensor from model/transformer.py and model/ops/, and compared with what autograd really saves in
tests/xlm_train/plan/test_plan.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xlm_train.plan.slots import largest_slot

if TYPE_CHECKING:
    from xlm_train.model.transformer import ModelShape

# On a CPU, glibc's heap: blocks that live on come to lie between blocks that are freed, and the holes do not fit what
# comes next. As a share of what a slot takes and frees; measured (docs/planning.md).
HOLES_ONE_SLOT = 0.35
HOLES_SEVERAL_SLOTS = 1.6  # of activations, in one process: the first slot's gradients come to lie among them
HOLES_SEVERAL_LOSSES = 0.6  # of the rest, there
HOLES_KEPT_GRADIENTS = 0.5  # under DDP they stay where they are
HOLES_RECOMPUTE = 1.4
# On a GPU: CUDA context, cuBLAS workspaces, NCCL's buffers and the caching allocator's remainders. Assumed.
CONTEXT = "context and workspaces (assumed)"  # outside what torch's allocator counts as its peak
GPU_CONTEXT = 1.0e9


@dataclass(frozen=True)
class Setting:
    """What decides about memory besides the model.

    Args:
        streams: Of a slot: its windows, or its sentences.
        positions: Of a stream that the language model reads, or the decoder.
        precision: The config's `trainer.precision`.
        gpu: Whether the device is a GPU.
        recompute: Whether the blocks' activations are computed again in the backward pass.
        optimizer: Its class, with the module.
        processes: Of the run.
        compression: Of gradients between processes, or None.
        slots: Of a step, on one process.
        mask_share: Share of the positions that a masked model predicts; None: a causal one predicts at each.
        source: Positions of a stream that the encoder of a translation model reads; 0: there is none.
    """

    streams: int
    positions: int
    precision: str
    gpu: bool
    recompute: bool
    optimizer: str
    processes: int
    compression: str | None
    slots: int = 1
    mask_share: float | None = None
    source: int = 0

    @property
    def accumulates(self) -> bool:
        """Whether a slot's gradients are added to others: alone, a step of one slot takes them as they are made."""
        return self.slots > 1 or self.processes > 1

    @property
    def low(self) -> int:
        """Bytes of a number in matrix products."""
        return 4 if self.precision == "32-true" else 2


def parameter_shapes(shape: ModelShape, translates: bool = False, share: str = "none") -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's parameters, without making them.

    Args:
        shape: Of the language model, or of each side of a translation model.
        translates: Whether it is a translation model.
        share: What its sides share.
    """
    import torch

    from xlm_train.model.seq2seq import Seq2Seq
    from xlm_train.model.transformer import XLM

    with torch.device("meta"):
        model = Seq2Seq(shape, share=share) if translates else XLM(shape)
        return {name: tuple(p.shape) for name, p in model.named_parameters()}


def activation_bytes(shape: ModelShape, setting: Setting) -> int:
    """Bytes that the forward pass of one slot keeps for its backward pass, loss excluded."""
    streams, positions, source = setting.streams, setting.positions, setting.source
    if not source:
        return _of_blocks(
            shape, setting, streams * positions, _block(shape, setting, positions, setting.mask_share is None)
        )
    encoder = _of_blocks(shape, setting, streams * source, _block(shape, setting, source, causal=False))
    attention = _source_attention(shape, setting) // positions
    decoder = _of_blocks(
        shape, setting, streams * positions, _block(shape, setting, positions, causal=True) + attention
    )
    # the encoder's states, in low precision once a layer, and the keys and values that each layer makes of them
    states = 4 * shape.dim if setting.low == 4 else setting.low * shape.n_layers * shape.dim
    return encoder + decoder + streams * source * (states + setting.low * shape.n_layers * 2 * shape.dim)


def _of_blocks(shape: ModelShape, setting: Setting, tokens: int, block: int) -> int:
    """What the embeddings and all blocks keep, where a block keeps so many bytes a token."""
    mask = shape.dim if shape.dropout else 0
    before = tokens * (8 + 4 * shape.dim + 8 + mask)  # ids; the first norm's input, mean and deviation; dropout
    if not setting.recompute:
        return before + shape.n_layers * tokens * block
    # every block's input, and one block computed again
    return before + shape.n_layers * tokens * 4 * shape.dim + tokens * block


def _source_attention(shape: ModelShape, setting: Setting) -> int:
    """What a block's attention over the source keeps of one stream, besides the source's keys and values.

    The inputs of its two products, its queries, the input of its norm.
    """
    D, low, positions, source = shape.dim, setting.low, setting.positions, setting.source
    kept = positions * (3 * low * D + 4 * D + 8 + (D if shape.dropout else 0))
    if shape.attention_dropout and not setting.gpu:  # PyTorch's own: weights, dropout's noise, and both multiplied
        return kept + 3 * 4 * shape.n_heads * positions * source
    return kept + positions * 4 * shape.n_heads + 4 * source  # one sum a query; which keys are padding


def _block(shape: ModelShape, setting: Setting, positions: int, causal: bool) -> int:
    """What one block keeps of a token.

    The inputs of three of its products (the fourth, GELU's output, is computed again), q, k and v, GELU's input, the
    inputs of its norms (float32).
    """
    D, F, low = shape.dim, shape.ffn_dim, setting.low
    scores = low if setting.gpu else 4  # a CPU's attention computes in float32
    kept = low * (D + D + D + F) + scores * 3 * D + 2 * (4 * D + 8)
    if shape.dropout:
        kept += 2 * D  # two masks, a byte a number
    if setting.gpu:
        return kept + 4 * shape.n_heads  # the fused kernel keeps one sum a query
    # ops/attention.py on a CPU: the weights a query has for the keys its block of queries meets, and their mask
    weight = 5 if shape.attention_dropout else 4
    return kept + shape.n_heads * weight * _keys_met(positions, causal) // positions


def _keys_met(positions: int, causal: bool) -> int:
    """Keys that the queries of a window meet, in all, in blocks of queries."""
    from xlm_train.model.ops.attention import BLOCK

    if not causal:
        return positions * positions
    return sum(
        (min(start + BLOCK, positions) - start) * min(start + BLOCK, positions) for start in range(0, positions, BLOCK)
    )


def peak_memory(shape: ModelShape, parameters: int, setting: Setting) -> dict[str, float]:
    """Predict the memory of one process at its peak, above what is there when training begins.

    Args:
        shape: The model's.
        parameters: How many it has.
        setting: The run's.

    Returns:
        Bytes by part; their sum is the peak.
    """
    from xlm_train.model.ops.linear_cross_entropy import WIDENED_ELEMENTS, tokens_at_once

    D, rows, low = shape.dim, shape.n_rows, setting.low
    tokens = setting.streams * setting.positions
    mixed = low < 4
    activations = activation_bytes(shape, setting)

    predicted = tokens if setting.mask_share is None else math.ceil(setting.mask_share * tokens)
    chunk = tokens_at_once(predicted, rows, setting.gpu) * rows
    vocabulary = 4 * rows * D  # the vocabulary's gradient, formed in the forward pass
    if not mixed:
        logits = 4 * chunk
    elif setting.gpu:
        logits = (2 + (2 if setting.precision == "bf16-mixed" else 4)) * chunk  # and their probabilities
    else:
        logits = low * chunk + 4 * min(chunk, WIDENED_ELEMENTS)  # some of them in float32
    loss_work = logits + 4 * predicted * D
    if mixed:
        copies = 2 if setting.gpu else 1  # of the vocabulary in low precision; on a GPU a product of its size too
        vocabulary += copies * low * rows * D + low * predicted * D  # and the softmax's inputs
    # the last block backward: gradients of its inner widths and of one weight
    backward_work = tokens * (2 * shape.ffn_dim * low + 2 * 4 * D) + 4 * D * shape.ffn_dim

    parts = {
        "weights": 4.0 * parameters,
        "gradients": 4.0 * parameters,
        "optimizer": 8.0 * parameters,
        "activations of one slot": float(activations),
        "loss and backward": float(vocabulary + max(loss_work, backward_work)),
    }
    if mixed:
        block = 4 * D * D + 2 * D * shape.ffn_dim
        parts["weights in low precision"] = float(
            low * shape.n_layers * (2 * block + 4 * D * D if setting.source else block)
        )
    # Buckets are the gradients themselves (gradient_as_bucket_view); a compressed copy is not.
    if setting.processes > 1 and setting.compression == "fp16":
        parts["compressed gradients"] = 2.0 * parameters
    elif setting.processes > 1 and setting.compression == "powersgd":
        parts["compression errors"] = 4.0 * parameters  # fed back at the next step
    transient = sum(
        parts.get(name, 0.0) for name in ("activations of one slot", "loss and backward", "weights in low precision")
    )
    if not setting.accumulates:
        parts["gradients"] -= 4.0 * rows * D  # the vocabulary's is the one that the loss made
    if not setting.optimizer.endswith("AdamW") and 4.0 * parameters > transient:  # OriginalAdam's denominators
        parts["update"] = 4.0 * parameters - transient
        transient = 4.0 * parameters
    if setting.gpu:
        parts[CONTEXT] = GPU_CONTEXT
    else:
        parts["holes in the heap"] = _holes(setting, float(activations), transient)
    return parts


def _holes(setting: Setting, activations: float, transient: float) -> float:
    """Of what a slot takes and frees, `transient` in all."""
    if setting.recompute:
        return HOLES_RECOMPUTE * transient
    if setting.processes > 1:
        return HOLES_KEPT_GRADIENTS * transient
    if setting.slots > 1:
        return HOLES_SEVERAL_SLOTS * activations + HOLES_SEVERAL_LOSSES * (transient - activations)
    return HOLES_ONE_SLOT * transient


def setting_of(config: dict[str, Any], processes: int, gpu: bool) -> Setting:
    """What decides about memory in a training config.

    Args:
        config: Resolved and checked.
        processes: Of the planned run.
        gpu: Whether they are on GPUs.

    Returns:
        The setting of the process with the most slots.
    """
    slot = largest_slot(config)
    return Setting(
        streams=max(1, int(slot.rows)),
        positions=int(slot.row.positions),
        mask_share=slot.row.mask_share,
        source=int(slot.row.source),
        precision=config["trainer"]["precision"],
        gpu=gpu,
        recompute=config["model"]["recompute"],
        optimizer=config["optimizer"]["_target_"],
        processes=processes,
        compression=config["trainer"].get("gradient_compression"),
        slots=-(-config["data"]["slots"] // processes),
    )
