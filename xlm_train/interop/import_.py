"""Models in any format that is known here, and what `xlm-import` writes: a checkpoint or a corpus, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.runtime.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from xlm_train.interop.original.checkpoint import Imported


def refuse_existing(out: Path) -> None:
    """Refuse to write over what is there.

    Raises:
        ConfigError: `out` is neither free nor an empty folder, or has no name.
    """
    if not out.name:
        raise ConfigError(f"out={out}: give the name of a folder to make")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"out={out}: is there already; give another folder")


def open_model(path: str | Path, vocab_multiple: int) -> dict[str, Any]:
    """The content of a checkpoint of ours, of one of the original's (.pth), or of a folder of transformers.

    Args:
        path: The file or folder, or the folder of a run, whose best checkpoint is read; or the URL of a file or a run.
        vocab_multiple: See ModelShape; of the other programs' models.

    Raises:
        UserError: It is missing, damaged or not supported.
    """
    from xlm_train.interop.original.checkpoint import import_checkpoint
    from xlm_train.interop.transformers import folder
    from xlm_train.runtime import checkpoint_file
    from xlm_train.runtime.run_store import local_checkpoint

    path = local_checkpoint(path)
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder")
    if path.is_dir():
        return folder.read(path, vocab_multiple=vocab_multiple).content
    if checkpoint_file.is_checkpoint(path):
        return checkpoint_file.load(path)
    return import_checkpoint(path, with_optimizer=False, vocab_multiple=vocab_multiple).content


def write_checkpoint(imported: Imported, out: Path) -> str:
    """Write a checkpoint with its codes and vocabulary.

    Returns:
        A line that says what it is.

    Raises:
        CheckpointError: Weights are not finite.
    """
    from xlm_train.runtime import checkpoint_file
    from xlm_train.runtime.files import whole_folder

    content: dict[str, Any] = imported.content
    if bad := [weight for weight, values in content["model"].items() if not values.isfinite().all()]:
        raise CheckpointError(f"holds weights that are not finite: {', '.join(bad[:3])}: its training had diverged")
    name = checkpoint_file.name_of(content["progress"]["step"])
    with whole_folder(out) as folder:
        checkpoint_file.save(folder / name, content)
        for part in ("codes", "vocab"):
            if content["text"][part]:
                (folder / part).write_bytes(content["text"][part].encode())
    shape, progress = content["shape"], content["progress"]
    return (
        f"{out / name}: {shape['n_layers']} layers, width {shape['dim']}, {shape['n_words']:,} words, languages "
        f"{', '.join(content['text']['languages'])}; {progress['updates']:,} updates, "
        f"{'with' if content['optimizer'] else 'without'} optimizer state"
    )


def import_corpus(
    files: Mapping[tuple[str, str], Path], languages: Sequence[str] | None, codes: str, out: Path
) -> list[str]:
    """Write a corpus folder from the original's binarised files.

    Args:
        files: By split and language, or split and side of a pair.
        languages: In the order of their ids; None: sorted.
        codes: Text of the BPE codes, or "".
        out: The folder.

    Returns:
        A line for each text.

    Raises:
        ConfigError: Where `languages` lacks one that there are files of.
    """
    from xlm_train.data.manifest import entries
    from xlm_train.interop.original.binarised import languages_in, write_corpus
    from xlm_train.runtime.files import whole_folder

    found = languages_in(files)
    languages = languages or sorted(found)
    if missing := found - {*languages}:
        raise ConfigError(f"languages={list(languages)}: lacks {', '.join(sorted(missing))}, which there are files of")
    with whole_folder(out) as folder:
        manifest = write_corpus(folder, dict(files), list(languages), codes)
    lines = [
        f"{out}: {name}: {entry['sentences']:,} sentences, {entry['tokens']:,} tokens"
        for name, entry in entries(manifest)
    ]
    return lines + [
        f"{out}: {split}.{pair}: {counts['dropped']['empty']:,} of {counts['lines']:,} pairs had an empty side: left out"
        for split, pairs in manifest.get("pairs", {}).items()
        for pair, counts in pairs.items()
        if counts["dropped"]["empty"]
    ]
