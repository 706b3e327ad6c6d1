"""What this machine's CPU does with the model, measured in seconds by the clock.

A real step (forward, backward, clipping, update) of a model of the same width and vocabulary, but with two layers (one
where the planned one has two) and fewer streams, is timed in its three parts. Each part is then scaled by what it has to
do in the model that is planned: matrix products by their operations, updates by parameters. So depth and batch of the
planned run are predicted, not measured.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from xlm_train.model.transformer import ModelShape

PROBE_FLOPS = 1.5e11  # of the probe's step: a second or two of one core
VOCABULARY_PASSES = 5  # over a float32 matrix of the vocabulary's size: a gradient is scaled and added to another

Clock = Callable[[], float]


@dataclass(frozen=True)
class StepParts:
    """Seconds of a step's parts.

    Args:
        blocks: Forward and backward, all but the loss.
        loss: The output softmax with its gradient.
        update: Norm, clipping, optimizer.
    """

    blocks: float
    loss: float
    update: float


@dataclass(frozen=True)
class Speed:
    """What a machine does in a second.

    Args:
        blocks: FLOPs in the blocks.
        softmax: FLOPs in the output softmax.
        update: Parameters updated.
        memory: Bytes read or written.
        peak: FLOPs of the fastest of the model's products.
        weights: Bytes of weights read while few words at once go through them.
    """

    blocks: float
    softmax: float
    update: float
    memory: float
    peak: float
    weights: float = math.inf


class RealStep:
    """Training steps of a new model on random tokens: the arithmetic of training/module.py without Lightning around it.

    Args:
        shape: The model's.
        streams: Of a slot.
        positions: Predicted tokens of a stream.
        slots: Of a step.
        recompute: Whether the blocks' activations are computed again in the backward pass.
        make_optimizer: Of the parameters; AdamW if None.
        clock: time.perf_counter, or time.process_time to leave out what other programs take of a core (for one thread).
        precision: "32-true" or "bf16-mixed".
    """

    def __init__(
        self,
        shape: ModelShape,
        streams: int,
        positions: int,
        slots: int = 1,
        recompute: bool = False,
        make_optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer] | None = None,
        clock: Clock = time.perf_counter,
        precision: str = "32-true",
    ) -> None:
        import torch
        from pytorch_lightning.plugins.precision import Precision

        from xlm_train.model.transformer import XLM
        from xlm_train.training.precision import DTYPES, Autocast

        self.model = XLM(shape, recompute=recompute)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = (
            make_optimizer(self.parameters) if make_optimizer else torch.optim.AdamW(self.parameters, fused=True)
        )
        self.slots = slots
        self.clock = clock
        self.tokens = torch.randint(shape.n_words, (streams, positions + 1))
        self.arithmetic = Autocast(precision, "cpu") if precision in DTYPES else Precision()
        self.loss_began = 0.0
        self.model.blocks[-1].register_forward_hook(self._begin_loss)

    def _begin_loss(self, *_: Any) -> None:
        self.loss_began = self.clock()

    def run(self) -> StepParts:
        """Take one step."""
        with self.arithmetic.forward_context():
            return self._run()

    def _run(self) -> StepParts:
        import torch

        start, loss_seconds = self.clock(), 0.0
        for _ in range(self.slots):
            loss = self.model.next_token_loss(self.tokens, 0) / self.slots
            loss_seconds += self.clock() - self.loss_began
            loss.backward()
        middle = self.clock()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        torch._foreach_mul_(gradients, float((5.0 / (norm + 1e-6)).clamp(max=1.0)))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepParts(middle - start - loss_seconds, loss_seconds, self.clock() - middle)


def probe_shape(shape: ModelShape, streams: int, positions: int) -> tuple[ModelShape, int]:
    """Choose what to measure: another depth than the planned one, few enough streams to stay below PROBE_FLOPS.

    Args:
        shape: The planned model's.
        streams: Of a planned slot.
        positions: Predicted tokens of a stream.

    Returns:
        The shape with two layers, or one where the planned model has two, and at most half the streams.
    """
    small = replace(shape, n_layers=1 if shape.n_layers == 2 else 2)
    blocks, softmax = _flops(small, positions)
    return small, max(1, min(streams // 2, int(PROBE_FLOPS / (positions * (blocks + softmax)))))


def measure(
    shape: ModelShape,
    streams: int,
    positions: int,
    seconds: float = 4.0,
    clock: Clock = time.perf_counter,
    precision: str = "32-true",
) -> Speed:
    """Measure this machine.

    Args:
        shape: The planned model's.
        streams: Of a planned slot.
        positions: Predicted tokens of a stream.
        seconds: About how long.
        clock: See `RealStep`.
        precision: See `RealStep`.

    Returns:
        What the machine does with this model in a second.
    """
    small, few = probe_shape(shape, streams, positions)
    step = RealStep(small, few, positions, clock=clock, precision=precision)
    step.run()  # the first fetches memory and lays out gradients and moments
    samples: list[StepParts] = []
    end = time.perf_counter() + seconds
    while len(samples) < 3 or (time.perf_counter() < end and len(samples) < 50):
        samples.append(step.run())
    parameters = sum(p.numel() for p in step.parameters)
    del step
    median = StepParts(*(statistics.median(getattr(s, part) for s in samples) for part in ("blocks", "loss", "update")))
    peak = product_speed(shape, few * positions, clock, precision)
    return speed_of(median, small, few, positions, parameters, memory_speed(clock), peak)


def speed_of(
    parts: StepParts, shape: ModelShape, streams: int, positions: int, parameters: int, memory: float, peak: float
) -> Speed:
    """Derive a machine's speed from a measured step.

    Args:
        parts: Seconds of the step.
        shape: The measured model's.
        streams: Of the step's one slot.
        positions: Predicted tokens of a stream.
        parameters: Of the measured model.
        memory: Bytes a second.
        peak: FLOPs a second.

    Returns:
        The speed.
    """
    tokens = streams * positions
    blocks, softmax = _flops(shape, positions)
    return Speed(
        blocks=tokens * blocks / parts.blocks,
        softmax=tokens * softmax / parts.loss,
        update=parameters / parts.update,
        memory=memory,
        peak=peak,
        weights=memory,
    )


def vocabulary_seconds(shape: ModelShape, memory: float) -> float:
    """Seconds that one of several slots takes to add its gradient of the vocabulary's matrix, whatever its tokens.

    Args:
        shape: The model's.
        memory: Bytes that the machine reads or writes in a second.

    Returns:
        Seconds.
    """
    return VOCABULARY_PASSES * 4.0 * shape.n_rows * shape.dim / memory


def memory_speed(clock: Clock) -> float:
    """Bytes read or written a second by adding a large array to another."""
    import torch

    a, b = torch.ones(2**24), torch.ones(2**24)
    return 3 * 4 * a.numel() / _median(lambda: a.add_(b), clock)


def product_speed(shape: ModelShape, tokens: int, clock: Clock, precision: str) -> float:
    """FLOPs a second of the fastest of the model's matrix products.

    Args:
        shape: The measured model's.
        tokens: Rows of the products; more than 2,048 are not taken.
        clock: See `RealStep`.
        precision: See `RealStep`.
    """
    import torch

    from xlm_train.model.ops.matmul import product
    from xlm_train.training.precision import DTYPES

    dtype = DTYPES.get(precision, torch.float32)
    tokens, best = min(tokens, 2048), 0.0
    for width in (3 * shape.dim, shape.ffn_dim, min(shape.n_rows, 8192)):
        a, b = torch.randn(tokens, shape.dim, dtype=dtype), torch.randn(shape.dim, width, dtype=dtype)
        seconds = _median(functools.partial(product, a, b), clock)
        best = max(best, 2.0 * tokens * shape.dim * width / seconds)
    return best


def _median(work: Callable[[], Any], clock: Clock) -> float:
    work()
    seconds = []
    for _ in range(5):
        start = clock()
        work()
        seconds.append(clock() - start)
    return statistics.median(seconds)


def _flops(shape: ModelShape, positions: int) -> tuple[int, int]:
    """FLOPs of a token in the blocks and in the output softmax."""
    from xlm_train.model.flops import flops_per_token

    parts = flops_per_token(shape, positions, recompute=False)
    softmax = parts["output softmax"].total
    return sum(part.total for part in parts.values()) - softmax, softmax
