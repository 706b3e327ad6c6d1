"""Lightning's checkpoints in verified files (runtime/checkpoint_file.py), written by a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import CheckpointError

PLAIN = (bool, int, float, str, type(None))


class VerifiedCheckpointIO(CheckpointIO):
    """Writes and reads every checkpoint of a Trainer, those of stock callbacks too: atomic, with a checksum.

    A save with `storage_options={"written": function}` copies the state and returns; a thread writes the file, then
    calls the function. Any other save returns when the file is on disk. What goes wrong in the thread is kept in
    `failure`: `Preemption` makes all processes leave because of it.

    Args:
        opened: a file that was verified and read already, with its content: read once only.
    """

    def __init__(self, opened: tuple[Path, dict[str, Any]] | None = None) -> None:
        self.failure: BaseException | None = None
        self._opened = opened
        self._writer: threading.Thread | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        """Write a checkpoint. The first process only.

        Raises:
            CheckpointError: a value in it, say of a callback's state, could not be loaded safely; names its keys.
            UserError: the file cannot be written. Where a thread writes it, `failure` tells, and later saves of that kind
                do nothing.
        """
        self.join()
        if storage_options is None:
            if self.failure is not None:
                raise self.failure
            Path(path).parent.mkdir(parents=True, exist_ok=True)  # ModelCheckpoint's names hold slashes: val/ppl=..
            checkpoint_file.write(path, _on_cpu(checkpoint))
            return
        if self.failure is None:
            written = storage_options["written"]
            self._writer = threading.Thread(
                target=self._write, args=(Path(path), _on_cpu(checkpoint), written), name="checkpoint-writer"
            )
            self._writer.start()

    def _write(self, path: Path, checkpoint: dict[str, Any], written: Callable[[], None]) -> None:
        try:
            checkpoint_file.write(path, checkpoint)
        except BaseException as error:  # told on the training thread
            self.failure = error
            return
        written()

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Read a checkpoint, always under torch's `weights_only=True`, tensors on the CPU."""
        opened, self._opened = self._opened, None
        if opened is not None and opened[0] == Path(path):
            return opened[1]
        return checkpoint_file.read(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint file."""
        self.join()
        Path(path).unlink(missing_ok=True)

    def join(self) -> None:
        """Wait for the file being written."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def raise_failure(self) -> None:
        """Wait for the file being written; raise what went wrong in writing one."""
        self.join()
        if self.failure is not None:
            raise self.failure

    def teardown(self) -> None:
        """Let the file being written become whole."""
        self.join()


def _on_cpu(value: Any, keys: tuple[Any, ...] = ()) -> Any:
    """Deep copy with tensors on the CPU, so that training may go on while the copy is written. keys: where it stands."""
    if isinstance(value, torch.Tensor):
        copy = torch.empty(value.shape, dtype=value.dtype, device="cpu")
        return copy.copy_(value.detach())
    if isinstance(value, dict) and all(type(key) in PLAIN for key in value):
        return {key: _on_cpu(item, (*keys, key)) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_on_cpu(item, (*keys, number)) for number, item in enumerate(value))
    if type(value) not in PLAIN:  # a subclass, as numpy's numbers are, is pickled by its own name
        raise CheckpointError(
            f"{'.'.join(map(str, keys))}: a {type(value).__name__} in a checkpoint could not be loaded safely:"
            " a callback's state must be numbers, text, tensors, and lists, tuples and mappings of these"
        )
    return value
