"""The output folder: one run at a time, and a corpus in it that is whole or plainly unfinished."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.checks import OURS
from data_prep.settings import Settings
from xlm_train.data import manifest
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import atomic_write, fsync_folder, read_json, sha256_of, write_json
from xlm_train.text.files import ReadStats


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it. The system lifts the lock when this process ends, however it does.

    Raises:
        UserError: The folder cannot be made or written to, or another run holds it.
    """
    path = out / ".lock"
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (closed below, where the lock ends)
    except OSError as error:
        raise UserError(f"out={out}: cannot be made or written to: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"out={out}: another xlm-prep ({file.read().strip() or 'just started'}) is writing to it"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        for unfinished in (*out.glob(".*.tmp"), *(out / ".work").rglob(".*.tmp")):
            unfinished.unlink()  # of a run that was killed
        yield


def finished_corpus(settings: Settings, tools: Mapping[str, str]) -> dict[str, Any] | None:
    """The manifest of the corpus in the output folder, if it is what these settings would make; reads the inputs to know.

    Args:
        settings: What is asked for.
        tools: Versions of all that shapes the bytes.

    Raises:
        UserError: The folder's manifest.json is of something else.
    """
    path = settings.folder / manifest.FILE
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != manifest.FORMAT:
        raise UserError(f"out={settings.folder}: its manifest.json is not of a binarised corpus; name another folder")
    same = (
        found.get("settings") == settings.that_shape_the_corpus()
        and {name: found["tools"][name] for name in found["tools"] if name != "python"} == tools
        and found["text"] == {"lowercase": settings.lowercase, "remove_accents": settings.remove_accents}
        and all(
            _checksum(given) in (None, found[kind]["sha256"])
            for kind, given in (("codes", settings.codes_file), ("vocabulary", settings.vocab_file))
            if given
        )
        and all(
            _checksum(given) == found["language_vocabularies"].get(language, {}).get("sha256")
            for language, given in settings.language_vocab_files.items()
        )
    )
    if not same:
        return None
    made = {(split, language) for split, per_language in found["splits"].items() for language in per_language}
    if made != settings.sources.keys() | {
        (split, language) for split in settings.held_out for language in settings.languages
    }:
        return None
    for (split, language), sources in settings.sources.items():
        log(f"comparing {split}.{language} with what {settings.folder} was made from")
        entry = found["splits"].get(split, {}).get(language)
        checksums = []
        for source in sources:
            stats = ReadStats()
            for _ in source.chunks(stats):
                pass
            checksums.append(stats.sha256)
        if entry is None or [known["sha256"] for known in entry["inputs"]] != checksums:
            return None
    small = {entry["file"]: entry["sha256"] for entry in (found["codes"], found["vocabulary"])}
    small |= {entry["file"]: entry["sha256"] for entry in found["language_vocabularies"].values()}
    if any(_checksum(settings.folder / name) != known for name, known in (small | _shards(found)).items()):
        return None
    shutil.rmtree(settings.folder / ".work", ignore_errors=True)
    return found


def publish(settings: Settings, result: dict[str, Any], folder: Path, files: Mapping[str, Path]) -> None:
    """Put a finished corpus in its place, the manifest last; clear the work folder.

    What stood there before is whole until here. From the removal of the old manifest to the writing of the new there
    is none, which every reader takes for unfinished; killed in between, the same command finds all work done and comes
    back here.

    Args:
        settings: What was asked for.
        result: The manifest.
        folder: Holds the shards.
        files: The small files, by their names in the corpus.

    Raises:
        UserError: A shard was changed meanwhile.
    """
    out = settings.folder
    shards = _shards(result)
    lost = [
        name for name, checksum in shards.items() if not (folder / name).exists() and _checksum(out / name) != checksum
    ]
    if lost:
        shutil.rmtree(folder)
        raise UserError(f"{out}: {lost[0]} was changed while this ran; run the same command again")
    (out / manifest.FILE).unlink(missing_ok=True)
    fsync_folder(out)
    for old in out.iterdir():
        if OURS.fullmatch(old.name) and old.name not in files.keys() | shards.keys():
            old.unlink()
    for name, path in files.items():
        if _checksum(out / name) == sha256_of(path):
            continue
        with atomic_write(out / name) as file:
            file.write(path.read_bytes())
    for name in shards:
        if (folder / name).exists():
            (folder / name).replace(out / name)
    fsync_folder(out)
    write_json(out / manifest.FILE, result)
    shutil.rmtree(folder if settings.keep_work else out / ".work")


def _shards(found: Mapping[str, Any]) -> dict[str, str]:
    """Checksums of all shard files of a manifest, by name."""
    return {
        name: checksum
        for per_language in found["splits"].values()
        for entry in per_language.values()
        for shard in entry["shards"]
        for name, checksum in ((shard["file"], shard["sha256"]), (shard["index"], shard["index_sha256"]))
    }


def _checksum(path: Path) -> str | None:
    return sha256_of(path) if path.exists() else None
