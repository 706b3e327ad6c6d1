"""The sizes and options of a model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from xlm_train.runtime.errors import ConfigError

# Beyond these a value is a slip of the keyboard: no model comes near, and making one would take days or all memory.
LARGEST = {
    "dim": 2**17,
    "n_layers": 2**12,
    "n_heads": 2**12,
    "ffn_dim": 2**20,
    "max_positions": 2**22,
    "vocab_multiple": 2**16,
}
# Fields that may differ from those of a checkpoint whose weights are taken, or are said elsewhere.
FREE = ("dropout", "attention_dropout", "n_words", "n_langs", "vocab_multiple")


@dataclass(frozen=True)
class ModelShape:
    """Everything that fixes the model's parameters and arithmetic.

    Args:
        n_words: Vocabulary entries, specials included.
        n_langs: Languages; with 1 there is no language embedding.
        dim: Width D.
        n_layers: Blocks.
        n_heads: Attention heads; they divide `dim`.
        ffn_dim: Width inside the feed-forward layers.
        max_positions: The longest window in tokens.
        dropout: Of the embeddings and of what each block adds, in [0, 1).
        attention_dropout: Of the attention weights, in [0, 1).
        sinusoidal_positions: Fixed positions instead of learned ones.
        language_embeddings: Add each language's vector to the input.
        vocab_multiple: The embedding matrix is padded to a multiple of this many rows (the commands' default is 8:
            tensor cores want it in half precision, and a CPU's products are faster); the padding rows are outside the
            softmax and are never exported.

    Raises:
        ConfigError: With every value that cannot work, each named as its override.
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
        if 0 < self.dim <= LARGEST["dim"] and self.n_heads > 0 and self.dim % self.n_heads:
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
        for name, largest in LARGEST.items():
            if getattr(self, name) > largest:
                problems.append(f"model.{name}={getattr(self, name)} must be at most {largest}")
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
        """Whether the model has language embeddings."""
        return self.language_embeddings and self.n_langs > 1

    def to_dict(self) -> dict[str, Any]:
        """Field -> value, as checkpoints hold it."""
        return asdict(self)
