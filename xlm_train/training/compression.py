"""Gradients sent in fewer bytes: DDP's communication hooks, registered by us.

Lightning takes hooks as arguments and silently leaves them out on a CPU; here they are registered or it is an error.
"""

from __future__ import annotations

from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

COMPRESSIONS = ("fp16", "powersgd")
RANK = 4  # of PowerSGD's approximation
EXACT_STEPS = 1000  # plain all-reduces before PowerSGD begins, in every start: early gradients compress badly


def register(ddp: DistributedDataParallel, name: str) -> None:
    """Let a DDP model exchange its gradients as float16 (half the bytes) or by PowerSGD (Vogels et al. 2019).

    PowerSGD keeps an error feedback in each process that no checkpoint holds: a resumed run is then not the undisturbed
    one bit for bit. With "fp16" it is.
    """
    if name == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    else:
        state = powerSGD_hook.PowerSGDState(
            process_group=None, matrix_approximation_rank=RANK, start_powerSGD_iter=EXACT_STEPS
        )
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
