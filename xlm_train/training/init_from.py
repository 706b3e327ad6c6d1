"""A new run that begins with another run's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xlm_train.data.corpus import Corpus
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import UserError


@dataclass(frozen=True)
class Start:
    """What a new run takes from another run's checkpoint.

    Args:
        weights: state dict of the model.
        optimizer: its moments, or None.
        updates: applied there, where the moments are taken.
        parents: lineage, the checkpoint itself last.
        sha256: of the checkpoint.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Any] | None
    updates: int
    parents: list[str]
    sha256: str


def open_start(path: str, corpus: Corpus, shape: dict[str, Any], with_optimizer: bool) -> Start:
    """Read a checkpoint to start from.

    Args:
        path: the file.
        corpus: what the new run reads.
        shape: of the new run's model.
        with_optimizer: take moments and update count too.

    Raises:
        UserError: with everything that does not fit.
    """
    content = checkpoint_file.load(path)
    problems = [
        f"init_from={path}: its model has {name}={value}, this run {shape[name]}; set model.{name}={value}"
        for name, value in content["shape"].items()
        if name not in ("dropout", "attention_dropout", "n_words", "n_langs") and value != shape[name]
    ]
    if content["text"]["languages"] != corpus.languages:
        problems.append(
            f"init_from={path}: its languages are {content['text']['languages']}, the corpus has {corpus.languages}"
        )
    if content["text"]["vocab"] != corpus.vocab_path.read_bytes().decode():
        problems.append(
            f"init_from={path}: its vocabulary is not the corpus's; prepare the text with its codes and vocabulary"
            " (codes=, vocab=)"
        )
    if with_optimizer and content["optimizer"] is None:
        problems.append(f"init_from={path}: holds no optimizer state; set init_optimizer=false")
    if problems:
        raise UserError(problems)
    return Start(
        weights=content["model"],
        optimizer=content["optimizer"] if with_optimizer else None,
        updates=content["progress"]["updates"] if with_optimizer else 0,
        parents=[*content["lineage"]["parents"], content["sha256"]],
        sha256=content["sha256"],
    )
