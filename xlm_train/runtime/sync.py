"""Whether a tensor's value may be looked at inside a training step."""

from __future__ import annotations

from torch import Tensor


def is_free_to_read(tensor: Tensor) -> bool:
    """Whether reading the tensor's value costs nothing: on a CPU it is there. On a GPU it waits for all work given out so
    far, and the GPU then for the next work.

    Everything in a step that looks at a value asks this first, so that a test can forbid it on a CPU too and count.
    """
    return tensor.device.type == "cpu"
