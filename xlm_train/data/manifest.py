"""The format of a binarised corpus: what its manifest.json is, and the hash lineage from raw text to its shards."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from xlm_train.runtime.console import counted, log
from xlm_train.runtime.errors import CorpusError, said
from xlm_train.runtime.files import atomic_write, digest, sha256_of
from xlm_train.runtime.storage import FETCHERS, MissingObject, Store, cache_folder
from xlm_train.runtime.stored_object import StoredObject

FORMAT = "xlm_train.corpus"
VERSION = 1
FILE = "manifest.json"
SPLITS = ("train", "valid", "test")

FILE_NAME = re.compile(r"\w[\w.-]*")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})?")


def languages_of(pair: str) -> tuple[str, str] | None:
    """Take a pair's name apart, as `de-en`: its two languages in the order written; None where it is no such name.

    A name that can be cut in two ways (`pt-br-en`) is none: a region in capitals (`pt-BR`) makes it one.
    """
    parts = pair.split("-")
    cuts = [("-".join(parts[:n]), "-".join(parts[n:])) for n in range(1, len(parts))]
    found = [cut for cut in cuts if cut[0] != cut[1] and all(LANGUAGE.fullmatch(code) for code in cut)]
    return found[0] if len(found) == 1 else None


def lineage(manifest: Mapping[str, Any]) -> str:
    """One hash over all that determines the corpus's bytes: inputs, settings, tools; and over the bytes it came to.

    No time, path or file name has a part in it, nor has the version of Python, whose effect is in the bytes.

    Args:
        manifest: As it is written, but for the lineage.
    """
    splits = {
        split: {language: _files(counts) for language, counts in per_language.items()}
        for split, per_language in manifest["splits"].items()
    }
    pairs = {
        split: {
            name: {language: _files(side) for language, side in pair["sides"].items()}
            for name, pair in per_pair.items()
        }
        for split, per_pair in manifest.get("pairs", {}).items()
    }
    return digest(
        manifest["format"],
        manifest["version"],
        manifest["languages"],
        manifest["vocabulary"]["sha256"],
        manifest["codes"]["sha256"],
        splits,
        manifest["text"],
        manifest["settings"],
        {name: found for name, found in manifest["tools"].items() if name != "python"},
        *([pairs] if pairs else []),  # a corpus without keeps the lineage that it had before there were pairs
    )


def damage(manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with a manifest of this format, seen by itself; None where nothing is."""
    try:
        fits = manifest["lineage"] == lineage(manifest) and bool(manifest["dtype"]) and bool(all_files(manifest))
    except (KeyError, TypeError, AttributeError) as error:
        return said(error)
    return None if fits else "it does not fit its lineage"


def all_files(manifest: Mapping[str, Any]) -> set[str]:
    """The names of all files of a corpus but the manifest."""
    small = [manifest["codes"], manifest["vocabulary"], *manifest["language_vocabularies"].values()]
    return {"report.html", *(entry["file"] for entry in small), *files_of(manifest)}


def entries(manifest: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Every text that a corpus has the tokens of: its name, as `train.de` or `train.de-en.de`, and its entry."""
    for split, per_language in manifest["splits"].items():
        for language, entry in per_language.items():
            yield f"{split}.{language}", entry
    for split, per_pair in manifest.get("pairs", {}).items():
        for name, pair in per_pair.items():
            for language, side in pair["sides"].items():
                yield f"{split}.{name}.{language}", side


def length_orders(manifest: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Every length order of a corpus: the name of its text, as `train.de` or `train.de-en`, and its entry."""
    for part in ("splits", "pairs"):
        for split, texts in manifest.get(part, {}).items():
            for name, entry in texts.items():
                if "bylength" in entry:
                    yield f"{split}.{name}", entry["bylength"]


def files_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The checksums of all files of tokens, sentence starts and length orders, by the files' names."""
    files: dict[str, str] = {}
    for _, entry in entries(manifest):
        for shard in entry["shards"]:
            files |= {shard["file"]: shard["sha256"], shard["index"]: shard["index_sha256"]}
    for _, order in length_orders(manifest):
        files |= {order["file"]: order["sha256"], order["classes"]: order["classes_sha256"]}
    return files


def fetched(url: str) -> Path:
    """Fetch a corpus into the cache and return its folder there; what was fetched before is not fetched again.

    Files are fetched side by side and compared with the manifest's checksums; a fetch that was stopped goes on where it
    stood. One process of a machine fetches, the others wait. A corpus lies under its lineage, wherever it came from.

    Args:
        url: Of the folder that holds manifest.json.

    Raises:
        CorpusError: There is no corpus, or its manifest is damaged.
        StorageError: The service cannot be reached, or a file's checksum is wrong.
    """
    store = Store(url)
    if (data := store.read(FILE)) is None:
        raise CorpusError(f"data.path={url}: no {FILE} in it: not a binarised corpus, or not uploaded whole")
    lineage_, files = _needed(url, data)
    folder = cache_folder() / "corpora" / lineage_
    if not (folder / FILE).is_file():
        log(f"data.path={url}: fetching {counted(len(files), 'file')} into {folder}")
        store.download_all({name: partial(_has, sha256) for name, sha256 in files.items()}, folder)
        with atomic_write(folder / FILE) as file:
            file.write(data)
    return folder


def verify_stored(url: str) -> str | None:
    """Compare every file of a stored corpus with its checksum; reads all bytes and keeps none.

    Args:
        url: Of the folder that holds manifest.json.

    Returns:
        The corpus's lineage; None where there is no manifest.json.

    Raises:
        CorpusError: With every file that is damaged or missing; or the manifest is damaged.
        StorageError: The service cannot be reached.
    """
    if (data := Store(url).read(FILE)) is None:
        return None
    lineage_, files = _needed(url, data)

    def problem(name: str) -> str | None:
        try:
            with StoredObject(f"{url.rstrip('/')}/{name}").open() as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        except MissingObject as error:
            return str(error)
        return (
            None
            if found == files[name]
            else f"{url}/{name}: its checksum differs from the manifest's: damaged or replaced"
        )

    with ThreadPoolExecutor(FETCHERS) as pool:
        if problems := [found for found in pool.map(problem, files) if found is not None]:
            raise CorpusError(problems)
    return lineage_


def _needed(url: str, data: bytes) -> tuple[str, dict[str, str]]:
    """Of a stored corpus the lineage, and the checksums of the files that reading it takes."""
    try:
        manifest = json.loads(data)
        small = {manifest[name]["file"]: manifest[name]["sha256"] for name in ("vocabulary", "codes")}
        files, lineage_ = {**small, **files_of(manifest)}, str(manifest["lineage"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(f"{url}/{FILE}: is damaged: {type(error).__name__}: {error}") from error
    if wrong := [name for name in (*files, lineage_) if not FILE_NAME.fullmatch(name)]:
        raise CorpusError(f"{url}/{FILE}: names a file {wrong[0]!r}: not a corpus of xlm-prep")
    return lineage_, files


def _has(sha256: str, path: Path) -> bool:
    return sha256_of(path) == sha256


def _files(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a text was made from and what it came to, by checksums."""
    return {
        "inputs": [source["sha256"] for source in entry["inputs"]],
        "shards": [[shard["sha256"], shard["index_sha256"]] for shard in entry["shards"]],
    }
