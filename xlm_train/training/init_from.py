"""A new run that begins with another run's checkpoint."""

from __future__ import annotations

from typing import Any

from xlm_train.data.corpus import Corpus
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import UserError
from xlm_train.training.state import Progress


def fork(path: str, corpus: Corpus, shape: dict[str, Any], with_optimizer: bool) -> tuple[dict[str, Any], list[str]]:
    """What a new run takes from another run's checkpoint: its weights, and with `with_optimizer` moments and update
    count too.

    Returns the content to start from and the lineage's parents. Raises UserError with everything that does not fit.
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
            f"init_from={path}: its vocabulary is not the corpus's; prepare the text with its codes and vocabulary (codes=, vocab=)"
        )
    if with_optimizer and content["optimizer"] is None:
        problems.append(f"init_from={path}: holds no optimizer state; set init_optimizer=false")
    if problems:
        raise UserError(problems)
    started = Progress(updates=content["progress"]["updates"] if with_optimizer else 0)
    return {
        "model": content["model"],
        "optimizer": content["optimizer"] if with_optimizer else None,
        "ledger": [],
        "guard": {},
        "progress": started.to_dict(),
        "sha256": content["sha256"],
    }, [*content["lineage"]["parents"], content["sha256"]]
