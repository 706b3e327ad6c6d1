"""Saving the run's whole state, and bringing it back."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import CheckpointError
from xlm_train.training.callbacks.metrics import Metrics
from xlm_train.training.callbacks.validation import Validation
from xlm_train.training.module import CausalLanguageModel
from xlm_train.training.state import Progress
from xlm_train.training.strategy import gather, put_back


def _copy(value: Any) -> Any:
    """Deep copy with tensors on the CPU, so that training may go on while the copy is written."""
    if isinstance(value, torch.Tensor):
        copy = torch.empty(value.shape, dtype=value.dtype, device="cpu")
        return copy.copy_(value.detach())
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(item) for item in value)
    if not isinstance(value, bool | int | float | str | None):
        raise TypeError(f"{type(value)} in a checkpoint: it could not be loaded safely")
    return value


class Checkpointing(pl.Callback):
    """Writes `step-NNNNNNNN.pt` every so many steps, after every validation that is the best so far, and at the end.

    The state is copied on the training thread and written off it; `best.pt` is a link to the best validation's file.
    keep_last: how many of the newest are kept, besides the best; older ones go only after the new one is on disk.
    fixed: the parts of a checkpoint that do not change in a run (shape, text, lineage, config). failure: what went wrong
    in writing the last one; `Interruption` makes all processes leave because of it.
    resume_from: content of the checkpoint to continue, or None.
    """

    def __init__(
        self,
        folder: Path,
        every_n_steps: int,
        keep_last: int,
        max_steps: int,
        fixed: dict[str, Any],
        resume_from: dict[str, Any] | None,
        metrics: Metrics,
        validation: Validation,
    ) -> None:
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.max_steps = max_steps
        self.fixed = fixed
        self.resume_from = resume_from
        self.metrics = metrics
        self.validation = validation
        self.saved_step = -1
        self._writer: threading.Thread | None = None
        self.failure: BaseException | None = None

    def on_fit_start(self, trainer: pl.Trainer, module: CausalLanguageModel) -> None:  # type: ignore[override]
        if self.resume_from is not None:
            restore(module, trainer.optimizers[0], self.resume_from)
            self.saved_step = module.progress.step
            self.resume_from = None  # its tensors are copied: give the memory back
        if trainer.is_global_zero:
            self._set_aside_damaged(module.progress.step)
            with contextlib.suppress(OSError):  # a file system without links: said at the next checkpoint
                self._link_best(module.progress.best_step)

    def _set_aside_damaged(self, step: int) -> None:
        """Checkpoints beyond the one resumed from were passed over as damaged: rename them, so none counts as kept."""
        for path in checkpoint_file.in_folder(self.folder):
            if path != self.folder / checkpoint_file.name_of(step) and int(path.stem.removeprefix("step-")) > step:
                path.rename(path.with_name(f"{path.name}.damaged"))

    def on_train_batch_end(self, trainer: pl.Trainer, module: CausalLanguageModel, *_: Any) -> None:  # type: ignore[override]
        step = module.progress.step
        if step % self.every_n_steps == 0 or step == self.max_steps or module.progress.best_step == step:
            self.save(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: CausalLanguageModel) -> None:  # type: ignore[override]
        self.save(trainer, module)
        self._join()
        if self.failure is not None:
            raise self.failure

    def save(self, trainer: pl.Trainer, module: CausalLanguageModel) -> None:
        """Start writing the state after the current step, unless that is done already."""
        progress = module.progress
        if progress.step == self.saved_step:
            return
        start = time.perf_counter()
        gather(trainer.optimizers[0])
        module.settle_losses()  # judges them too: a run that has gone bad is never saved
        self.saved_step = progress.step
        if not trainer.is_global_zero:
            return
        self._join()
        if self.failure is not None:
            return  # Interruption lets all processes leave together
        content = {
            **self.fixed,
            "model": _copy(module.model.state_dict()),
            "optimizer": _copy(trainer.optimizers[0].state_dict()),
            "ledger": module.ledger.state(),
            "guard": {language: list(losses) for language, losses in module.guard.history.items()},
            "progress": progress.to_dict(),
            "metrics": dict(self.validation.latest),
        }
        self._writer = threading.Thread(
            target=self._write, args=(content, progress.step, progress.best_step), name="checkpoint-writer"
        )
        self._writer.start()
        if self.metrics.energy is not None:
            self.metrics.energy.write()
        self.metrics.pause(time.perf_counter() - start, saving=True)

    def _write(self, content: dict[str, Any], step: int, best_step: int | None) -> None:
        try:
            checkpoint_file.save(self.folder / checkpoint_file.name_of(step), content)
        except BaseException as error:  # raised again on the training thread
            self.failure = error
            return
        try:
            self._link_best(best_step)
            self._remove_old(best_step)
        except OSError as error:  # the checkpoint itself is safe
            log(f"warning: {self.folder}: best.pt or old checkpoints are not up to date: {error}")

    def _link_best(self, best_step: int | None) -> None:
        """Let `best.pt` be a link to the best validation's checkpoint."""
        if best_step is not None and (self.folder / checkpoint_file.name_of(best_step)).is_file():
            link = self.folder / f".best.pt.{os.getpid()}.tmp"
            link.unlink(missing_ok=True)
            link.symlink_to(checkpoint_file.name_of(best_step))
            os.replace(link, self.folder / "best.pt")

    def _remove_old(self, best_step: int | None) -> None:
        for path in checkpoint_file.in_folder(self.folder)[self.keep_last :]:
            if best_step is None or path.name != checkpoint_file.name_of(best_step):
                path.unlink()

    def _join(self) -> None:
        """Wait for the file being written."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._join()  # let the file being written become whole


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """An optimizer's own param_groups, as its state dict would have them."""
    groups, start = [], 0
    for group in optimizer.param_groups:
        count = len(group["params"])
        groups.append({**group, "params": list(range(start, start + count))})
        start += count
    return groups


def restore(module: CausalLanguageModel, optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> None:
    """Put a checkpoint's whole state into a module and its optimizer. Raises CheckpointError where they do not fit.

    Of the optimizer only the moments are taken: its settings are those of this run's config, which may differ where the
    checkpoint is another run's (init_from). Without optimizer state the optimizer stays as it is.
    """
    try:
        module.model.load_state_dict(content["model"])
        if content["optimizer"] is not None:
            put_back(optimizer, {"state": content["optimizer"]["state"], "param_groups": _settings(optimizer)})
        scale = module.progress.loss_scale
        module.progress = Progress.from_dict(content["progress"])
        if scale is None or module.progress.loss_scale is None:  # a checkpoint of another precision (init_from)
            module.progress.loss_scale = scale
        module.ledger.restore(content["ledger"])
        module.guard.history = {int(language): list(losses) for language, losses in content["guard"].items()}
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint does not fit this run: {type(error).__name__}: {error}") from error
