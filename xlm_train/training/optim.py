"""The original's Adam. The fast default is torch's own AdamW (see configs/optimizer)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from xlm_train.runtime.errors import ConfigError


class OriginalAdam(torch.optim.Optimizer):
    """Adam with epsilon added before bias correction, as the original computes it.

    m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  p -= lr * wd * p  (decoupled, on every parameter);
    p -= lr * sqrt(1-b2^t) / (1-b1^t) * m / (sqrt(v) + eps)
    torch's Adam divides by (sqrt(v / (1-b2^t)) + eps): the same but for eps, which there weighs up to sqrt(1-b2) times
    less in the first steps. State-dict layout as torch.optim.Adam's (step, exp_avg, exp_avg_sq), so the two can be
    exchanged.

    Args:
        params: parameters, or groups of them.
        lr: learning rate; the run sets it before each update.
        betas: b1 and b2, the decay of the running means of gradient and squared gradient.
        eps: added to the root of the second moment before bias correction.
        weight_decay: share of each weight that is taken off, times lr.

    Raises:
        ConfigError: a beta is not in [0, 1).

    Source: src/optim.py of the original.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas={list(betas)}: each must be in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Apply one update to every parameter that has a gradient.

        Args:
            closure: computes the loss again, as torch's optimizers have it; rarely needed.

        Returns:
            What the closure returned; None without one.
        """
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = {
                        "step": torch.tensor(0.0),  # on the CPU: reading it never waits for a GPU
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            states = [self.state[p] for p in params]
            grads = [p.grad for p in params]
            first = [state["exp_avg"] for state in states]
            second = [state["exp_avg_sq"] for state in states]
            beta1, beta2 = group["betas"]
            for state in states:
                state["step"] += 1
            count = int(states[0]["step"])
            torch._foreach_lerp_(first, grads, 1 - beta1)
            torch._foreach_mul_(second, beta2)
            torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            denominator = torch._foreach_sqrt(second)
            torch._foreach_add_(denominator, group["eps"])
            step_size = group["lr"] * math.sqrt(1 - beta2**count) / (1 - beta1**count)
            torch._foreach_addcdiv_(params, first, denominator, -step_size)
        return loss
