"""The model's operations, each as plain PyTorch states it (`PlainOps`) and as training runs it (`FastOps`).

Both give the same values and gradients but for rounding, which tests compare. Only dropout's noise differs: each draws
it in its own way, so two runs with dropout agree in distribution, not number by number.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from xlm_train.model.ops.attention import attention as _attention
from xlm_train.model.ops.dropout import dropout as _dropout
from xlm_train.model.ops.gelu import gelu_linear as _gelu_linear
from xlm_train.model.ops.linear_cross_entropy import linear_cross_entropy as _linear_cross_entropy
from xlm_train.model.ops.linear_cross_entropy import tied_lookup as _tied_lookup
from xlm_train.model.ops.matmul import Linear as _Linear
from xlm_train.model.ops.matmul import linear as _linear


class PlainOps:
    """What each operation computes, in plain PyTorch."""

    Linear: type[nn.Linear] = nn.Linear

    @staticmethod
    def linear(x: Tensor, weight_MK: Tensor, bias_M: Tensor) -> Tensor:
        """A linear layer of inputs (..., K): (..., M).

        Args:
            x: Inputs.
            weight_MK: Of the layer.
            bias_M: Of the layer.
        """
        return F.linear(x, weight_MK, bias_M)

    @staticmethod
    def dropout(x: Tensor, p: float, training: bool) -> Tensor:
        """Zero each element with probability p in training, and divide the others by 1 - p.

        Args:
            x: Of any shape.
            p: Probability, below 1.
            training: Otherwise `x` comes back as it is.
        """
        return F.dropout(x, p, training)

    @staticmethod
    def attention(qkv_BT3HE: Tensor, dropout: float, causal: bool, visible: Tensor | None = None) -> Tensor:
        """Contexts (B, T, H, E) where position p sees 0..p, or otherwise the keys of its row that are `visible`.

        Args:
            qkv_BT3HE: Queries, keys and values.
            dropout: Of the attention weights; the caller passes 0 outside of training.
            causal: Position p sees 0..p; then `visible` is not used.
            visible: Booleans (B, H, T, T), where all but the last size may be 1; None: all.
        """
        q, k, v = qkv_BT3HE.permute(2, 0, 3, 1, 4)
        mask = None if causal else visible
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal).transpose(1, 2)

    @staticmethod
    def gelu_linear(x_NF: Tensor, weight_DF: Tensor, bias_D: Tensor) -> Tensor:
        """A linear layer of the GELU (erf form) of its input.

        Args:
            x_NF: Before the GELU; there may be more sizes before the last.
            weight_DF: Of the layer.
            bias_D: Of the layer.
        """
        return F.linear(F.gelu(x_NF), weight_DF, bias_D)

    @staticmethod
    def tied_lookup(weight_VD: Tensor, tokens_BT: Tensor, padding: int) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T, D) of the tokens, and the weight (V, D) for the softmax layer that shares it.

        Args:
            weight_VD: Embeddings, which are the softmax layer's weights too.
            tokens_BT: Ids.
            padding: The id for which the lookup sends no gradient back.
        """
        return F.embedding(tokens_BT, weight_VD, padding_idx=padding), weight_VD

    @staticmethod
    def linear_cross_entropy(
        hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_N: Tensor, n_words: int | None = None
    ) -> Tensor:
        """Mean cross-entropy in nats of a linear softmax layer over its first `n_words` rows.

        Args:
            hidden_ND: Hidden states.
            weight_VD: Of the softmax layer.
            bias_V: Of the softmax layer.
            targets_N: Ids in [0, n_words).
            n_words: Rows that are real words; None: all.
        """
        return F.cross_entropy(F.linear(hidden_ND, weight_VD[:n_words], bias_V[:n_words]), targets_N)


class FastOps(PlainOps):
    """The same operations in less time and memory; each one's file says how."""

    Linear = _Linear
    linear = staticmethod(_linear)
    dropout = staticmethod(_dropout)
    attention = staticmethod(_attention)
    gelu_linear = staticmethod(_gelu_linear)
    tied_lookup = staticmethod(_tied_lookup)
    linear_cross_entropy = staticmethod(_linear_cross_entropy)


OPS: dict[str, type[PlainOps]] = {"fast": FastOps, "plain": PlainOps}  # the values of model.ops
