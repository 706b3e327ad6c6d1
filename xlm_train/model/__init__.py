"""Batches of token ids to numbers: the transformer, its operations, decoding, checkpoints opened for use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["XLM", "ModelShape"]

if TYPE_CHECKING:
    from xlm_train.model.transformer import XLM, ModelShape
else:

    def __getattr__(name: str) -> Any:  # `flops` and `decoding` can be imported without loading torch
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from xlm_train.model import transformer

        return getattr(transformer, name)
