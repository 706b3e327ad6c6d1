"""The training step against 200 updates of the original, on its own batches, through Lightning's loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from xlm_train.data.datamodule import SlotBatch, StepBatch
from xlm_train.interop.original.names import infer_shape, to_original, to_ours
from xlm_train.model.transformer import XLM
from xlm_train.objectives.clm import CausalLM, Windows
from xlm_train.training.module import LanguageModel
from xlm_train.training.optim import OriginalAdam
from xlm_train.training.schedule import inverse_sqrt


class Recorder(pl.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: LanguageModel, *_: object) -> None:  # type: ignore[override]
        module.reduce_losses()
        (row,) = module.state.losses.take()
        self.losses += row.by_stream().values()  # one slot
        self.norms.append(row.grad_norm)
        self.rates.append(module.learning_rate)


@pytest.mark.parametrize(
    ("optimizer", "loss_bound", "weight_bound"),
    [(OriginalAdam, 1e-6, 2e-6), (torch.optim.AdamW, 1.5e-4, 6e-4)],
    ids=["the original's arithmetic", "torch's own AdamW"],
)
def test_200_updates(
    optimizer: type[torch.optim.Optimizer],
    loss_bound: float,
    weight_bound: float,
    shared: Path,
    golden_state: Callable[[str], dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    golden = shared / "goldens/train"
    steps = json.loads((golden / "log.json").read_text())["steps"]
    start, end = golden_state("init"), golden_state("final")
    batches = np.load(golden / "batches.npz")
    shape = infer_shape(
        start, "golden", n_langs=2, n_heads=4, dropout=0.0, attention_dropout=0.0, sinusoidal_positions=False
    )
    model = XLM(shape)
    model.load_state_dict(to_ours(start, shape, "golden"))
    module = LanguageModel(
        model,
        CausalLM(None),  # type: ignore[arg-type]  # its batches are made here
        make_optimizer=lambda p: optimizer(p, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),  # type: ignore[call-arg]
        schedule=lambda k: inverse_sqrt(k, 5e-4, warmup_updates=50),
        stop=200,
        slots=1,
        clip_norm=5.0,
        seed=0,
    )
    languages = {"de": 0, "en": 1}
    data = [
        StepBatch(
            t,
            (
                SlotBatch(
                    0,
                    languages[str(lang)],
                    Windows(torch.from_numpy(x.T.astype(np.int64).copy()), languages[str(lang)]),
                ),
            ),
        )
        for t, (x, lang) in enumerate(zip(batches["x"], batches["lang"], strict=True))
    ]
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[recorder], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))

    assert recorder.rates == [step["lr"] for step in steps]
    assert recorder.losses == pytest.approx([step["loss"] for step in steps], rel=loss_bound)
    assert recorder.norms == pytest.approx([step["grad_norm"] for step in steps], rel=1e-3)
    ours = to_original(model.state_dict(), shape, tied=False)
    assert ours.keys() == end.keys()
    difference = sum(float((ours[name] - end[name]).double().square().sum()) for name in end) ** 0.5
    norm = sum(float(value.double().square().sum()) for value in end.values()) ** 0.5
    assert difference <= weight_bound * norm
