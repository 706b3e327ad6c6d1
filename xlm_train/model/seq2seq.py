"""Translation: an encoder that reads a sentence in both directions, and a decoder that writes another beside it.

Both are the transformer of `xlm_train.model.transformer`, of one shape, so each can start from a language model. They
share nothing unless asked to, each has its own embeddings and an output layer tied to them. Shapes: B sentences, S
positions of the source, T of the target.

Source: Lample & Conneau 2019, section 3.4 and 5.1; behaviour checked against outputs and gradients of the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from xlm_train.model.shape import ModelShape
from xlm_train.model.transformer import XLM, SourceKeys
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import PAD

SHARE = ("none", "embeddings")  # the values of model.share
SIDES = ("encoder", "decoder")  # their names are prefixes in a state dict


class Seq2Seq(nn.Module):
    """Encoder and decoder.

    Args:
        shape: Of each of them.
        recompute: See `XLM`.
        ops: See `XLM`.
        share: `embeddings`: one table of token embeddings for both, and so for the output too; `none`: nothing.

    Raises:
        ConfigError: Where `share` is neither.

    Example:
        >>> from xlm_train.model import ModelShape
        >>> model = Seq2Seq(ModelShape(n_words=1000, dim=64, n_layers=2, n_heads=4, ffn_dim=256))
        >>> source_BS, lengths_B = pad([[1, 20, 21, 1], [1, 20, 1]])
        >>> target_BT, target_lengths_B = pad([[1, 31, 1], [1, 30, 31, 32, 1]])
        >>> source = model.encode(source_BS, 0, lengths_B)
        >>> model.loss(source, target_BT, 1, predictions(target_lengths_B)).backward()
    """

    def __init__(self, shape: ModelShape, recompute: bool = False, ops: str = "fast", share: str = "none") -> None:
        super().__init__()
        if share not in SHARE:
            raise ConfigError(f"model.share={share}: must be one of {', '.join(SHARE)}")
        self.shape = shape
        self.share = share
        self.recompute = recompute
        self.encoder = XLM(shape, recompute, ops)
        self.decoder = XLM(shape, recompute, ops, reads_source=True)
        if share == "embeddings":
            self.decoder.embeddings = self.encoder.embeddings
        # Nothing reads the encoder's output layer: without this its bias would wait for a gradient in every step.
        self.encoder.output_bias.requires_grad_(False)

    def encode(
        self, tokens_BS: Tensor, langs: Tensor | int | None, lengths_B: Tensor | None = None
    ) -> list[SourceKeys]:
        """What each block of the decoder reads of the source.

        Args:
            tokens_BS: Ids of the source, eos first and last.
            langs: As in `XLM.forward`.
            lengths_B: Tokens of each row, the rest being padding that the decoder does not see; None: all count.
        """
        states_BSD = self.encoder(tokens_BS, langs, lengths_B, causal=False)
        visible = None
        if lengths_B is not None:
            visible = (torch.arange(tokens_BS.shape[1], device=tokens_BS.device) < lengths_B[:, None])[:, None, None]
        return self.decoder.source_keys(states_BSD, visible)

    def forward(
        self,
        source_BS: Tensor,
        source_langs: Tensor | int | None,
        source_lengths_B: Tensor | None,
        target_BT: Tensor,
        target_langs: Tensor | int | None,
    ) -> Tensor:
        """Hidden states (B, T, D) of the decoder, each position's from the target up to itself and the source.

        Args:
            source_BS: Ids, eos first and last.
            source_langs: As in `XLM.forward`.
            source_lengths_B: As in `encode`.
            target_BT: Ids, eos first; each position is to predict the next.
            target_langs: As in `XLM.forward`.
        """
        source = self.encode(source_BS, source_langs, source_lengths_B)
        return self.decoder(target_BT, target_langs, source=source)

    def loss(
        self, source: Sequence[SourceKeys], target_BT: Tensor, target_langs: Tensor | int | None, chosen_N: Tensor
    ) -> Tensor:
        """Mean cross-entropy in nats of the targets' words.

        Args:
            source: From `encode`.
            target_BT: Ids, eos first and last, then padding, which no true position sees.
            target_langs: As in `XLM.forward`.
            chosen_N: The predictions that count, from `predictions`.

        Returns:
            A float32 scalar.
        """
        return self.decoder.next_token_loss(target_BT, target_langs, source, chosen_N)


def pad(sentences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Sentences in one tensor (B, T), padding behind them, and their lengths (B,)."""
    lengths_B = torch.tensor([len(sentence) for sentence in sentences])
    tokens_BT = torch.full((len(sentences), int(lengths_B.max())), PAD, dtype=torch.int64)
    for row, sentence in enumerate(sentences):
        tokens_BT[row, : len(sentence)] = torch.as_tensor(sentence)
    return tokens_BT, lengths_B


def predictions(lengths_B: Tensor) -> Tensor:
    """Places (N,) in B * (T-1) predictions of the next word that have a word to predict, for targets of these lengths.

    On the lengths' device: lengths on a GPU cost a synchronisation.
    """
    length = int(lengths_B.max()) - 1
    return (torch.arange(length, device=lengths_B.device) < lengths_B[:, None] - 1).flatten().nonzero()[:, 0]


def is_seq2seq(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is a translation model's and not a language model's."""
    return "decoder.embeddings.weight" in state


def side_of(state: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    """The state dict of a translation model's `encoder` or `decoder`, by its own names."""
    return {name.removeprefix(f"{side}."): value for name, value in state.items() if name.startswith(f"{side}.")}
