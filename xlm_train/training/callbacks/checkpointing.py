"""When the run's whole state is saved, and which files are kept."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from pathlib import Path
from typing import Any

from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import at_least
from xlm_train.runtime.files import working_name
from xlm_train.runtime.run_folder import RunFolder
from xlm_train.training.callbacks.preemption import Preemption
from xlm_train.training.module import LanguageModel
from xlm_train.training.phases import Phase, StepCallback
from xlm_train.training.trainer import Trainer


class Checkpointing(StepCallback):
    """Writes `step-NNNNNNNN.pt` every so many steps, after every validation that is the best so far, and at the end.

    The state is copied on the training thread and written off it (checkpoint_io.py); `best.pt` is a link to the best
    validation's file.

    Args:
        every_n_steps: how often.
        keep_last: how many of the newest are kept, besides the best; older ones go only after the new one is on disk.

    Raises:
        ConfigError: with every value that cannot work.
    """

    phase = Phase.SAVE

    def __init__(self, every_n_steps: int = 500, keep_last: int = 3) -> None:
        at_least(1, every_n_steps=every_n_steps, keep_last=keep_last)
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.saved_step = -1

    def on_train_start(self, trainer: Trainer, module: LanguageModel) -> None:  # type: ignore[override]
        """Put aside the files beyond the checkpoint that the run resumed from: they were skipped as damaged."""
        step = module.state.step
        if step:
            self.saved_step = step
        if trainer.is_global_zero:
            folder = trainer.run.folder.checkpoints
            for path in checkpoint_file.in_folder(folder):
                if checkpoint_file.step_of(path) > step:
                    path.rename(path.with_name(f"{path.name}.damaged"))
            with contextlib.suppress(OSError):  # a file system without links: said at the next checkpoint
                _link_best(folder, module.state.best_step)

    def on_step_end(self, trainer: Trainer, module: LanguageModel) -> None:
        """Save where a checkpoint is due."""
        state = module.state
        if (
            state.step % self.every_n_steps == 0 or state.best_step == state.step or trainer.should_stop
        ) and state.step != self.saved_step:
            self._save(trainer, module)

    def _save(self, trainer: Trainer, module: LanguageModel) -> None:
        """Start writing the state after the current step. A collective."""
        begun = time.perf_counter()
        trainer.checkpoint_io.join()  # the one before is on disk now, and counts among those to be mirrored
        trainer.run.wait_for_mirror()
        if not any(isinstance(callback, Preemption) for callback in trainer.callbacks):
            trainer.checkpoint_io.raise_failure()  # nobody else would, before the end
        state = module.state
        self.saved_step = state.step
        folder = trainer.run.folder.checkpoints
        written = functools.partial(_written, trainer.run.folder, state.step, self.keep_last, state.best_step)
        trainer.save_checkpoint(folder / checkpoint_file.name_of(state.step), storage_options={"written": written})
        trainer.run.pause("saving", time.perf_counter() - begun)

    def on_train_end(self, trainer: Trainer, module: LanguageModel) -> None:  # type: ignore[override]
        """Wait for the last file. Raises what went wrong in writing it."""
        trainer.checkpoint_io.raise_failure()

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:  # type: ignore[override]
        """Let the file being written become whole."""
        trainer.checkpoint_io.join()


def _written(run: RunFolder, step: int, keep_last: int, best_step: int | None) -> None:
    """Bring status, links and old files up to date once a checkpoint is on disk, and have it mirrored."""
    folder = run.checkpoints
    try:
        run.write_status("running", step=step)  # a killed run says no more, and its lost checkpoints are missed by this
        _link_best(folder, best_step)
        for path in checkpoint_file.in_folder(folder)[keep_last:]:
            if best_step is None or path.name != checkpoint_file.name_of(best_step):
                path.unlink()
    except Exception as error:  # the checkpoint itself is safe
        log(f"warning: {folder}: status.json, best.pt or old checkpoints are not up to date: {error}")
    if run.mirror is not None:
        run.mirror.checkpoint_written()


def _link_best(folder: Path, best_step: int | None) -> None:
    """Let `best.pt` be a link to the best validation's checkpoint."""
    if best_step is not None and (folder / checkpoint_file.name_of(best_step)).is_file():
        link = folder / working_name("best.pt")
        link.symlink_to(checkpoint_file.name_of(best_step))
        os.replace(link, folder / "best.pt")
