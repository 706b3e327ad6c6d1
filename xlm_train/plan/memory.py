"""Memory of one process at its highest point, by part.

Where the peak is: at the end of a slot's forward pass, when everything the backward pass needs is kept and the loss
works on a chunk of logits, or a moment later, in the backward pass of the last block. Slots of a step run one after
the other, so it is one slot's activations, however many slots there are.

What is kept is counted tensor by tensor from model.py and loss.py, and compared with what autograd really saves in
tests/xlm_train/test_plan.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlm_train.model import ModelShape

# On a CPU, glibc's heap: blocks that live on (gradients, moments) come to lie between blocks that are freed, and the
# holes do not fit what comes next. As a share of what a step takes and frees; measured (docs/planning.md).
HOLES, HOLES_WITH_RECOMPUTE = 0.45, 0.95
# On a GPU: CUDA context, cuBLAS workspaces, NCCL's buffers and the caching allocator's remainders. Assumed.
GPU_CONTEXT = 1.0e9


@dataclass(frozen=True)
class Setting:
    """What decides about memory besides the model. positions: predicted tokens of a stream. compression: of gradients
    between processes, or None."""

    streams: int
    positions: int
    precision: str
    gpu: bool
    recompute: bool
    optimizer: str
    processes: int
    compression: str | None

    @property
    def low(self) -> int:
        """Bytes of a number in matrix products."""
        return 4 if self.precision == "32-true" else 2


def activation_bytes(shape: ModelShape, setting: Setting) -> int:
    """What the forward pass of one slot keeps for its backward pass, loss excluded."""
    tokens = setting.streams * setting.positions
    block = tokens * _block_bytes_per_token(shape, setting)
    mask = _mask_bytes(setting) * shape.dim if shape.dropout else 0
    before = tokens * (8 + 4 * shape.dim + 8 + mask)  # ids; the first norm's input, mean and deviation; dropout
    if not setting.recompute:
        return before + shape.n_layers * block
    # every block's input, and one block computed again
    return before + shape.n_layers * tokens * 4 * shape.dim + block


def _block_bytes_per_token(shape: ModelShape, setting: Setting) -> int:
    """Kept by one block: inputs of its four products, q, k and v, GELU's input, the inputs of its norms (float32)."""
    D, F, low = shape.dim, shape.ffn_dim, setting.low
    kept = low * (D + 3 * D + D + D + 2 * F) + 2 * (4 * D + 8)
    if shape.dropout:
        kept += 2 * _mask_bytes(setting) * D
    if shape.attention_dropout and not setting.gpu:
        # PyTorch has no fused attention with dropout on a CPU: weights, mask and dropped weights are kept
        return kept + 3 * 4 * shape.n_heads * setting.positions
    return kept + 4 * shape.n_heads  # the fused kernel keeps one sum a query


def _mask_bytes(setting: Setting) -> int:
    return 1 if setting.gpu else 4  # PyTorch keeps booleans on a GPU, numbers on a CPU


def peak_memory(shape: ModelShape, parameters: int, setting: Setting) -> dict[str, float]:
    """Parts -> bytes at the peak; their sum is the peak, above what is there when training begins."""
    from xlm_train.loss import CHUNK_ELEMENTS

    D, rows, low = shape.dim, shape.n_rows, setting.low
    tokens = setting.streams * setting.positions
    mixed = low < 4
    activations = activation_bytes(shape, setting)

    chunk = min(tokens, max(1, CHUNK_ELEMENTS // rows)) * rows
    vocabulary = 4 * rows * D  # the vocabulary's gradient, formed in the forward pass
    loss_work = chunk * (low + 4 + low if mixed else 4) + 4 * tokens * D
    if mixed:
        vocabulary += 2 * low * rows * D + low * tokens * D  # its low-precision copy, product and inputs
    # the last block backward: gradients of its inner widths, or of its attention weights where those are kept
    wide = 2 * shape.ffn_dim * low
    if shape.attention_dropout and not setting.gpu:
        wide = max(wide, 3 * 4 * shape.n_heads * setting.positions - wide)
    backward_work = tokens * (wide + 2 * 4 * D) + 4 * D * shape.ffn_dim

    parts = {
        "weights": 4.0 * parameters,
        "gradients": 4.0 * parameters,
        "optimizer": 8.0 * parameters,
        "activations of one slot": float(activations),
        "loss and backward": float(vocabulary + max(loss_work, backward_work)),
    }
    if mixed:
        parts["weights in low precision"] = float(low * shape.n_layers * (4 * D * D + 2 * D * shape.ffn_dim))
    # Buckets are the gradients themselves (gradient_as_bucket_view); a compressed copy is not.
    if setting.processes > 1 and setting.compression == "fp16":
        parts["compressed gradients"] = 2.0 * parameters
    elif setting.processes > 1 and setting.compression == "powersgd":
        parts["compression errors"] = 4.0 * parameters  # fed back at the next step
    transient = sum(
        parts.get(name, 0.0) for name in ("activations of one slot", "loss and backward", "weights in low precision")
    )
    if not setting.optimizer.endswith("AdamW") and 4.0 * parameters > transient:  # OriginalAdam's denominators
        parts["update"] = 4.0 * parameters - transient
        transient = 4.0 * parameters
    if setting.gpu:
        parts["context and workspaces (assumed)"] = GPU_CONTEXT
    else:
        parts["holes in the heap"] = (HOLES_WITH_RECOMPUTE if setting.recompute else HOLES) * transient
    return parts


def setting_of(config: dict[str, Any], processes: int, gpu: bool) -> Setting:
    """From a training config."""
    return Setting(
        streams=config["data"]["slot_streams"],
        positions=config["data"]["bptt"] - 1,
        precision=config["trainer"]["precision"],
        gpu=gpu,
        recompute=config["model"]["recompute"],
        optimizer=config["optimizer"]["_target_"],
        processes=processes,
        compression=config["trainer"].get("gradient_compression"),
    )
