"""`xlm-train verify=FOLDER`: check every checkpoint of a folder, or every shard of a corpus."""

from __future__ import annotations

import os
from pathlib import Path

from xlm_train.runtime.console import show
from xlm_train.runtime.errors import EXIT_FAILED, CheckpointError


def verify(folder: str) -> int:
    """Print a line for each checkpoint, or one for a corpus.

    Returns:
        1 where a checkpoint is damaged, else 0.

    Raises:
        CheckpointError: Where there is none.
        CorpusError: Where the folder is a corpus, and damaged.
    """
    from xlm_train.config.train import window_tokens
    from xlm_train.data.corpus import Corpus
    from xlm_train.runtime import checkpoint_file
    from xlm_train.training.loggers import describe

    place = Path(folder)
    if not os.path.isdir(folder):
        raise CheckpointError(f"verify={folder}: there is no such folder")
    if (place / "manifest.json").is_file():
        corpus = Corpus(place)
        corpus.verify()
        show(
            f"ok       {place}: every shard's checksum is right, every id below {corpus.n_words:,}; lineage {corpus.lineage[:12]}"
        )
        return 0
    paths = sorted(checkpoint_file.in_folder(place) or checkpoint_file.in_folder(place / "checkpoints"))
    if not paths:
        raise CheckpointError(f"verify={folder}: there is no step-*.pt in it")
    damaged = 0
    for path in paths:
        try:
            content = checkpoint_file.load(path)
        except CheckpointError as error:
            damaged += 1
            show(f"DAMAGED  {error}")
            continue
        progress, config, lineage = content["progress"], content["config"], content["lineage"]
        tokens = window_tokens(config)
        read = "" if tokens is None else f"{progress['step'] * tokens:,} tokens, "
        scores = describe(content["metrics"], "val/ppl") if content["metrics"] else "no validation yet"
        show(
            f"ok       {path}: step {progress['step']:,}, {progress['updates']:,} updates, {read}{scores}, "
            f"corpus {str(lineage['corpus'])[:12]}, {len(lineage['parents'])} parents, sha256 {content['sha256'][:12]}"
        )
    return EXIT_FAILED if damaged else 0
