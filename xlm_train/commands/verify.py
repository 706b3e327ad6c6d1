"""`xlm-train verify=FOLDER or URL`: check every checkpoint of a run, or every shard of a corpus."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from xlm_train.runtime.console import show
from xlm_train.runtime.errors import EXIT_FAILED, CheckpointError
from xlm_train.runtime.storage import DamagedObject, MissingObject, Store, cache_folder, is_url


def verify(place: str) -> int:
    """Print a line for each checkpoint, or one for a corpus.

    Args:
        place: A folder, or the URL of one.

    Returns:
        1 where a checkpoint is damaged, else 0.

    Raises:
        CheckpointError: Where there is none.
        CorpusError: Where the folder is a corpus, and damaged.
        StorageError: The URL cannot be used, or the service cannot be reached.
    """
    return _of_url(place.rstrip("/")) if is_url(place) else _of_folder(place)


def _of_folder(folder: str) -> int:
    from xlm_train.data.corpus import Corpus
    from xlm_train.runtime import checkpoint_file

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
    return EXIT_FAILED if [path for path in paths if not _is_whole(path, str(path))] else 0


def _of_url(url: str) -> int:
    """Every object of a corpus is read and not kept; each checkpoint of a run is fetched to where it is removed again."""
    from xlm_train.data.manifest import verify_stored
    from xlm_train.runtime.run_store import RunStore

    Store(url)  # raises where it is no URL that could be used
    if (lineage := verify_stored(url)) is not None:
        show(f"ok       {url}: every shard's checksum is right; lineage {lineage[:12]}")
        return 0
    cache_folder().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache_folder()) as folder:
        above, _, name = url.rpartition("/")
        run = RunStore(above, name, Path(folder), lease_seconds=0.0)
        manifest = next((found for found in run.manifests() if found.checkpoints), None)
        if manifest is None:
            raise CheckpointError(f"verify={url}: is neither a corpus nor a run with a checkpoint")
        damaged = 0
        for checkpoint in reversed(manifest.checkpoints):
            path = run.folder / checkpoint
            try:
                run.fetch(manifest, checkpoint)
            except (DamagedObject, MissingObject) as error:
                damaged += 1
                show(f"DAMAGED  {error}")
                continue
            damaged += not _is_whole(path, f"{url}/{manifest.files[checkpoint].object}")
            path.unlink()
    return EXIT_FAILED if damaged else 0


def _is_whole(path: Path, name: str) -> bool:
    """Print the line of a checkpoint, and say whether it is whole."""
    from xlm_train.config.train import window_tokens
    from xlm_train.runtime import checkpoint_file
    from xlm_train.training.loggers import describe

    try:
        content = checkpoint_file.load(path)
    except CheckpointError as error:
        show(f"DAMAGED  {error}")
        return False
    progress, config, lineage = content["progress"], content["config"], content["lineage"]
    tokens = window_tokens(config)
    read = "" if tokens is None else f"{progress['step'] * tokens:,} tokens, "
    scores = describe(content["metrics"], "val/ppl") if content["metrics"] else "no validation yet"
    show(
        f"ok       {name}: step {progress['step']:,}, {progress['updates']:,} updates, {read}{scores}, "
        f"corpus {str(lineage['corpus'])[:12]}, {len(lineage['parents'])} parents, sha256 {content['sha256'][:12]}"
    )
    return True
