"""Lightning's Trainer as a run uses it: devices, processes and precision are its part, the order of events is ours."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.callbacks import Checkpoint, ModelSummary, ProgressBar
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.trainer import call
from torch import nn

from xlm_train.data.datamodule import CorpusDataModule
from xlm_train.runtime.console import counted, log
from xlm_train.runtime.control_group import ControlGroup, RankInfo, table
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.launcher import tell_agent
from xlm_train.runtime.processes import StopFlag, is_first_process, processes
from xlm_train.runtime.run_folder import RunFolder
from xlm_train.training.checkpoint_io import VerifiedCheckpointIO
from xlm_train.training.fsdp import ShardedStrategy, own_part, whole_weights
from xlm_train.training.precision import DTYPES, Autocast
from xlm_train.training.state import TrainState
from xlm_train.training.strategy import HandshakeDDPStrategy


def quiet_lightning() -> None:
    """Leave out what Lightning tells everybody at every start; its warnings stay, and what callbacks tell (a summary)."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.callbacks").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    # ModelCheckpoint's, of manual optimization: that it saves the weights after the update, as everybody expects
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")


# How a run ends whose stop reason is one of ours, for people.
REASONS = {
    "preempted": "preempted by a signal",
    "time limit": "time limit reached (trainer.max_hours)",
    "patience": "stopped, as validation no longer improved (callbacks.validation.patience),",
}


@dataclass
class RunContext:
    """What the callbacks of a run share; they reach it as `trainer.run`.

    Args:
        folder: where the run is kept.
        control_group: consensus of the processes.
        stop_flag: set by a signal that asks the run to leave.
        started: when the command was given, in seconds of the epoch.
        stop_reason: why the run was asked to leave before its end: "preempted", "time limit", "patience"; None where
            nobody of ours did.
        state: of the attempt that is under way.
        pauses: seconds since the last report that were spent on something else than training.
    """

    folder: RunFolder
    control_group: ControlGroup
    stop_flag: StopFlag
    started: float
    stop_reason: str | None = None
    state: TrainState | None = None
    pauses: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def pause(self, what: str, seconds: float) -> None:
        """Leave seconds out of the speed that is reported next."""
        self.pauses[what] += seconds

    def wait_for_mirror(self) -> None:
        """Wait while too many checkpoints are not mirrored yet, all processes together, unless the run is to leave.

        A collective. Each exchange is short: a network that is down for hours is no process that is lost.
        """
        if not self.folder.is_mirrored:
            return
        while self.control_group.highest(self._reason_to_wait()) == 1:
            if self.folder.mirror is not None:
                self.folder.mirror.wait(seconds=1.0)

    def _reason_to_wait(self) -> int:
        """0: none; 1: checkpoints that are not mirrored; 2: there are, but the run is to leave."""
        if self.stop_flag.is_set or self.folder.lost is not None:
            return 2
        return int(self.folder.mirror is not None and self.folder.mirror.is_behind)

    def conclude(self, state: TrainState, stop: int) -> str:
        """Record how a run that left its loop stands, and why. Returns finished, preempted or stopped."""
        reason = self.stop_reason
        if state.step >= stop:
            status = "finished"
        elif reason in ("preempted", "time limit"):
            status = "preempted"
        else:
            status, reason = "stopped", reason or "a callback set trainer.should_stop"
        if is_first_process():
            self.folder.write_status(status, reason=reason, **state.counts())
            self.folder.record(status, state.step, reason=reason)
        tell_agent(status)
        return status

    def last_line(self, status: str, step: int) -> str:
        """Say how the run stands, why, and what goes on from there.

        Args:
            status: what `conclude` returned.
            step: at which the run left.
        """
        line = f"{status} after {counted(step, 'step')}"
        if why := REASONS.get(self.stop_reason or "") if status != "finished" else None:
            line = f"{why} after {counted(step, 'step')}"
        line += f"; checkpoints in {self.folder.checkpoints}"
        return f"{line}; the same command goes on from here" if status == "preempted" else line

    def handshake(
        self, alike: Any, step: int, parents: Sequence[str], start_timeout: float, timeout: float
    ) -> Callable[[int, torch.device], None]:
        """Make the function that lets the processes meet, and records who came.

        Args:
            alike: what all processes must have: config, corpus, checkpoint.
            step: at which this start begins.
            parents: lineage of the weights.
            start_timeout: seconds within which all must answer.
            timeout: seconds, of every later collective.
        """
        digest = hashlib.sha256(json.dumps(alike, sort_keys=True, default=str).encode()).hexdigest()

        def run_handshake(rank: int, device: torch.device) -> None:
            group = self.control_group
            group.handshake(RankInfo.of_this_process(rank, device, digest), start_timeout, timeout)
            for line in table(group.members) if len(group.members) > 1 else []:
                log(line)
            if is_first_process():
                hosts, devices = list({m.host: 0 for m in group.members}), [m.device for m in group.members]
                about = {"processes": len(devices), "hosts": hosts, "devices": devices, "parents": list(parents)}
                self.folder.record("start", step, **about, changes=self.folder.changes)

        return run_handshake


