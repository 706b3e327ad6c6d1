"""Where the weights of an attempt come from: the run's newest checkpoint, another run's (init_from), or chance."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from xlm_train.data.corpus import Corpus
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.run_folder import RunFolder


@dataclass(frozen=True)
class Start:
    """What an attempt begins with; nothing where the weights are random.

    Args:
        newest: the run's newest checkpoint with its content, which the Trainer restores.
        weights: of another run, as a state dict of the model.
        optimizer: moments of another run.
        updates: applied there, where the moments are taken.
        parents: lineage of the weights, the other run's checkpoint last.
        sha256: of the checkpoint.
    """

    newest: tuple[Path, dict[str, Any]] | None = None
    weights: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    updates: int = 0
    parents: list[str] = field(default_factory=list)
    sha256: str | None = None

    @property
    def path(self) -> Path | None:
        """The checkpoint that the run resumes."""
        return None if self.newest is None else self.newest[0]

    @property
    def step(self) -> int:
        """The first step of the attempt."""
        return 0 if self.newest is None else checkpoint_file.step_of(self.newest[0])


def find_start(
    folder: RunFolder, init_from: str | None, init_optimizer: bool, corpus: Corpus, shape: dict[str, Any]
) -> Start:
    """Find what an attempt begins with. The run's own checkpoint comes first: `init_from` counts once.

    Args:
        folder: the run's.
        init_from: another run's checkpoint.
        init_optimizer: take its moments and update count too.
        corpus: what the run reads.
        shape: of its model.

    Raises:
        UserError: no checkpoint of the run is whole, or the other run's does not fit.
    """
    found = folder.newest_checkpoint()
    if found.path is not None and found.content is not None:
        parents = found.content["lineage"]["parents"]
        return Start(newest=(found.path, found.content), parents=parents, sha256=found.content["sha256"])
    return Start() if init_from is None else _open(init_from, corpus, shape, init_optimizer)


def _open(path: str, corpus: Corpus, shape: dict[str, Any], with_optimizer: bool) -> Start:
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
