"""Where the weights of an attempt come from: the run's newest checkpoint, another run's (init_from), or chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xlm_train.data.corpus import Corpus
from xlm_train.model.seq2seq import SIDES, Seq2Seq, is_seq2seq, side_of
from xlm_train.model.shape import FREE, ModelShape
from xlm_train.model.transformer import XLM
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.run_folder import RunFolder
from xlm_train.runtime.run_store import local_checkpoint
from xlm_train.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Start:
    """What an attempt begins with; nothing where the weights are random.

    Args:
        newest: the run's newest checkpoint with its content, which the Trainer restores.
        weights: of another run, as a state dict of the model.
        optimizer: moments of another run.
        updates: applied there, where the moments are taken.
        parents: lineage of the weights, the other run's checkpoint last.
        sha256: of the checkpoint, or of each side's.
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
    folder: RunFolder,
    given: Mapping[str, str],
    with_optimizer: bool,
    model: XLM | Seq2Seq,
    corpus: Corpus,
    open_model: Callable[[str, int], dict[str, Any]],
) -> Start:
    """Find what an attempt begins with. The run's own checkpoint comes first: what is given counts once.

    Encoder and decoder of a translation model are loaded into it at once.

    Args:
        folder: the run's.
        given: `init_from`, or `init_encoder` and `init_decoder`, or nothing -> another run's checkpoint.
        with_optimizer: take its moments and update count too.
        model: of this run, with random weights.
        corpus: what the run reads.
        open_model: opens a checkpoint of any known format, given vocab_multiple too.

    Raises:
        UserError: no checkpoint of the run is whole, or what is given does not fit.
    """
    found = folder.newest_checkpoint()
    if found.path is not None and found.content is not None:
        parents = found.content["lineage"]["parents"]
        return Start(newest=(found.path, found.content), parents=parents, sha256=found.content["sha256"])
    words = Vocabulary.from_file(corpus.vocab_path).words if given else []
    if "init_from" in given:
        return _open(given["init_from"], with_optimizer, model, corpus.languages, words)
    contents = {
        key.removeprefix("init_"): (path, open_model(path, model.shape.vocab_multiple)) for key, path in given.items()
    }
    if not isinstance(model, Seq2Seq) or not contents:
        return Start()
    sides = load_sides(model, contents, corpus.languages, words)
    for name, side in sides.items():
        log(f"{name}: {side}")
    parents = [parent for side in sides.values() for parent in side.parents]
    return Start(parents=list(dict.fromkeys(parents)), sha256=" ".join(side.parents[-1] for side in sides.values()))


def _open(
    path: str, with_optimizer: bool, model: XLM | Seq2Seq, languages: Mapping[str, int], words: Sequence[str]
) -> Start:
    content = checkpoint_file.load(local_checkpoint(path))
    problems = list(_misfits(f"init_from={path}", content, model.shape, languages, words))
    if is_seq2seq(content["model"]) != isinstance(model, Seq2Seq):
        problems.append(
            f"init_from={path}: is a language model, and this run trains a translation model: init_encoder={path}"
            f" init_decoder={path}"
            if isinstance(model, Seq2Seq)
            else f"init_from={path}: is a translation model, and this run trains a language model"
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


# -- translation models ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SideStart:
    """What the encoder or the decoder of a translation model starts with.

    Args:
        path: of the file that it was loaded from.
        loaded: names of its parameters that were.
        random: names of those that keep their random values.
        parents: lineage of what was loaded.
    """

    path: str
    loaded: list[str]
    random: list[str]
    parents: list[str]

    def __str__(self) -> str:
        """One line for the log."""
        left = f"; random: {', '.join(self.random)}" if self.random else ""
        return f"{self.path}: {len(self.loaded)} tensors loaded{left}"


def load_sides(
    model: Seq2Seq,
    contents: Mapping[str, tuple[str, dict[str, Any]]],
    languages: Mapping[str, int],
    words: Sequence[str],
) -> dict[str, SideStart]:
    """Start encoder and decoder of a translation model from checkpoints.

    A language model's checkpoint serves either side; in a decoder the attention over the source and its norm then keep
    their random values. A translation model's serves each side with its own. The encoder of a causal model reads in both
    directions from now on.

    Args:
        model: It is changed in place, or not at all.
        contents: By side: the file's name and its content, in the form of our checkpoints.
        languages: Of the corpus, with their ids.
        words: Of the corpus's vocabulary, by id.

    Returns:
        What each side given starts with.

    Raises:
        UserError: With everything that does not fit, naming the file and what the run has.
    """
    problems = [
        problem
        for side, (path, content) in contents.items()
        for problem in _misfits(f"init_{side}={path}", content, model.shape, languages, words)
    ]
    if problems:
        raise UserError(problems)
    states = {side: _fitting_state(content, side, model.shape) for side, (_, content) in contents.items()}
    tables = [state["embeddings.weight"] for state in states.values()]
    if model.share == "embeddings" and len(tables) == 2 and not torch.equal(*tables):
        raise UserError(
            "model.share=embeddings: init_encoder and init_decoder have different ones; set model.share=none"
        )
    starts = {}
    for side in (side for side in SIDES if side in states):
        path, content = contents[side]
        own = getattr(model, side)
        left = {name: value for name, value in own.state_dict().items() if name not in states[side]}
        own.load_state_dict({**states[side], **left})
        parents = [*content["lineage"]["parents"], *([content["sha256"]] if "sha256" in content else [])]
        starts[side] = SideStart(path, list(states[side]), list(left), parents)
    return starts


def _misfits(
    named: str, content: Mapping[str, Any], shape: ModelShape, languages: Mapping[str, int], words: Sequence[str]
) -> Iterator[str]:
    for name, value in content["shape"].items():
        if name not in FREE and value != getattr(shape, name):
            yield f"{named}: its model has {name}={value}, this run {getattr(shape, name)}; set model.{name}={value}"
    text = content["text"]
    if text["languages"] != dict(languages):
        yield f"{named}: its languages are {text['languages']}, the corpus has {dict(languages)}"
    theirs = Vocabulary.from_text(text["vocab"], name=f"{named}: vocabulary").words
    if list(theirs) != list(words):
        place = next(
            (n for n, (a, b) in enumerate(zip(theirs, words, strict=False)) if a != b), min(len(theirs), len(words))
        )
        yield (
            f"{named}: its vocabulary has {len(theirs):,} words, the corpus {len(words):,}, and they differ from id {place}"
            " on; prepare the text with its codes and vocabulary (codes=, vocab=)"
        )


def _fitting_state(content: Mapping[str, Any], side: str, shape: ModelShape) -> dict[str, Tensor]:
    """Weights for one side, with as many padding rows as the model has."""
    state = side_of(content["model"], side) if is_seq2seq(content["model"]) else dict(content["model"])
    rows = shape.n_rows - shape.n_words
    for name in ("embeddings.weight", "output_bias"):
        real = state[name][: shape.n_words]
        state[name] = F.pad(real, (0, 0, 0, rows) if real.ndim == 2 else (0, rows))
    return state
