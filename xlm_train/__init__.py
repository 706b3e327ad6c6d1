"""Pretraining of causal cross-lingual language models, from raw text to checkpoints that transformers reads.

What a notebook needs is here: `load_pretrained`, `prepare_text`, `data.Corpus`, `model.XLM` (docs/api.md). Names are
imported when they are first used: the commands set OpenMP's variables before torch is loaded, and print help without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["__version__", "data", "load_pretrained", "model", "prepare_text"]

if TYPE_CHECKING:
    from xlm_train import data, model
    from xlm_train.model.pretrained import load_pretrained, prepare_text

    __version__: str
else:

    def __getattr__(name: str) -> Any:
        import importlib

        if name == "__version__":
            return importlib.import_module("importlib.metadata").version(__name__)
        if name in ("data", "model"):
            return importlib.import_module(f"{__name__}.{name}")
        if name in __all__:
            return getattr(importlib.import_module("xlm_train.model.pretrained"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
