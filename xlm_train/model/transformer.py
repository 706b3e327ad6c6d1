"""The transformer of Lample & Conneau (2019), in one file.

Post-norm blocks (LayerNorm after each residual sum), erf GELU, learned positions, one embedding per language, input and
output embeddings tied. Shapes: B streams, T positions, D model width, H heads, E = D / H, V vocabulary.

Source: Lample & Conneau 2019, sections 3 and 5.1; Devlin et al. 2018 for the layer; behaviour checked against
activations and gradients of the original implementation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xlm_train.model.cache import AlignedCache, KeyValueCache, Store
from xlm_train.model.ops import OPS, PlainOps
from xlm_train.model.shape import ModelShape
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import PAD

LAYER_NORM_EPS = 1e-12


class SourceKeys(NamedTuple):
    """What one layer reads of the source: keys and values (B, H, S, E), and which of them are no padding."""

    k_BHSE: Tensor
    v_BHSE: Tensor
    visible_B11S: Tensor | None

    def select(self, rows: Tensor) -> SourceKeys:
        """Of these sentences only."""
        visible = None if self.visible_B11S is None else self.visible_B11S[rows]
        return SourceKeys(self.k_BHSE[rows], self.v_BHSE[rows], visible)


class Attention(nn.Module):
    """Multi-head self-attention with one fused query/key/value product."""

    def __init__(self, shape: ModelShape, ops: type[PlainOps]) -> None:
        super().__init__()
        self.ops = ops
        self.n_heads = shape.n_heads
        self.dropout = shape.attention_dropout
        self.qkv = ops.Linear(shape.dim, 3 * shape.dim)
        self.out = ops.Linear(shape.dim, shape.dim)

    def forward(
        self,
        x_BTD: Tensor,
        causal: bool,
        visible: Tensor | None = None,
        store: Store | None = None,
        chosen_N: Tensor | None = None,
    ) -> Tensor:
        """What each position takes from those it sees, (B, T, D); of the chosen ones alone (N, D).

        Args:
            x_BTD: Input.
            causal: Position p sees 0..p; then there is no `visible`, and no `store`.
            visible: Otherwise, which keys a query sees: booleans broadcastable to (B, H, T, keys); None: all.
            store: Takes the keys and values of these positions and returns those to be seen.
            chosen_N: Flat positions b * T + t; None: all.
        """
        B, T, D = x_BTD.shape
        qkv_BT3HE = self.qkv(x_BTD).view(B, T, 3, self.n_heads, D // self.n_heads)
        dropout = self.dropout if self.training else 0.0
        if store is None:
            context_BTHE = self.ops.attention(qkv_BT3HE, dropout, causal, visible)
        else:
            q, k, v = qkv_BT3HE.permute(2, 0, 3, 1, 4)
            context_BTHE = F.scaled_dot_product_attention(q, *store(k, v), visible, dropout).transpose(1, 2)
        context_BTD = context_BTHE.reshape(B, T, D)
        return self.out(context_BTD if chosen_N is None else context_BTD.flatten(0, 1).index_select(0, chosen_N))


class SourceAttention(nn.Module):
    """Multi-head attention of a decoder's positions over the encoder's states."""

    def __init__(self, shape: ModelShape, ops: type[PlainOps]) -> None:
        super().__init__()
        self.n_heads = shape.n_heads
        self.dropout = shape.attention_dropout
        self.q = ops.Linear(shape.dim, shape.dim)
        self.kv = ops.Linear(shape.dim, 2 * shape.dim)
        self.out = ops.Linear(shape.dim, shape.dim)

    def keys(self, states_BSD: Tensor, visible_B11S: Tensor | None) -> SourceKeys:
        """Keys and values of the source, which all of the decoder's positions share."""
        B, S, D = states_BSD.shape
        k, v = self.kv(states_BSD).view(B, S, 2, self.n_heads, D // self.n_heads).permute(2, 0, 3, 1, 4)
        return SourceKeys(k, v, visible_B11S)

    def forward(self, x_BTD: Tensor, source: SourceKeys) -> Tensor:
        """What each position takes from the source, (B, T, D); several rows in a row (beams) may share a source."""
        n_sources, _, _, E = source.k_BHSE.shape
        q_BHTE = self.q(x_BTD).view(n_sources, -1, self.n_heads, E).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        context_BHTE = F.scaled_dot_product_attention(q_BHTE, *source, dropout)
        return self.out(context_BHTE.transpose(1, 2).reshape(x_BTD.shape))


class FeedForward(nn.Module):
    """Linear, GELU (erf form), Linear."""

    def __init__(self, shape: ModelShape, ops: type[PlainOps]) -> None:
        super().__init__()
        self.ops = ops
        self.lin1 = ops.Linear(shape.dim, shape.ffn_dim)
        self.lin2 = ops.Linear(shape.ffn_dim, shape.dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D), each position by itself."""
        return self.ops.gelu_linear(self.lin1(x_BTD), self.lin2.weight, self.lin2.bias)


class Block(nn.Module):
    """One post-norm transformer layer; a decoder's reads a source between its two halves."""

    def __init__(self, shape: ModelShape, ops: type[PlainOps], reads_source: bool = False) -> None:
        super().__init__()
        self.ops = ops
        self.dropout = shape.dropout
        self.attention = Attention(shape, ops)
        self.norm1 = nn.LayerNorm(shape.dim, eps=LAYER_NORM_EPS)
        if reads_source:
            self.source_attention = SourceAttention(shape, ops)
            self.source_norm = nn.LayerNorm(shape.dim, eps=LAYER_NORM_EPS)
        self.ffn = FeedForward(shape, ops)
        self.norm2 = nn.LayerNorm(shape.dim, eps=LAYER_NORM_EPS)

    def forward(
        self,
        x_BTD: Tensor,
        causal: bool,
        visible: Tensor | None = None,
        store: Store | None = None,
        source: SourceKeys | None = None,
        chosen_N: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D), or (N, D); arguments as `Attention.forward`. Without a source its attention is left out."""
        attended = self.attention(x_BTD, causal, visible, store, chosen_N)
        if chosen_N is not None:
            x_BTD = x_BTD.flatten(0, 1).index_select(0, chosen_N)
        x_BTD = self.norm1(x_BTD + self.ops.dropout(attended, self.dropout, self.training))
        if source is not None:
            taken = self.source_attention(x_BTD, source)
            x_BTD = self.source_norm(x_BTD + self.ops.dropout(taken, self.dropout, self.training))
        return self.norm2(x_BTD + self.ops.dropout(self.ffn(x_BTD), self.dropout, self.training))


class XLM(nn.Module):
    """The language model.

    `forward` gives hidden states, `logits` and `loss` read them out; `next_token_loss` and `masked_loss` are trained.

    Args:
        shape: Sizes and options.
        recompute: Do not keep the activations inside blocks for the backward pass but compute them again there
            (activation checkpointing): memory for about a third more time.
        ops: `fast`, or `plain` for the same arithmetic in plain PyTorch (see `xlm_train.model.ops`).
        reads_source: Its blocks can read a source (see `xlm_train.model.seq2seq`).

    Raises:
        ConfigError: Where `ops` is neither.

    Example:
        >>> from xlm_train.model import XLM, ModelShape
        >>> model = XLM(ModelShape(n_words=1000, dim=64, n_layers=2, n_heads=4, ffn_dim=256))
        >>> windows = torch.randint(14, 1000, (8, 32))  # 8 windows of 32 tokens
        >>> model.next_token_loss(windows, langs=0).backward()
        >>> model.logits(model(windows, langs=0)).shape
        torch.Size([8, 32, 1000])
    """

    def __init__(
        self, shape: ModelShape, recompute: bool = False, ops: str = "fast", reads_source: bool = False
    ) -> None:
        super().__init__()
        if ops not in OPS:
            raise ConfigError(f"model.ops={ops}: must be one of {', '.join(OPS)}")
        self.shape = shape
        self.recompute = recompute
        self.ops = OPS[ops]
        self.embeddings = nn.Embedding(shape.n_rows, shape.dim, padding_idx=PAD)
        self.position_embeddings = nn.Embedding(shape.max_positions, shape.dim)
        self.lang_embeddings = nn.Embedding(shape.n_langs, shape.dim) if shape.uses_languages else None
        self.norm = nn.LayerNorm(shape.dim, eps=LAYER_NORM_EPS)
        self.blocks = nn.ModuleList(Block(shape, self.ops, reads_source) for _ in range(shape.n_layers))
        self.output_bias = nn.Parameter(torch.empty(shape.n_rows))  # the output weights are self.embeddings'
        initialise(self)

    def forward(
        self,
        tokens_BT: Tensor,
        langs: Tensor | int | None = None,
        lengths_B: Tensor | None = None,
        causal: bool = True,
        positions_BT: Tensor | None = None,
        cache: KeyValueCache | AlignedCache | None = None,
        words_BTD: Tensor | None = None,
        source: Sequence[SourceKeys] | None = None,
        chosen_N: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of the last layer; of the chosen positions alone (N, D).

        Args:
            tokens_BT: Token ids.
            langs: Language ids: one for all, one a row (B,), or broadcastable to (B, T).
            lengths_B: Tokens of each row that count, the rest being padding, whose hidden states are zero; without it
                all count.
            causal: Position p sees 0..p; otherwise the whole row.
            positions_BT: Default 0..T-1.
            cache: The new tokens stand at `positions_BT` and see everything of their row at positions up to their own.
            words_BTD: The tokens' embeddings, where they have been looked up.
            source: What each block reads of the source.
            chosen_N: Flat positions b * T + t that are wanted, none of them padding: after its attention the last block computes
                no others. None: all.

        Raises:
            ValueError: Without `langs` where the model has language embeddings; without `positions_BT` with a cache.
        """
        words_BTD = self.embeddings(tokens_BT) if words_BTD is None else words_BTD
        x_BTD = self._embed(words_BTD, langs, positions_BT)
        keep_BT1, visible = None, None
        stores: list[Store | None] = [None] * len(self.blocks)
        if lengths_B is not None:
            keep_BT = torch.arange(tokens_BT.shape[1], device=x_BTD.device) < lengths_B[:, None]
            keep_BT1 = keep_BT[:, :, None]
            x_BTD = x_BTD * keep_BT1
            if not causal:
                visible = keep_BT[:, None, None, :]
        if cache is not None:
            if positions_BT is None:
                raise ValueError("with a cache, positions_BT says where the new tokens stand")
            visible, causal = cache.visible(positions_BT), False
            stores = [cache.store(layer, positions_BT) for layer in range(len(self.blocks))]
        *blocks, last = zip(self._runnable_blocks(), stores, self._layers_of(source), strict=True)
        for block, store, keys in blocks:
            x_BTD = block(x_BTD, causal, visible, store, keys)
            if keep_BT1 is not None:
                x_BTD = x_BTD * keep_BT1
        block, store, keys = last
        x_BTD = block(x_BTD, causal, visible, store, keys, chosen_N)
        return x_BTD if keep_BT1 is None or chosen_N is not None else x_BTD * keep_BT1

    def _embed(self, words_BTD: Tensor, langs: Tensor | int | None, positions_BT: Tensor | None = None) -> Tensor:
        """The first block's input: words, positions and languages, summed, normalised, dropped out."""
        x_BTD = words_BTD
        if positions_BT is None:
            x_BTD = x_BTD + self.position_embeddings.weight[: x_BTD.shape[1]]
        else:
            x_BTD = x_BTD + self.position_embeddings(positions_BT)
        if self.lang_embeddings is not None:
            if langs is None:
                raise ValueError("this model has language embeddings: `langs` is needed")
            if isinstance(langs, int):  # the training case: a (D,) row; as a tensor the number would be sent to the GPU
                x_BTD = x_BTD + self.lang_embeddings.weight[langs]
            else:
                rows = self.lang_embeddings(langs)
                x_BTD = x_BTD + (rows[:, None] if langs.ndim == 1 else rows)
        return self.ops.dropout(self.norm(x_BTD), self.shape.dropout, self.training)

    def _runnable_blocks(self) -> list[Callable[..., Tensor]]:
        if self.recompute and self.training:
            return [functools.partial(checkpoint, block, use_reentrant=False) for block in self.blocks]
        return list(self.blocks)

    def source_keys(self, states_BSD: Tensor, visible_B11S: Tensor | None) -> list[SourceKeys]:
        """What each block reads of a source, whose states an encoder gave."""
        return [block.source_attention.keys(states_BSD, visible_B11S) for block in self.blocks]  # type: ignore[union-attr, operator]

    def _layers_of(self, source: Sequence[SourceKeys] | None) -> Sequence[SourceKeys | None]:
        return [None] * len(self.blocks) if source is None else source

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (..., V) over the real vocabulary (padding rows cut off) of hidden states (..., D)."""
        scores = self.ops.linear(hidden, self.embeddings.weight, self.output_bias)
        return scores[..., : self.shape.n_words]

    def loss(self, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats over all targets, a float32 scalar; the logits are never held all at once."""
        return self._loss(hidden_BTD, self.embeddings.weight, targets_BT)

    def _loss(self, hidden_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor) -> Tensor:
        hidden_ND, targets_N = hidden_BTD.reshape(-1, self.shape.dim), targets_BT.reshape(-1)
        return self.ops.linear_cross_entropy(hidden_ND, weight_VD, self.output_bias, targets_N, self.shape.n_words)

    def next_token_loss(
        self,
        windows_BT: Tensor,
        langs: Tensor | int | None,
        source: Sequence[SourceKeys] | None = None,
        chosen_N: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy in nats where position p of each window predicts its token p+1.

        Equals loss(forward(windows_BT[:, :-1], langs), windows_BT[:, 1:]), but the embedding's gradient is formed once:
        the lookup adds its rows to the softmax layer's, instead of two (V, D) gradients being made and summed.

        Args:
            windows_BT: Token ids; T - 1 predictions a window.
            langs: As in `forward`.
            source: As in `forward`.
            chosen_N: Which of the B * (T-1) predictions count, in order; None: all.

        Returns:
            A float32 scalar.
        """
        words_BTD, output_weight = self.ops.tied_lookup(self.embeddings.weight, windows_BT[:, :-1], PAD)
        x_BTD = self._embed(words_BTD, langs)
        for block, keys in zip(self._runnable_blocks(), self._layers_of(source), strict=True):
            x_BTD = block(x_BTD, causal=True, source=keys)
        targets = windows_BT[:, 1:]
        if chosen_N is not None:
            x_BTD, targets = x_BTD.flatten(0, 1)[chosen_N], targets.flatten()[chosen_N]
        return self._loss(x_BTD, output_weight, targets)

    def masked_loss(
        self,
        tokens_BT: Tensor,
        langs: Tensor | int | None,
        chosen_N: Tensor,
        targets_N: Tensor,
        lengths_B: Tensor | None = None,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy in nats at the chosen positions, each seeing its whole row.

        Only the chosen rows leave the last block's attention and reach the softmax layer, and the embedding's gradient is formed
        once, as in `next_token_loss`.

        Args:
            tokens_BT: Token ids, the chosen ones replaced.
            langs: As in `forward`.
            chosen_N: Flat positions b * T + t, each once.
            targets_N: The words that stood there.
            lengths_B: As in `forward`.
            positions_BT: As in `forward`.

        Returns:
            A float32 scalar.
        """
        words_BTD, output_weight = self.ops.tied_lookup(self.embeddings.weight, tokens_BT, PAD)
        hidden_ND = self(
            tokens_BT, langs, lengths_B, causal=False, positions_BT=positions_BT, words_BTD=words_BTD, chosen_N=chosen_N
        )
        return self._loss(hidden_ND, output_weight, targets_N)


@torch.no_grad()
def initialise(model: XLM) -> None:
    """Give a model its initial weights.

    Embeddings are normal with deviation D^-0.5 and a zero row for padding; Linear layers and the output bias uniform
    in +-1/sqrt(fan-in) (PyTorch's default for Linear); LayerNorm 1 and 0. Sinusoidal positions are fixed, sine on
    even and cosine on odd columns.

    Source: the original's model/transformer.py; positions: Vaswani et al. 2017, section 3.5.
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


def count_parameters(model: nn.Module) -> int:
    """Trainable and fixed parameters, tied and shared weights once, without the vocabularies' padding rows.

    Args:
        model: An `XLM`, or one made of several.
    """
    parts = [part for part in model.modules() if isinstance(part, XLM)]
    padding = {
        weight: part.shape.n_rows - part.shape.n_words
        for part in parts
        for weight in (part.embeddings.weight, part.output_bias)
    }
    return sum(p.numel() - padding.get(p, 0) * p[0].numel() for p in model.parameters())
