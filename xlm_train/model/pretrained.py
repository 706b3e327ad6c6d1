"""A checkpoint opened for use: the model ready to predict, and the reader of new text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.device import resolve_device
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.reader import TextReader


@dataclass(frozen=True)
class TrainedModel:
    """path, sha256: of the checkpoint file and its content. bptt: window length in tokens, as in training."""

    path: Path
    sha256: str
    step: int
    lineage: dict[str, Any]
    model: XLM
    text: TextReader
    bptt: int
    device: torch.device

    @property
    def context(self) -> int:
        """Tokens the model reads at most to predict one: as many as in training.

        Only positions 0 .. bptt-2 ever were predicted from (the last token of a window predicts nothing), so the later
        rows of the position table still hold what they were initialised with.
        """
        return self.bptt - 1


def open_checkpoint(path: str | Path, device: str = "auto", bptt: int | None = None) -> TrainedModel:
    """Read a checkpoint into a model in evaluation mode.

    device: auto, cpu or cuda; auto takes a GPU where there is one. bptt: default what the checkpoint's config says, or
    all positions where it says nothing (a file imported from elsewhere). Raises UserError where the file is missing,
    damaged or not a checkpoint, the device is not there, or the model has fewer positions than bptt.
    """
    place = resolve_device(device)
    content = checkpoint_file.load(path)
    with torch.device("meta"):  # no random weights drawn only to be replaced
        model = XLM(ModelShape(**content["shape"]))
    model.load_state_dict(content["model"], assign=True)
    longest = model.shape.max_positions
    if bptt is None:
        bptt = min(longest, (content["config"].get("data") or {}).get("bptt", longest))
    elif not 2 <= bptt <= longest:
        raise ConfigError(f"bptt={bptt}: must be from 2 to {longest}, the model's positions")
    return TrainedModel(
        path=Path(path),
        sha256=content["sha256"],
        step=content["progress"]["step"],
        lineage=content["lineage"],
        model=model.eval().to(place),
        text=TextReader(content["text"], name=str(path)),
        bptt=bptt,
        device=place,
    )
