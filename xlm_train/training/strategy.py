"""DDP as a run uses it: a handshake before the first collective, gradients sent in fewer bytes, divided optimizer state."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from xlm_train.runtime.control_group import ProcessesMissing
from xlm_train.runtime.errors import UserError

SHARDINGS = ("zero", "fsdp")
COMPRESSIONS = ("fp16", "powersgd")
POWERSGD_RANK = 4  # of the approximation
POWERSGD_EXACT_STEPS = 1000  # plain all-reduces before it begins, in every start: early gradients compress badly


class HandshakeDDPStrategy(DDPStrategy):
    """DDP whose processes meet before anything else, and whose buckets have their final layout from the first step.

    Args:
        handshake: given this process's rank and device; runs before the first collective on the GPUs.
        start_timeout: seconds within which all processes must come.
        compression: of the gradients that processes exchange: "fp16", "powersgd" or None.
    """

    def __init__(
        self,
        handshake: Callable[[int, torch.device], None],
        start_timeout: float,
        compression: str | None = None,
    ) -> None:
        super().__init__(gradient_as_bucket_view=True, timeout=timedelta(seconds=start_timeout))
        self.handshake = handshake
        self.start_timeout = start_timeout
        self.compression = compression

    def setup_distributed(self) -> None:
        """Let the processes find each other, then let Lightning set up the rest.

        Raises:
            ProcessesMissing: they did not all come within `start_timeout`.
            UserError: the handshake found that they cannot train together.
        """
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
        try:
            self.handshake(environment.global_rank(), self.root_device)
        except UserError:
            dist.destroy_process_group()  # NCCL warns of a group that is left when the process ends
            raise
        super().setup_distributed()

    def configure_ddp(self) -> None:
        """Wrap the model, and register the compression: Lightning leaves hooks out on a CPU without a word."""
        super().configure_ddp()
        if self.compression is not None:
            assert isinstance(self.model, DistributedDataParallel)
            compress(self.model, self.compression)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the optimizer's state from a checkpoint, whole or divided."""
        super().load_optimizer_state_dict(checkpoint)
        for optimizer in self.optimizers:
            move_step_counts(optimizer)


def compress(ddp: DistributedDataParallel, name: str) -> None:
    """Let a DDP model exchange its gradients as float16 (half the bytes) or by PowerSGD (Vogels et al. 2019).

    PowerSGD keeps an error feedback in each process that no checkpoint holds: a resumed run is then not the undisturbed
    one bit for bit. With "fp16" it is.
    """
    if name == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    else:
        state = powerSGD_hook.PowerSGDState(
            process_group=None, matrix_approximation_rank=POWERSGD_RANK, start_powerSGD_iter=POWERSGD_EXACT_STEPS
        )
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def optimizer_maker(
    make: functools.partial[torch.optim.Optimizer], sharding: str | None
) -> Callable[[Iterable[Tensor]], torch.optim.Optimizer]:
    """Return what makes the optimizer of a run.

    Under `zero` each process keeps the moments of its part of the parameters only (ZeRO stage 1). Each parameter is updated
    by one process with the same arithmetic, then sent to the others: the weights are those of the undivided optimizer, bit
    for bit. Source: Rajbhandari et al. 2020.
    """
    if sharding != "zero":
        return make
    return lambda parameters: ZeroRedundancyOptimizer(parameters, optimizer_class=make.func, **make.keywords)  # type: ignore[arg-type]


def move_step_counts(optimizer: torch.optim.Optimizer) -> None:
    """Put a divided optimizer's step counts back beside its parameters, where a fused update needs them.

    ZeroRedundancyOptimizer moves them to the CPU when it loads a state (torch 2.8 to 2.14).
    """
    if isinstance(optimizer, ZeroRedundancyOptimizer) and optimizer.optim.defaults.get("fused"):
        for parameter, moments in optimizer.optim.state.items():
            moments["step"] = moments["step"].to(parameter.device)
