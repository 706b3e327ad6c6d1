"""The training step, as a Lightning module with manual optimization.

One call of `training_step` is one attempt at an update: this process's slots forward and backward one after the other
(gradient accumulation), one gradient reduction, one clipping, one optimizer step. The loss of the update is the mean
over the slots of all processes, however they are divided.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from xlm_train.data.datamodule import StepBatch
from xlm_train.data.noise import seed_noise
from xlm_train.model.seq2seq import Seq2Seq
from xlm_train.model.transformer import XLM
from xlm_train.objectives.objective import Objective
from xlm_train.runtime import device as host
from xlm_train.runtime.console import log
from xlm_train.runtime.device import Stopwatch
from xlm_train.runtime.errors import CheckpointError
from xlm_train.training.anomaly import AnomalyDetector, BadStep, NonFiniteOrSpike, TrainingStopped
from xlm_train.training.fsdp import own_part, whole
from xlm_train.training.init_from import Start
from xlm_train.training.phases import StepCallback
from xlm_train.training.precision import LossScale
from xlm_train.training.state import TrainState


class LanguageModel(pl.LightningModule):
    """Trains a language model or a translation model on slots.

    Args:
        model: the weights to train.
        objective: what is learned from a slot.
        make_optimizer: parameters -> optimizer.
        schedule: update number -> learning rate.
        stop: steps of the whole run, skipped ones included (Lightning's max_steps counts updates).
        slots: slots of a global step.
        clip_norm: largest norm of the whole gradient.
        seed: of the dropout noise.
        float16: whether forward passes run in float16, so that the loss must be scaled.
        excluded: steps that are skipped unread (a rollback found them bad).
        nan_steps: steps whose loss is made NaN, as a rehearsal.
        provenance: what every checkpoint holds besides the state: shape, text, lineage, config.
        start: weights, moments and update count of another run, to begin with.
    """

    model: XLM | Seq2Seq

    def __init__(
        self,
        model: XLM | Seq2Seq,
        objective: Objective,
        make_optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
        schedule: Callable[[int], float],
        stop: int,
        slots: int,
        clip_norm: float,
        seed: int,
        float16: bool = False,
        excluded: Collection[int] = (),
        nan_steps: Collection[int] = (),
        provenance: Mapping[str, Any] | None = None,
        start: Start | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.objective = objective
        self.make_optimizer = make_optimizer
        self.schedule = schedule
        self.stop = stop
        self.slots = slots
        self.clip_norm = clip_norm
        self.seed = seed
        self.excluded = frozenset(excluded)
        self.nan_steps = frozenset(nan_steps)
        self.provenance = dict(provenance or {})
        self.state = TrainState(loss_scale=LossScale() if float16 else None)
        self._moments = None  # of another run
        if start is not None and start.weights is not None:
            model.load_state_dict(start.weights)
            self.state.updates, self._moments = start.updates, start.optimizer
        self.detector = AnomalyDetector()  # a configured one takes its place
        self.stopwatch: Stopwatch | None = None  # set by whoever takes its time
        self._losses_are_taken = True
        self.learning_rate = 0.0  # of the last attempt
        self._step_callbacks: list[StepCallback] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        """Copy the weights, as weight averaging does; the text behind the objective is shared, not read into memory."""
        model = copy.deepcopy(self.model, memo)
        parts = (self.objective, self.make_optimizer, self.schedule, self.stop, self.slots, self.clip_norm, self.seed)
        return type(self)(model, *parts)

    @property
    def _callbacks(self) -> list[pl.Callback]:
        return self.trainer.callbacks  # type: ignore[attr-defined, no-any-return]

    # Lightning's hooks, in the order in which they come

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer of all trainable parameters."""
        return self.make_optimizer([p for p in self.model.parameters() if p.requires_grad])

    def on_fit_start(self) -> None:
        """Start from another run's moments, and sort our callbacks by phase."""
        if self._moments is not None:
            states = {"optimizer_states": [self._with_own_settings(self._moments)]}
            self.trainer.strategy.load_optimizer_state_dict(states)
            self._moments = None  # give the memory back
        ours = [callback for callback in self._callbacks if isinstance(callback, StepCallback)]
        self._step_callbacks = sorted(ours, key=lambda callback: callback.phase)
        self._losses_are_taken = not ours or any(callback.takes_losses for callback in ours)

    def _with_own_settings(self, state: dict[str, Any]) -> dict[str, Any]:
        """Give another run's moments the settings of this run's optimizer, which may differ."""
        groups, start = [], 0
        for group in self.trainer.optimizers[0].param_groups:
            count = len(group["params"])
            groups.append({**group, "params": list(range(start, start + count))})
            start += count
        return {"state": state["state"], "param_groups": groups}

    def _stop_at_the_end(self) -> None:
        if self.state.step >= self.stop:
            self.trainer.should_stop = True

    def on_train_start(self) -> None:
        """Leave at once where all is done. Let DDP lay out its buckets before the first step, by one reduction of throw-away gradients.

        DDP lays them out again, by the order in which gradients arrived, before its second reduction. Above two
        processes that changes the order of sums, so a resumed run would differ from an undisturbed one in its first
        step.
        """
        self._stop_at_the_end()
        self._set_learning_rate()
        if isinstance(self.trainer.model, DistributedDataParallel):
            nothing = self.objective.empty_batch().to(self.device)
            self.manual_backward(self.objective.loss(self.model, nothing) * 0.0)
            self.trainer.model.zero_grad(set_to_none=True)

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Attempt one update."""
        state = self.state
        if batch.step in self.excluded:
            state.skipped.append(batch.step)
            state.step += 1
            return
        scale = state.loss_scale.scale if state.loss_scale is not None else 1.0
        # DDP averages over processes; each slot must weigh 1 / slots in the sum over all processes.
        weight = scale * self.trainer.world_size / self.slots
        state.losses.begin(batch.step)
        if self.stopwatch is not None:
            self.stopwatch.start(self.device)
        for position, slot in enumerate(batch.slots):
            seed_noise(self.seed, batch.step, slot.number)
            loss = self.objective.loss(self.model, slot.inputs)
            if batch.step in self.nan_steps and slot.number == 0:
                loss = loss * math.nan
            if position == 0 and self.stopwatch is not None:
                self.stopwatch.stop(self.device)  # one slot, whatever the share; backward may wait for others
            with self._reduced_with_the_last(position == len(batch.slots) - 1):
                self.manual_backward(loss * (weight * slot.weight))
            state.losses.add(slot.number, slot.stream, loss)
        self._update(scale)

    def on_train_batch_end(self, outputs: Any, batch: StepBatch, batch_idx: int) -> None:
        """Report, validate, leave, save: see phases.py."""
        self._stop_at_the_end()
        for callback in self._step_callbacks:
            callback.on_step_end(self.trainer, self)  # type: ignore[arg-type]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add to Lightning's checkpoint where the run stands, and what it is."""
        checkpoint |= {**self.provenance, "train_state": self.state.to_dict(), "metrics": dict(self.state.validation)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over where the run stands.

        Raises:
            CheckpointError: the weights do not fit this model.
        """
        averaging = any(c.__name__ == "WeightAveraging" for callback in self._callbacks for c in type(callback).__mro__)
        if "current_model_state" in checkpoint and not averaging:
            log(
                "training goes on from the weights themselves: weight averaging, which the checkpoint has, was left out"
            )
            checkpoint["state_dict"] = checkpoint["current_model_state"]
        own = self.state_dict()
        if differing := [
            name
            for name in sorted(own.keys() | checkpoint["state_dict"].keys())
            if name not in own
            or name not in checkpoint["state_dict"]
            or own[name].shape != checkpoint["state_dict"][name].shape
        ]:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise CheckpointError(
                f"{self.trainer.ckpt_path}: does not fit this run's model: {', '.join(differing[:3])}{more}"
            )
        if "loops" not in checkpoint:  # written before version 3: all that Lightning must know is the count of updates
            loops = self.trainer.fit_loop.state_dict()
            updates = checkpoint["train_state"]["updates"]
            loops["epoch_loop.manual_optimization.optim_step_progress"]["total"] |= {
                "ready": updates,
                "completed": updates,
            }
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["train_state"]["step"]
            checkpoint["loops"] = {"fit_loop": loops}
        self.state.restore(checkpoint["train_state"], checkpoint["metrics"])

    # The parts of a step

    def _reduced_with_the_last(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Let DDP reduce gradients across processes once a step, with the last slot's backward pass.

        FSDP reduces after each slot: until then it would hold them undivided.
        """
        ddp = self.trainer.model
        return ddp.no_sync() if isinstance(ddp, DistributedDataParallel) and not last else contextlib.nullcontext()

    def _update(self, scale: float) -> None:
        """Clip and apply the accumulated gradients, or skip them where they are not finite or the loss spikes."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        norm = whole(torch.nn.utils.get_total_norm(gradients, foreach=True)) / scale
        state = self.state
        state.losses.close(norm)
        self.learning_rate = optimizer.param_groups[0]["lr"]
        if applied := self._is_good(norm):
            self._clip([own_part(gradient) for gradient in gradients], norm, scale)
            optimizer.step()
            state.updates += 1
        else:
            state.skipped.append(state.step)
        state.step += 1
        self._zero_grad(optimizer)
        self._set_learning_rate()
        if not applied and state.skips_in_a_row() >= self.detector.max_in_a_row:
            raise TrainingStopped(
                f"step {state.step}: {self.detector.max_in_a_row} updates in a row were skipped"
                + (f" (loss scale now {state.loss_scale.scale:g})" if state.loss_scale else "")
                + ": the run is not healthy; the last checkpoint is untouched. A lower optimizer.lr, a longer"
                " schedule.warmup_updates or trainer.precision=bf16-mixed may help"
            )

    def _set_learning_rate(self) -> None:
        """Give the optimizer the learning rate of the next update: LearningRateMonitor reads it before that step."""
        rate = self.schedule(self.state.updates)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def _zero_grad(self, optimizer: LightningOptimizer) -> None:
        """Drop the gradients, with the hook that Lightning calls in automatic optimization only.

        Alone, the next backward pass hands over its own buffers as gradients: no pass over them to zero, none to add.
        Under DDP they are views of its buckets, and stay.
        """
        for callback in self._callbacks:
            callback.on_before_zero_grad(self.trainer, self, optimizer.optimizer)
        self.on_before_zero_grad(optimizer.optimizer)
        optimizer.zero_grad(set_to_none=self.trainer.world_size == 1)

    def _is_good(self, norm: Tensor) -> bool:
        """Say whether the attempt may be applied, as far as that is known without waiting for the device.

        Waits for it once in float16, and where the detector checks at once; on a CPU there is nothing to wait for.

        Raises:
            NonFiniteOrSpike: it may not, and the policy is not to skip.
        """
        scaler = self.state.loss_scale
        if scaler is None and not host.is_free_to_read(norm) and not self.detector.at_once:
            return True  # checked at the next report
        finite = math.isfinite(norm.item())
        if scaler is not None:
            scaler.update(finite)
        if self.detector.at_once and (self.detector.spike_z is not None or not finite):
            for bad in self._check():
                self.state.losses.drop(bad.step)
                self.detector.report(bad, "skip")
                return False
        elif not finite and scaler is None:
            self.reduce_losses()  # raises, with the slots to blame
        return finite

    def reduce_losses(self) -> None:
        """Add up the losses since the last call over all processes, and check them. A collective; waits for the device.

        Raises:
            NonFiniteOrSpike: on all processes alike.
        """
        for bad in self._check():
            raise NonFiniteOrSpike(bad)

    def _check(self) -> Iterable[BadStep]:
        losses, world_size = self.state.losses, self.trainer.world_size
        for row in losses.reduce(len(self.objective.streams) if world_size > 1 else None):
            if not self._losses_are_taken:
                losses.drop(row.step)
            slots_of = functools.partial(losses.slots_of, row.step, world_size)
            bad = self.detector.check(row, slots_of, float16=self.state.loss_scale is not None)
            if bad is not None:
                yield bad

    def _clip(self, gradients: Sequence[Tensor], norm: Tensor, scale: float) -> None:
        """Scale gradients back by the loss scale and down to `clip_norm`, in one pass."""
        factor = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0) / scale
        if host.is_free_to_read(factor) and factor == 1.0:
            return  # a pass over all gradients is not free
        torch._foreach_mul_(list(gradients), factor)
