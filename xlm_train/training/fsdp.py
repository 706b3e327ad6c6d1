"""FSDP2: each process keeps a part of the weights, gradients and moments only, and gathers a block's weights to use them.

Source: Rajbhandari et al. 2020 (ZeRO stage 3); torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from xlm_train.model.transformer import XLM
from xlm_train.training.strategy import HandshakeDDPStrategy


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, on every process. A collective where it is divided."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor: all of it where it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextlib.contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Keep a divided model's weights whole while the block runs: processes may then run it unequally often. A collective.

    Args:
        model: any; one that is not divided stays as it is.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    yield
    for part in parts:
        part.reshard()
        part.set_reshard_after_forward(part is not model, recurse=False)


class ShardedStrategy(HandshakeDDPStrategy):
    """The processes meet as under DDP, then divide the model. Checkpoints hold all of it, as without division."""

    def configure_ddp(self) -> None:
        """Divide the model instead of wrapping it: each block by itself, the embeddings and the rest together."""
        assert self.lightning_module is not None
        model = self.lightning_module.model
        assert isinstance(model, XLM)  # config/train.py refuses others
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        for loss in ("next_token_loss", "masked_loss"):
            register_fsdp_forward_method(model, loss)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Collect the whole weights for a checkpoint, on the first process. A collective."""
        return self._collected(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Collect the whole moments for a checkpoint, on the first process. A collective."""
        optimizer = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = optimizer.state_dict()
        return {**state, "state": {number: self._collected(moments) for number, moments in state["state"].items()}}

    def _collected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        collected = {}
        for name, tensor in tensors.items():
            found = whole(tensor)
            if self.is_global_zero:
                collected[name] = found.cpu()  # one at a time: all of it may not fit on the device
        return collected

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Divide a checkpoint's moments as the weights are, and load this process's part."""
        divided = []
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            parts = {number: _like(parameters[number], moments) for number, moments in state["state"].items()}
            divided.append({**state, "state": parts})
        super().load_optimizer_state_dict({"optimizer_states": divided})


def _like(parameter: DTensor, moments: Mapping[str, Any]) -> dict[str, Any]:
    """Divide moments as their parameter is; the step count stays whole."""
    return {
        name: distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        if value.shape == parameter.shape
        else value
        for name, value in moments.items()
    }
