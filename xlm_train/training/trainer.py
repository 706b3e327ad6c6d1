"""Lightning's Trainer, with only the parts of it that are used."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy

from xlm_train.runtime.control_group import ProcessesMissing
from xlm_train.training.precision import Float16


def quiet_lightning() -> None:
    """Leave out what Lightning tells everybody at every start; its warnings stay."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")


class Strategy(DDPStrategy):
    """DDP whose processes meet before anything else: `meet` runs before the first collective on the GPUs.

    meet: given this process's rank and device. start_timeout: seconds within which all must come.
    """

    def __init__(self, meet: Callable[[int, torch.device], None], start_timeout: float) -> None:
        super().__init__(gradient_as_bucket_view=True, timeout=timedelta(seconds=start_timeout))
        self.meet = meet
        self.start_timeout = start_timeout

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        environment = self.cluster_environment
        assert environment is not None
        if not dist.is_initialized():  # before Lightning does, which would begin with a collective on the GPUs
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
            try:
                dist.init_process_group(
                    "gloo" if self.root_device.type == "cpu" else "cpu:gloo,cuda:nccl",
                    rank=environment.global_rank(),
                    world_size=environment.world_size(),
                    timeout=timedelta(seconds=self.start_timeout),
                )
            except RuntimeError as error:
                raise ProcessesMissing(
                    f"the processes did not all come within trainer.start_timeout_seconds={self.start_timeout:g}: {error}"
                ) from error
        self.meet(environment.global_rank(), self.root_device)
        super().setup_distributed()


def make_trainer(
    config: dict[str, Any],
    callbacks: list[pl.Callback],
    loggers: list[Any],
    meet: Callable[[int, torch.device], None],
) -> pl.Trainer:
    """Lightning's Trainer: devices, processes and precision are its part; checkpoints, validation and progress are ours.

    meet: see `Strategy`; of a single process it is called here.
    """
    settings = config["trainer"]
    world = settings["devices"] * settings["nodes"]
    plugins: list[Any] = []
    if settings["precision"] == "16-mixed":
        plugins.append(Float16(settings["accelerator"]))
    # Chosen by us: Lightning would see a scheduler's allocation that is not meant, and miss one inside `salloc`.
    if world == 1:
        plugins.append(LightningEnvironment())
    elif "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_STEP_NUM_TASKS" not in os.environ:
        plugins.append(TorchElasticEnvironment())
    else:
        plugins.append(SLURMEnvironment(auto_requeue=False))
    accelerator: str = settings["accelerator"]
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    strategy: Any = "auto"
    if world > 1:
        strategy = Strategy(meet, settings["start_timeout_seconds"])
    else:
        meet(0, torch.device("cuda" if accelerator == "gpu" else "cpu"))
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=settings["devices"],
        num_nodes=settings["nodes"],
        strategy=strategy,
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
