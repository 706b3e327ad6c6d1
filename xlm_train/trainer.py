"""Lightning's Trainer, with only the parts of it that are used."""

from __future__ import annotations

import logging
import warnings
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from xlm_train.precision import Float16


def quiet_lightning() -> None:
    """Leave out what Lightning tells everybody at every start; its warnings stay."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")


def make_trainer(config: dict[str, Any], callbacks: list[pl.Callback], loggers: list[Any]) -> pl.Trainer:
    """Lightning's Trainer: devices, processes and precision are its part; checkpoints, validation and progress are ours."""
    settings = config["trainer"]
    world = settings["devices"] * settings["nodes"]
    plugins: list[Any] = []
    if settings["precision"] == "16-mixed":
        plugins.append(Float16(settings["accelerator"]))
    if world == 1:  # also inside a scheduler's allocation, which is then not ours to share
        plugins.append(LightningEnvironment())
    accelerator: str = settings["accelerator"]
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    strategy = DDPStrategy(
        gradient_as_bucket_view=True, timeout=timedelta(seconds=settings["start_timeout_seconds"])
    )  # RollCall sets the later timeout
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=settings["devices"],
        num_nodes=settings["nodes"],
        strategy=strategy if world > 1 else "auto",
        precision=None if settings["precision"] == "16-mixed" else settings["precision"],
        plugins=plugins or None,
        callbacks=callbacks,
        logger=loggers,
        max_epochs=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        benchmark=False,
    )
    # Lightning's own signal handling hangs under DDP, and asks every process about it before every step.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer
