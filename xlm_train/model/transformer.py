"""The transformer of Lample & Conneau (2019), in one file.

Shapes: B streams, T positions, D model width, H heads, V vocabulary. Post-norm blocks (LayerNorm after each
residual sum), erf GELU, learned positions, one embedding per language, input and output embeddings tied.
Source: Lample & Conneau 2019, section 3 and 5.1; Devlin et al. 2018 for the layer; behaviour checked against
activations and gradients of the original implementation.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xlm_train.model.ops.attention import causal_attention
from xlm_train.model.ops.dropout import dropout
from xlm_train.model.ops.gelu import gelu_linear
from xlm_train.model.ops.linear_cross_entropy import linear_cross_entropy, tied_lookup
from xlm_train.model.ops.matmul import Linear
from xlm_train.runtime.errors import ConfigError

PAD = 2
LAYER_NORM_EPS = 1e-12


@dataclass(frozen=True)
class ModelShape:
    """Everything that fixes the model's parameters and arithmetic.

    n_words: vocabulary entries, specials included. n_langs: languages; 1 means no language embedding.
    vocab_multiple: the embedding matrix is padded to a multiple of this many rows (the commands' default is 8: tensor
    cores want it in half precision, and a CPU's products are faster); the padding rows are outside the softmax and are
    never exported.
    """

    n_words: int
    n_langs: int = 2
    dim: int = 1024
    n_layers: int = 6
    n_heads: int = 8
    ffn_dim: int = 4096
    max_positions: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.1
    sinusoidal_positions: bool = False
    language_embeddings: bool = True
    vocab_multiple: int = 1

    def __post_init__(self) -> None:
        problems = []
        if self.dim > 0 < self.n_heads and self.dim % self.n_heads:
            near = [h for h in range(1, self.dim + 1) if self.dim % h == 0]
            best = min(near, key=lambda h: abs(h - self.n_heads))
            problems.append(
                f"model.n_heads={self.n_heads} does not divide model.dim={self.dim}; model.n_heads={best} would"
            )
        if self.sinusoidal_positions and self.dim % 2:
            problems.append(f"model.dim={self.dim} is odd: sinusoidal positions need an even width")
        for name in ("n_words", "n_langs", "dim", "n_layers", "n_heads", "ffn_dim", "max_positions", "vocab_multiple"):
            if getattr(self, name) < 1:
                problems.append(f"model.{name}={getattr(self, name)} must be at least 1")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"model.{name}={getattr(self, name)} must be in [0, 1)")
        if problems:
            raise ConfigError(problems)

    @property
    def n_rows(self) -> int:
        """Rows of the embedding matrix: n_words rounded up to vocab_multiple."""
        return math.ceil(self.n_words / self.vocab_multiple) * self.vocab_multiple

    @property
    def uses_languages(self) -> bool:
        return self.language_embeddings and self.n_langs > 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class KeyValueCache:
    """Keys and values of positions already read, for generation.

    One (2, B, H, capacity, D/H) buffer a layer. Rows may stand at different positions: what a query at position p
    sees is the slots 0..p of its own row.
    """

    def __init__(self, shape: ModelShape, batch: int, capacity: int, like: Tensor) -> None:
        size = (2, batch, shape.n_heads, capacity, shape.dim // shape.n_heads)
        self.layers = [torch.zeros(size, dtype=like.dtype, device=like.device) for _ in range(shape.n_layers)]
        self.capacity = capacity

    def write(self, layer: int, positions_BT: Tensor, k_BHTE: Tensor, v_BHTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values at their positions; return all slots of the layer."""
        index = positions_BT[:, None, :, None].expand_as(k_BHTE)
        keys, values = self.layers[layer]
        keys.scatter_(2, index, k_BHTE)
        values.scatter_(2, index, v_BHTE)
        return keys, values


class Attention(nn.Module):
    """Multi-head self-attention with one fused query/key/value product.

    Which keys a query sees: all up to its own (`causal`, without a cache), or what `visible` (broadcastable to
    B, H, T, keys; None: all) allows.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.n_heads = shape.n_heads
        self.dropout = shape.attention_dropout
        self.qkv = Linear(shape.dim, 3 * shape.dim)
        self.out = Linear(shape.dim, shape.dim)

    def forward(
        self,
        x_BTD: Tensor,
        causal: bool,
        visible: Tensor | None = None,
        cache: tuple[KeyValueCache, int, Tensor] | None = None,
    ) -> Tensor:
        B, T, D = x_BTD.shape
        qkv_BT3HE = self.qkv(x_BTD).view(B, T, 3, self.n_heads, D // self.n_heads)
        dropout_p = self.dropout if self.training else 0.0
        if causal:
            return self.out(causal_attention(qkv_BT3HE, dropout_p).reshape(B, T, D))
        q, k, v = qkv_BT3HE.permute(2, 0, 3, 1, 4)
        if cache is not None:
            store, layer, positions_BT = cache
            k, v = store.write(layer, positions_BT, k, v)
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout_p)
        return self.out(context.transpose(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    """Linear, GELU (erf form), Linear."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.lin1 = Linear(shape.dim, shape.ffn_dim)
        self.lin2 = Linear(shape.ffn_dim, shape.dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return gelu_linear(self.lin1(x_BTD), self.lin2.weight, self.lin2.bias)


class Block(nn.Module):
    """One post-norm transformer layer."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.attention = Attention(shape)
        self.norm1 = nn.LayerNorm(shape.dim, eps=LAYER_NORM_EPS)
        self.ffn = FeedForward(shape)
        self.norm2 = nn.LayerNorm(shape.dim, eps=LAYER_NORM_EPS)

    def forward(
        self,
        x_BTD: Tensor,
        causal: bool,
        visible: Tensor | None = None,
        cache: tuple[KeyValueCache, int, Tensor] | None = None,
    ) -> Tensor:
        attended = self.attention(x_BTD, causal, visible, cache)
        x_BTD = self.norm1(x_BTD + dropout(attended, self.dropout, self.training))
        return self.norm2(x_BTD + dropout(self.ffn(x_BTD), self.dropout, self.training))


class XLM(nn.Module):
    """The language model: `forward` gives hidden states, `logits` and `loss` read them out, `next_token_loss` is the whole
    of training.

    recompute: do not keep the activations inside blocks for the backward pass but compute them again there
    (activation checkpointing): memory for about a third more time.
    """

    def __init__(self, shape: ModelShape, recompute: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.recompute = recompute
        self.embeddings = nn.Embedding(shape.n_rows, shape.dim, padding_idx=PAD)
        self.position_embeddings = nn.Embedding(shape.max_positions, shape.dim)
        self.lang_embeddings = nn.Embedding(shape.n_langs, shape.dim) if shape.uses_languages else None
        self.norm = nn.LayerNorm(shape.dim, eps=LAYER_NORM_EPS)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.output_bias = nn.Parameter(torch.empty(shape.n_rows))  # the output weights are self.embeddings'
        initialise(self)

    def forward(
        self,
        tokens_BT: Tensor,
        langs: Tensor | int | None = None,
        lengths_B: Tensor | None = None,
        causal: bool = True,
        positions_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of the last layer.

        tokens_BT: token ids. langs: language ids, one for all, or broadcastable to (B, T). lengths_B: tokens of each
        row that count, the rest being padding (hidden states there are zero); without it all count. causal: position
        p sees 0..p; otherwise the whole row. positions_BT: default 0..T-1. With a `cache` the new tokens
        stand at positions_BT, and see everything of their row at positions up to their own.
        """
        return self._encode(self.embeddings(tokens_BT), langs, lengths_B, causal, positions_BT, cache)

    def _encode(
        self,
        words_BTD: Tensor,
        langs: Tensor | int | None,
        lengths_B: Tensor | None = None,
        causal: bool = True,
        positions_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """`forward` from the words' embeddings on."""
        x = words_BTD
        T = x.shape[1]
        if positions_BT is None:
            x = x + self.position_embeddings.weight[:T]
        else:
            x = x + self.position_embeddings(positions_BT)
        if self.lang_embeddings is not None:
            if langs is None:
                raise ValueError("this model has language embeddings: `langs` is needed")
            if isinstance(langs, int):  # the training case: a (D,) row; as a tensor the number would be sent to the GPU
                x = x + self.lang_embeddings.weight[langs]
            else:
                rows = self.lang_embeddings(langs)
                x = x + (rows[:, None] if langs.ndim == 1 else rows)
        x = dropout(self.norm(x), self.shape.dropout, self.training)

        visible, keep = None, None
        if lengths_B is not None:
            keep = torch.arange(T, device=x.device) < lengths_B[:, None]
            x = x * keep[:, :, None]
            if not causal:
                visible = keep[:, None, None, :]
        if cache is not None:
            if positions_BT is None:
                raise ValueError("with a cache, positions_BT says where the new tokens stand")
            slots = torch.arange(cache.capacity, device=x.device)
            visible, causal = (slots <= positions_BT[:, :, None])[:, None], False

        for number, block in enumerate(self.blocks):
            if self.recompute and self.training:
                x = checkpoint(block, x, causal, visible, use_reentrant=False)
            else:
                x = block(x, causal, visible, None if cache is None else (cache, number, positions_BT))
            if keep is not None:
                x = x * keep[:, :, None]
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (..., V) over the real vocabulary (padding rows cut off)."""
        scores = F.linear(hidden, self.embeddings.weight, self.output_bias)
        return scores[..., : self.shape.n_words]

    def loss(self, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats over all targets, a float32 scalar; the logits are never held all at once."""
        return linear_cross_entropy(
            hidden_BTD.reshape(-1, self.shape.dim),
            self.embeddings.weight,
            self.output_bias,
            targets_BT.reshape(-1),
            n_words=self.shape.n_words,
        )

    def next_token_loss(self, windows_BT: Tensor, langs: Tensor | int | None) -> Tensor:
        """Mean cross-entropy in nats where position p of each window predicts its token p+1: T-1 predictions a window.

        Equals loss(forward(windows_BT[:, :-1], langs), windows_BT[:, 1:]), but the embedding's gradient is formed once:
        the lookup adds its rows to the softmax layer's, instead of two (V, D) gradients being made and summed.
        """
        words_BTD, output_weight = tied_lookup(self.embeddings.weight, windows_BT[:, :-1], PAD)
        hidden_BTD = self._encode(words_BTD, langs)
        return linear_cross_entropy(
            hidden_BTD.reshape(-1, self.shape.dim),
            output_weight,
            self.output_bias,
            windows_BT[:, 1:].reshape(-1),
            n_words=self.shape.n_words,
        )


@torch.no_grad()
def initialise(model: XLM) -> None:
    """Initial weights as the original's.

    Embeddings normal with deviation D^-0.5 and a zero row for padding; Linear layers and the output bias uniform
    in +-1/sqrt(fan-in) (PyTorch's default for Linear); LayerNorm 1 and 0. Sinusoidal positions are fixed, sine on
    even and cosine on odd columns (Vaswani et al. 2017, section 3.5).
    """
    shape = model.shape
    for table in (model.embeddings, model.position_embeddings, model.lang_embeddings):
        if table is not None:
            nn.init.normal_(table.weight, std=shape.dim**-0.5)
    model.embeddings.weight[PAD].zero_()
    model.embeddings.weight[shape.n_words :].zero_()
    nn.init.uniform_(model.output_bias, -(shape.dim**-0.5), shape.dim**-0.5)
    model.output_bias[shape.n_words :].zero_()
    if shape.sinusoidal_positions:
        position = torch.arange(shape.max_positions, dtype=torch.float64)[:, None]
        angle = position / 10_000 ** (torch.arange(0, shape.dim, 2, dtype=torch.float64) / shape.dim)
        model.position_embeddings.weight[:, 0::2] = angle.sin().float()
        model.position_embeddings.weight[:, 1::2] = angle.cos().float()
        model.position_embeddings.weight.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()


def count_parameters(model: XLM) -> int:
    """Trainable and fixed parameters, tied weights once, without the vocabulary's padding rows."""
    padding = (model.shape.n_rows - model.shape.n_words) * (model.shape.dim + 1)
    return sum(parameter.numel() for parameter in model.parameters()) - padding
