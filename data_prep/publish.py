"""The output folder: one run at a time, and a corpus in it that is whole or plainly unfinished."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.checks import OURS
from data_prep.settings import Settings
from data_prep.work import FAN, Workers
from xlm_train.data import manifest
from xlm_train.runtime.console import counted, log, waiting
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import atomic_write, fsync_folder, lock, read_json, remove_leftovers, sha256_of, write_json
from xlm_train.runtime.storage import Store, is_url
from xlm_train.text.files import ReadStats

SHOWN = 4  # differences that a message names
ANEW = "overwrite=true makes the corpus again"
SUPERSEDED = "superseded.json"  # of the work folder
PROBE = ".xlm-prep"  # an object that is written to see whether it may be


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
            lock(file)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"out={out}: another xlm-prep ({file.read().strip() or 'just started'}) is writing to it"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        for folder in (out, out / ".work", *(out / ".work").rglob("*/")):
            remove_leftovers(folder)
        yield


def finished_corpus(settings: Settings, tools: Mapping[str, str]) -> dict[str, Any] | None:
    """The manifest of the corpus at `out`, if it is what these settings would make; reads the inputs to know.

    Where `out` is a URL, it is looked whether anything may be written there.

    Args:
        settings: What is asked for.
        tools: Versions of all that shapes the bytes.

    Returns:
        None where there is none, or a damaged one, or one of an earlier version that lacks files; or one made otherwise
        that may be replaced.

    Raises:
        UserError: The folder's manifest.json is of something else, or its corpus was made otherwise.
        StorageError: The URL cannot be read from, or written to.
    """
    path = settings.folder / manifest.FILE
    if is_url(settings.out):
        found = _stored_manifest(Store(settings.out))
    else:
        found = _manifest_in(path, settings.overwrite)
    if found is None:
        return None
    if not isinstance(found, dict) or found.get("format") != manifest.FORMAT:
        raise UserError(f"out={settings.place}: its manifest.json is not of a binarised corpus; name another folder")
    if (why := manifest.damage(found)) is not None:
        if settings.overwrite:
            return None
        raise UserError(f"out={settings.place}: its manifest.json is damaged ({why}); {ANEW}")
    differences = _other_request(found, settings, tools) or _other_inputs(found, settings)
    if differences and settings.overwrite:
        return None
    if differences:
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise UserError(
            f"out={settings.place}: holds a finished corpus (lineage {found['lineage'][:12]}) that was made otherwise: "
            f"{'; '.join(differences[:SHOWN])}{more}. Name another folder, or replace it with overwrite=true"
        )
    if is_url(settings.out):
        return found  # its manifest came last
    files = {entry["file"]: entry["sha256"] for entry in (found["codes"], found["vocabulary"])}
    files |= {entry["file"]: entry["sha256"] for entry in found["language_vocabularies"].values()}
    files |= manifest.files_of(found)
    ordered = {name for name, _ in manifest.length_orders(found)} == _texts(found)
    if not ordered or any(_checksum(settings.folder / name) != known for name, known in files.items()):
        return None
    shutil.rmtree(settings.folder / ".work", ignore_errors=True)
    return found


def _manifest_in(path: Path, overwrite: bool) -> Any:
    """The manifest of a folder; None where there is none, or it is damaged and may be replaced."""
    try:
        return read_json(path) if path.exists() else None
    except UserError as error:
        if overwrite:
            return None
        raise UserError(f"{error}; {ANEW}") from error


def _stored_manifest(store: Store) -> Any:
    """The manifest of the corpus in a store; None where there is none, or it is damaged."""
    store.write(PROBE, b"")  # what may not be written is told now, not after hours
    store.remove([PROBE])
    try:
        return json.loads(store.read(manifest.FILE) or b"null")
    except ValueError:
        return None


def _texts(found: Mapping[str, Any]) -> set[str]:
    """The names of all texts and pairs of a manifest, as `train.de` and `train.de-en`."""
    parts = (found["splits"], found.get("pairs", {}))
    return {f"{split}.{name}" for part in parts for split, texts in part.items() for name in texts}


def _other_request(found: Mapping[str, Any], settings: Settings, tools: Mapping[str, str]) -> list[str]:
    """In what a corpus was made with other settings, tools or files than these."""
    was = _flat(found["settings"]) | {f"version of {name}": v for name, v in found["tools"].items() if name != "python"}
    now = _flat(settings.that_shape_the_corpus()) | {f"version of {name}": v for name, v in tools.items()}
    differences = [
        f"{key}: {was.get(key)} then, {now.get(key)} now" for key in {**was, **now} if was.get(key) != now.get(key)
    ]
    given = {"codes": (settings.codes_file, found["codes"]), "vocab": (settings.vocab_file, found["vocabulary"])} | {
        f"language_vocab.{language}": (file, found["language_vocabularies"].get(language, {"sha256": None}))
        for language, file in settings.language_vocab_files.items()
    }
    differences += [
        f"{key}: another file" for key, (file, old) in given.items() if file and _checksum(file) != old["sha256"]
    ]
    asked = {f"{split}.{name}" for split, name in (*settings.sources, *settings.pair_sources)}
    asked |= {f"{split}.{language}" for split in settings.held_out for language in settings.trained}
    asked |= {f"{split}.{pair}" for pair, splits in settings.held_out_pairs.items() for split in splits}
    differences += [f"{name}: not there then" for name in sorted(asked - _texts(found))]
    return differences + [f"{name}: not there now" for name in sorted(_texts(found) - asked)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _other_inputs(found: Mapping[str, Any], settings: Settings) -> list[str]:
    """Of which texts a corpus was made from other inputs than these; reads the inputs."""
    entries = dict(manifest.entries(found))
    differences = []
    for (split, name), sources in settings.sources.items():
        log(f"comparing {split}.{name} with what {settings.place} was made from")
        checksums = []
        for source in sources:
            stats = ReadStats()
            for _ in source.chunks(stats):
                pass
            checksums.append(stats.sha256)
        if [known["sha256"] for known in entries[f"{split}.{name}"]["inputs"]] != checksums:
            differences.append(f"{split}.{name}: other text")
    for (split, name), pair_sources in settings.pair_sources.items():
        log(f"comparing {split}.{name} with what {settings.place} was made from")
        readings = []
        for pair_source in pair_sources:
            readings.append(pair_source.reading())
            for _ in pair_source.pieces(settings.piece_bytes, settings.max_line_bytes, readings[-1]):
                pass
        for side, language in enumerate(manifest.languages_of(name) or ()):
            known = [entry["sha256"] for entry in entries[f"{split}.{name}.{language}"]["inputs"]]
            if known != [reading.stats[side].sha256 for reading in readings]:
                differences.append(f"{split}.{name}.{language}: other text")
    return differences


def publish(
    settings: Settings, result: dict[str, Any], folder: Path, files: Mapping[str, Path], workers: Workers
) -> None:
    """Put a finished corpus in its place, the manifest last; clear the work folder.

    What stood there before is whole until here. From the removal of the old manifest to the writing of the new there
    is none, which every reader takes for unfinished; killed in between, the same command finds all work done and comes
    back here.

    Args:
        settings: What was asked for.
        result: The manifest.
        folder: Holds the shards.
        files: The small files, by their names in the corpus.
        workers: Upload the shards.

    Raises:
        UserError: A shard was changed meanwhile.
        StorageError: It cannot be uploaded.
    """
    out = settings.folder
    shards = manifest.files_of(result)
    lost = [
        name for name, checksum in shards.items() if not (folder / name).exists() and _checksum(out / name) != checksum
    ]
    if lost:
        shutil.rmtree(folder)
        raise UserError(f"{out}: {lost[0]} was changed while this ran; run the same command again")
    if is_url(settings.out):
        _upload(Store(settings.out), result, folder, files, workers, out / ".work")
    else:
        _move(out, result, folder, files)
    (out / ".work" / SUPERSEDED).unlink()
    shutil.rmtree(folder if settings.keep_work else out / ".work")


@dataclass(frozen=True)
class UploadJob:
    """Shards to put into a store.

    Args:
        out: The work file that says that they are there.
        url: Of the corpus in the store.
        folder: Of the shards.
        names: Of the shards.
    """

    out: Path
    url: str
    folder: Path
    names: tuple[str, ...]


def upload_shards(job: UploadJob) -> None:
    """Put shards into a store, several at a time."""
    Store(job.url).upload_all({name: job.folder / name for name in job.names})
    job.out.touch()


def _upload(
    store: Store, result: dict[str, Any], folder: Path, files: Mapping[str, Path], workers: Workers, work: Path
) -> None:
    """Put a corpus into a store, as `publish` does into a folder; an upload that is killed begins again."""
    shards = list(manifest.files_of(result))
    old = _superseded(work, _stored_manifest(store), {*files, *shards})
    store.remove([manifest.FILE])
    with (
        tempfile.TemporaryDirectory(prefix="uploaded-", dir=folder.parent) as done,
        waiting("upload", f"{counted(len(files) + len(shards), 'file')} to {store.url}"),
    ):
        parts = [tuple(shards[start : start + FAN]) for start in range(0, len(shards), FAN)]
        jobs = [UploadJob(Path(done, str(number)), store.url, folder, part) for number, part in enumerate(parts)]
        workers.do(upload_shards, jobs)
        store.upload_all(files)
    store.remove(sorted(old))
    store.write(manifest.FILE, json.dumps(result, indent=2, ensure_ascii=False).encode())


def _superseded(work: Path, replaced: Any, new: Set[str]) -> set[str]:
    """The files of corpora that were or had begun to be published here and are not the new one's.

    They and the new ones are on disk in the work folder when this returns: a start after a kill knows them.

    Args:
        work: The work folder.
        replaced: The manifest that is there now, if it is whole.
        new: The new corpus's files.
    """
    path = work / SUPERSEDED
    known = set(read_json(path)) if path.exists() else set()
    if isinstance(replaced, dict) and manifest.damage(replaced) is None:
        known |= {name for name in manifest.all_files(replaced) if OURS.fullmatch(name)}
    write_json(path, sorted(known | new))
    return known - new


def _move(out: Path, result: dict[str, Any], folder: Path, files: Mapping[str, Path]) -> None:
    """Put a corpus into its folder."""
    shards = manifest.files_of(result)
    old = _superseded(out / ".work", _manifest_in(out / manifest.FILE, overwrite=True), {*files, *shards})
    (out / manifest.FILE).unlink(missing_ok=True)
    fsync_folder(out)
    for name in old:
        (out / name).unlink(missing_ok=True)
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


def _checksum(path: Path) -> str | None:
    return sha256_of(path) if path.exists() else None
