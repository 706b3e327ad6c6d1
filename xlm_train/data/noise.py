"""Random numbers as a function of (seed, step, slot), not of what ran before."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def _number(seed: int, step: int, slot: int) -> int:
    digest = hashlib.blake2b(f"{seed} {step} {slot}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_noise(seed: int, step: int, slot: int) -> None:
    """Seed torch's generators, on the CPU and this process's GPU, for the forward pass of one slot (dropout).

    The same slot gets the same noise on any process and after any number of restarts. Costs microseconds and does not
    synchronise a GPU. (torch.manual_seed would also record the call, with its whole stack, for every kind of device
    that has not been used yet: up to a millisecond from inside a training loop.)

    Args:
        seed: the run's.
        step: the step.
        slot: number of the slot within the step, over all processes.
    """
    number = _number(seed, step, slot)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(number)


def generator_of(seed: int, step: int, slot: int) -> np.random.Generator:
    """Make the generator from which an objective draws what it does to the tokens of one slot.

    Args:
        seed: the run's.
        step: the step.
        slot: number of the slot within the step, over all processes.
    """
    return np.random.Generator(np.random.PCG64(_number(seed, step, slot)))
