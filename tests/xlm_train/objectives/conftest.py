"""The model of goldens/mt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from xlm_train.interop.original.names import to_ours
from xlm_train.model.transformer import XLM, ModelShape


@pytest.fixture(scope="session")
def first_model(shared: Path) -> Callable[..., XLM]:
    """load(ops) -> the encoder of goldens/mt at its start, in evaluation mode."""

    def load(ops: str = "fast") -> XLM:
        shape = ModelShape(n_words=6142, dim=64, n_layers=2, n_heads=4, ffn_dim=256, dropout=0.0, attention_dropout=0.0)
        model = XLM(shape, ops=ops)
        with np.load(shared / "goldens/mt/init_encoder.npz") as arrays:
            state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        model.load_state_dict(to_ours(state, shape, "init"))
        return model.eval()

    return load
