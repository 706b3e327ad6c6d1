"""The training step, as a Lightning module with manual optimization.

One call of `training_step` is one attempt at an update: this process's slots forward and backward one after the other
(gradient accumulation), one gradient reduction, one clipping, one optimizer step. The loss of the update is the mean
over all tokens that all processes predicted, however the slots are divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from xlm_train.data.datamodule import SlotBatch, StepBatch
from xlm_train.data.noise import seed_noise
from xlm_train.model.transformer import XLM
from xlm_train.runtime import device as host
from xlm_train.training.anomaly import BadNumbers, BadStep, Guard, TrainingStopped
from xlm_train.training.compression import register
from xlm_train.training.loss_buffer import Ledger
from xlm_train.training.state import LossScale, Progress
from xlm_train.training.stopwatch import Stopwatch


class CausalLanguageModel(pl.LightningModule):
    """Trains an `XLM` on slots.

    make_optimizer: parameters -> optimizer. schedule: update number -> learning rate. slots: slots of a global step.
    seed: of the dropout noise. guard: judges losses and gradients. max_skips: skipped attempts in a row that stop the
    run. excluded: steps that are passed over unread (a rollback found them bad). nan_steps: steps whose loss is made
    NaN, as a rehearsal. on_bad_step: told of every step that the policy `skip` left out. compression: of gradients that
    processes exchange (compression.py).
    """

    model: XLM

    def __init__(
        self,
        model: XLM,
        make_optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
        schedule: Callable[[int], float],
        slots: int,
        clip_norm: float,
        seed: int,
        float16: bool = False,
        guard: Guard | None = None,
        max_skips: int = 20,
        excluded: Collection[int] = (),
        nan_steps: Collection[int] = (),
        on_bad_step: Callable[[BadStep], None] = lambda bad: None,
        compression: str | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.make_optimizer = make_optimizer
        self.schedule = schedule
        self.slots = slots
        self.clip_norm = clip_norm
        self.seed = seed
        self.guard = guard or Guard()
        self.max_skips = max_skips
        self.excluded = frozenset(excluded)
        self.nan_steps = frozenset(nan_steps)
        self.on_bad_step = on_bad_step
        self.compression = compression
        self.stopwatch = Stopwatch()
        self.progress = Progress(loss_scale=LossScale() if float16 else None)
        self.ledger = Ledger(slots)
        self.grad_norm: Tensor | None = None  # of the last attempt, before clipping
        self.learning_rate = 0.0  # of the last attempt

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer([p for p in self.model.parameters() if p.requires_grad])

    def slot_loss(self, slot: SlotBatch) -> Tensor:
        """Mean loss of one slot: position p predicts p+1 inside each window, so T-1 targets a stream."""
        return self.model.next_token_loss(slot.tokens_BT, slot.language)

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        return batch.to(device, non_blocking=True)  # from pinned memory: the copy does not wait for the step before

    def on_train_start(self) -> None:
        if isinstance(self.trainer.model, DistributedDataParallel):
            if self.compression is not None:
                register(self.trainer.model, self.compression)
            self._settle_buckets(self.trainer.model)

    def _settle_buckets(self, ddp: DistributedDataParallel) -> None:
        """One reduction of throw-away gradients before the first step.

        DDP lays its buckets out anew, by the order in which gradients arrived, before its second reduction. Above two
        processes that changes the order of sums, so a resumed run would differ from an undisturbed one in its first
        step. After this, both start with the final layout.
        """
        nothing = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        self.manual_backward(self.slot_loss(SlotBatch(0, 0, nothing)) * 0.0)
        ddp.zero_grad(set_to_none=True)

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        progress = self.progress
        if batch.step in self.excluded:
            progress.skipped.append(batch.step)
            progress.step += 1
            return
        scale = progress.loss_scale.scale if progress.loss_scale is not None else 1.0
        # DDP averages over processes; each slot must weigh 1 / slots in the sum over all processes.
        weight = scale * self.trainer.world_size / self.slots
        self.ledger.begin(batch.step, self.device)
        self.stopwatch.start(self.device)
        for position, slot in enumerate(batch.slots):
            seed_noise(self.seed, batch.step, slot.number)
            last = position == len(batch.slots) - 1
            loss = self.slot_loss(slot)
            if batch.step in self.nan_steps and slot.number == 0:
                loss = loss * math.nan
            if position == 0:
                self.stopwatch.stop(self.device)  # one slot, whatever the share; backward may wait for others
            self._backward(loss * weight, last)
            self.ledger.add(slot.number, slot.language, loss)
        self._update(scale)

    def _backward(self, loss: Tensor, last: bool) -> None:
        """Add to the gradients. They are reduced across processes once a step, with the last slot's backward pass.

        Lightning's manual_backward readies DDP for that; elsewhere it would only run hooks that nobody has here, 0.2 ms.
        """
        ddp = self.trainer.model
        if not isinstance(ddp, DistributedDataParallel):
            loss.backward()
        elif last:
            self.manual_backward(loss)
        else:
            with ddp.no_sync():
                loss.backward()

    def _update(self, scale: float) -> None:
        """Clip and apply the accumulated gradients, or skip them where the numbers are bad."""
        # Lightning's wrapper runs hooks that nobody has here and counts trainer.global_step, which nobody reads
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True) / scale
        self.grad_norm = norm
        self.ledger.close(norm)
        progress = self.progress
        self.learning_rate = self.schedule(progress.updates)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate
        if applied := self._is_good(norm):
            self._clip(gradients, norm, scale)
            optimizer.step()
            progress.updates += 1
        else:
            progress.skipped.append(progress.step)
        progress.step += 1
        # Alone, the next backward pass hands over its own buffers as gradients: no pass over them to zero, none to add.
        # Under DDP they are views of its buckets, and stay.
        optimizer.zero_grad(set_to_none=self.trainer.world_size == 1)
        if not applied and progress.skips_in_a_row() >= self.max_skips:
            raise TrainingStopped(
                f"step {progress.step}: {self.max_skips} updates in a row were skipped"
                + (f" (loss scale now {progress.loss_scale.scale:g})" if progress.loss_scale else "")
                + ": the run is not healthy; the last checkpoint is untouched. A lower optimizer.lr, a longer"
                " schedule.warmup_updates or trainer.precision=bf16-mixed may help"
            )

    def _is_good(self, norm: Tensor) -> bool:
        """Whether the attempt's update may be applied, as far as that is known without waiting for the device.

        Waits for it once in float16, and where the guard judges at once; on a CPU there is nothing to wait for.
        Raises BadNumbers where the policy is not to skip.
        """
        scaler = self.progress.loss_scale
        if scaler is None and not host.is_free_to_read(norm) and not self.guard.at_once:
            return True  # judged at the next report
        finite = math.isfinite(norm.item())
        if scaler is not None:
            scaler.update(finite)
        if self.guard.at_once and (self.guard.spike_z is not None or not finite):
            for bad in self._judge():
                self.ledger.drop(bad.step)
                self.on_bad_step(bad)
                return False
        elif not finite and scaler is None:
            self.settle_losses()  # raises, with the slots to blame
        return finite

    def settle_losses(self) -> None:
        """Let all processes know the losses since the last call, and judge them. A collective; waits for the device.

        Raises BadNumbers, on all processes alike.
        """
        for bad in self._judge():
            raise BadNumbers(bad)

    def _judge(self) -> Iterable[BadStep]:
        for row in self.ledger.settle(self.trainer.world_size):
            bad = self.guard.judge(row, float16=self.progress.loss_scale is not None)
            if bad is not None:
                yield bad

    def _clip(self, gradients: Sequence[Tensor], norm: Tensor, scale: float) -> None:
        """Scale gradients back by the loss scale and down to `clip_norm`, in one pass."""
        factor = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0) / scale
        if host.is_free_to_read(factor) and factor == 1.0:
            return  # a pass over all gradients is not free
        torch._foreach_mul_(list(gradients), factor)