class Trainer(pl.Trainer):
    """Lightning's Trainer with a run's context.

    Args:
        run: what the callbacks share.
        checkpoint_io: writes and reads all checkpoints.
        precision_name: as in the config; Lightning does not see those of half precision.
        options: of Lightning's Trainer.
    """

    def __init__(
        self, run: RunContext, checkpoint_io: VerifiedCheckpointIO, precision_name: str, **options: Any
    ) -> None:
        super().__init__(**options)
        self.run = run
        self.checkpoint_io = checkpoint_io
        self.precision_name = precision_name
        # Private names of Lightning's are touched here, and in the validation below, which calls hooks and collects what
        # callbacks log as its own loop does; and nowhere else. Its signal handling hangs under DDP, and asks every
        # process about it before every step; there is no option to leave it out. Preemption does that work here.
        self._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        self.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    callbacks: list[pl.Callback]
    log_every_n_steps: int

    @property
    def data(self) -> CorpusDataModule:
        """The run's data."""
        return self.datamodule  # type: ignore[attr-defined, no-any-return]

    def save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        """Save, but never a run that has gone bad: losses are reduced and checked first, then the weights. A collective.

        Raises:
            UserError: The weights are not finite.
        """
        module: Any = self.lightning_module
        module.reduce_losses()
        if self.run.control_group.highest(0 if _are_finite(module.model) else 1):
            raise UserError(
                f"step {module.state.step:,}: the weights are not finite, so no checkpoint is written; those before are"
                " kept. A new run with a lower optimizer.lr or a longer warm-up may go on from one of them (init_from=FILE)"
            )
        super().save_checkpoint(*arguments, **options)

    @contextlib.contextmanager
    def validation(self) -> Iterator[dict[str, float]]:
        """Let callbacks take part in a validation as in one of Lightning's: hooks fire before and after, they may log.

        Yields:
            A mapping that holds afterwards what callbacks have logged.
        """
        _ = self.callback_metrics  # collects what was reported before: callbacks look at it
        connector = self._logger_connector
        before = connector._first_loop_iter, connector._current_fx  # how far the collecting of the step has come
        connector.epoch_end_reached()
        self.validating = True
        self._call_hooks("on_validation_start", "on_validation_epoch_start")
        logged: dict[str, float] = {}
        try:
            with whole_weights(self.lightning_module.model):  # type: ignore[arg-type]
                yield logged
        except BaseException:
            self.training = True
            raise
        self._call_hooks("on_validation_epoch_end")
        logged |= {name: float(value) for name, value in connector.update_eval_epoch_metrics().items()}
        connector.reset_results()
        connector._first_loop_iter, connector._current_fx = before
        self.training = True

    def end_validation(self) -> None:
        """Fire `on_validation_end`, once the scores are in `callback_metrics`."""
        _ = self.callback_metrics
        self.validating = True
        self._call_hooks("on_validation_end")
        self.training = True

    def _call_hooks(self, *names: str) -> None:
        for name in names:
            call._call_callback_hooks(self, name)
            call._call_lightning_module_hook(self, name)


def make_trainer(
    run: RunContext,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[Logger],
    handshake: Callable[[int, torch.device], None],
    *,
    accelerator: str,
    devices: int,
    nodes: int,
    precision: str,
    compression: str | None,
    sharding: str | None,
    start_timeout: float,
    report_every: int,
    validate_every: int,
    opened: tuple[Any, dict[str, Any]] | None = None,
) -> Trainer:
    """Make the Trainer of one attempt.

    Args:
        run: what the callbacks share.
        callbacks: ours and stock ones.
        loggers: of this process; at least one.
        handshake: see HandshakeDDPStrategy; of a single process it is called here.
        accelerator: "auto", "cpu" or "gpu".
        devices: processes a node.
        nodes: machines.
        precision: "32-true", "16-mixed" or "bf16-mixed".
        compression: of gradients between processes.
        sharding: what the processes divide; see configs/trainer.
        start_timeout: seconds within which all processes must come.
        report_every: steps between reports, for what stock callbacks log.
        validate_every: steps between validations, for stock callbacks that want to know that there are some.
        opened: the checkpoint to resume, if it was read already.
    """
    checkpoint_io = VerifiedCheckpointIO(opened)
    plugins: list[Any] = [checkpoint_io]
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    if precision in DTYPES:
        device_type = "cuda" if accelerator == "gpu" else "cpu"
        plugins.append(Autocast(precision, device_type, shares_casts=sharding != "fsdp"))
    # Chosen by us: Lightning would see a scheduler's allocation that is not meant, and miss one inside `salloc`.
    if devices * nodes == 1:
        plugins.append(LightningEnvironment())
    elif "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_STEP_NUM_TASKS" not in os.environ:
        plugins.append(TorchElasticEnvironment())
    else:
        plugins.append(SLURMEnvironment(auto_requeue=False))
    strategy: Any = "auto"
    if processes() > 1:
        kind = ShardedStrategy if sharding == "fsdp" else HandshakeDDPStrategy
        strategy = kind(handshake, start_timeout, compression)
    else:
        handshake(0, torch.device("cuda" if accelerator == "gpu" else "cpu"))

    def has(kind: type) -> bool:
        return any(isinstance(callback, kind) for callback in callbacks)

    return Trainer(
        run,
        checkpoint_io,
        precision,
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        precision=None if precision in DTYPES else precision,
        plugins=plugins,
        callbacks=list(callbacks),
        logger=list(loggers),
        default_root_dir=run.folder.path,
        max_epochs=1,
        log_every_n_steps=report_every,
        val_check_interval=validate_every,
        check_val_every_n_epoch=None,
        enable_checkpointing=has(Checkpoint),
        enable_progress_bar=has(ProgressBar),
        enable_model_summary=has(ModelSummary),
        use_distributed_sampler=False,
        benchmark=False,
    )


def _are_finite(model: nn.Module) -> bool:
    """Whether the weights are; of a divided model those that this process has."""
    parts = [own_part(weight.detach()) for weight in model.parameters()]
    return bool(torch.stack([torch.isfinite(part).all() for part in parts]).all())
