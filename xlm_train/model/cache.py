"""Keys and values of positions already read, so that decoding computes each position once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xlm_train.model.shape import ModelShape

Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # new keys and values in, all that the layer has out


class KeyValueCache:
    """Rows that may stand at different positions: a query at position p sees the slots 0..p of its own row.

    Args:
        shape: Of the model.
        batch: Rows B.
        capacity: Positions that a row can hold.
        like: A tensor of the dtype and on the device that keys and values have.
    """

    def __init__(self, shape: ModelShape, batch: int, capacity: int, like: Tensor) -> None:
        size = (2, batch, shape.n_heads, capacity, shape.dim // shape.n_heads)
        self.layers = [torch.zeros(size, dtype=like.dtype, device=like.device) for _ in range(shape.n_layers)]
        self.capacity = capacity

    def visible(self, positions_BT: Tensor) -> Tensor:
        """Which slots each query sees, (B, 1, T, capacity)."""
        slots = torch.arange(self.capacity, device=positions_BT.device)
        return (slots <= positions_BT[:, :, None])[:, None]

    def store(self, layer: int, positions_BT: Tensor) -> Store:
        """What puts new keys and values (B, H, T, E) at their positions, and returns all of the layer's."""
        return functools.partial(self._store, layer, positions_BT)

    def _store(self, layer: int, positions_BT: Tensor, k_BHTE: Tensor, v_BHTE: Tensor) -> tuple[Tensor, Tensor]:
        index = positions_BT[:, None, :, None].expand_as(k_BHTE)
        keys, values = self.layers[layer]
        keys.scatter_(2, index, k_BHTE)
        values.scatter_(2, index, v_BHTE)
        return keys, values


class AlignedCache:
    """Rows that all stand at the same position and read one token at a time: no mask, no look at unused slots.

    Args:
        shape: Of the model.
        batch: Rows B.
        capacity: Positions that a row can hold.
        like: A tensor of the dtype and on the device that keys and values have.
    """

    def __init__(self, shape: ModelShape, batch: int, capacity: int, like: Tensor) -> None:
        size = (2, batch, shape.n_heads, capacity, shape.dim // shape.n_heads)
        self.layers = [torch.empty(size, dtype=like.dtype, device=like.device) for _ in range(shape.n_layers)]
        self.length = 0

    def visible(self, positions_BT: Tensor) -> None:
        """All that `store` returns."""

    def store(self, layer: int, positions_BT: Tensor) -> Store:
        """What puts keys and values (B, H, 1, E) behind the others, and returns all of the layer's."""
        return functools.partial(self._store, layer)

    def _store(self, layer: int, k_BH1E: Tensor, v_BH1E: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.layers[layer]
        keys[:, :, self.length] = k_BH1E[:, :, 0]
        values[:, :, self.length] = v_BH1E[:, :, 0]
        return keys[:, :, : self.length + 1], values[:, :, : self.length + 1]

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was; there may be fewer than before. Rows that stay in place cost nothing."""
        moved = [place for place, row in enumerate(rows) if place != row]
        to = torch.tensor(moved, dtype=torch.int64, device=self.layers[0].device)
        origin = torch.tensor([rows[place] for place in moved], dtype=torch.int64, device=self.layers[0].device)
        for number, layer in enumerate(self.layers):
            if moved:
                used = layer[:, :, :, : self.length]
                used.index_copy_(1, to, used.index_select(1, origin))
            self.layers[number] = layer[:, : len(rows)]
