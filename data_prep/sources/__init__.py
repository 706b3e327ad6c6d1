"""Sources of text: every kind of input, as lines of bytes that never fill the memory."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.sources import news_crawl
from data_prep.sources.hub import HubDataset
from data_prep.sources.jsonl import JsonLines, is_json_lines
from data_prep.sources.parquet import ParquetFile
from data_prep.sources.sgm import SgmFile
from data_prep.sources.wikipedia import WikiExtractor
from xlm_train.config.files import path_of
from xlm_train.runtime.errors import StorageError
from xlm_train.runtime.storage import is_url
from xlm_train.runtime.stored_object import StoredObject, objects_of
from xlm_train.text.files import Place, Source, TextFile

HUB_KEYS = {"dataset", "config", "split", "column", "revision"}


def sources_of(key: str, value: Any, language: str) -> tuple[list[Source], list[str]]:
    """Open the sources that an override names.

    Args:
        key: The override, as `train.en`, for messages.
        value: One input or a list of them. An input is a path (a file, a pattern with * or ?, a folder of News Crawl,
            WikiExtractor or the hub's layout), the URL of an object or a pattern of such, or a mapping: {path: FILE.parquet, column: NAME},
            {path: FILE.jsonl, field: NAME} or {dataset: NAME_OR_FOLDER, config: .., split: .., column: .., revision: ..}.
        language: Whose text is wanted of a folder that holds several.

    Returns:
        The sources, and what is wrong with them.
    """
    inputs = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not inputs:
        return [], [f"{key}: names no input"]
    sources: list[Source] = []
    problems: list[str] = []
    for entry in inputs:
        try:
            sources += open_input(entry, language)
        except (ValueError, StorageError) as error:
            problems.append(f"{key}: {error}")
    problems += [f"{key}: {problem}" for source in sources for problem in source.check()]
    return sources, problems


def by_lines(source: Source) -> Source:
    """A source whose lines belong to another's: no line of it may be left out, no row become several.

    Raises:
        ValueError: Its lines belong to no other's.
    """
    if isinstance(source, WikiExtractor):
        raise ValueError(f"{source.name}: is articles, whose lines belong to no other text's")
    return replace(source, row_is_line=True) if isinstance(source, JsonLines | ParquetFile | HubDataset) else source


def open_input(entry: Any, language: str) -> list[Source]:
    """The sources of one input.

    Raises:
        ValueError: It is no input, or there is none; says what is wrong.
        StorageError: The same of a URL.
    """
    if isinstance(entry, Mapping):
        keys = set(entry)
        if "dataset" in keys and keys <= HUB_KEYS:
            names: dict[str, Any] = {key: str(value) for key, value in entry.items() if value is not None}
            return [HubDataset(**names)]
        if keys == {"path", "column"}:
            return [ParquetFile(_existing(entry["path"]), str(entry["column"]))]
        if keys == {"path", "field"}:
            return [JsonLines(_existing(entry["path"]), str(entry["field"]))]
        raise ValueError(
            f"{dict(entry)} is no input: give {{path: FILE.parquet, column: NAME}}, {{path: FILE.jsonl, field: NAME}} or "
            "{dataset: NAME, config: .., split: .., column: .., revision: ..}"
        )
    if not isinstance(entry, (str, Path)) or not str(entry):
        raise ValueError(f"{entry!r} is no input: give a path or a mapping")
    if is_url(entry):
        return [_of_file(found) for found in objects_of(str(entry))]
    path = path_of(entry)
    if path.is_dir():
        return _folder(path, language)
    if not path.exists() and any(mark in str(path) for mark in "*?["):
        found = sorted(glob.glob(str(path)))  # noqa: PTH207 (the pattern may be absolute)
        if not found:
            raise ValueError(f"{path}: no file has such a name")
        return [source for name in found for source in open_input(name, language)]
    return [_of_file(_existing(path))]


def _of_file(path: Place) -> Source:
    """The source that a file's name says it is."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{str(path)!a}: its name is not UTF-8: rename it") from error
    if is_json_lines(path):
        return JsonLines(path)
    if path.suffix == ".json":
        raise ValueError(f"{path}: is JSON, not text: give lines of objects as FILE.jsonl")
    kinds: dict[str, type[ParquetFile | SgmFile]] = {".parquet": ParquetFile, ".sgm": SgmFile}
    return kinds.get(path.suffix, TextFile)(path)


def place_of(given: Any) -> Place:
    """The file or object that a user wrote."""
    return StoredObject(str(given)) if is_url(given) else path_of(given)


def _existing(given: Any) -> Place:
    path = place_of(given)
    if isinstance(path, Path) and not path.exists():
        raise ValueError(f"{path}: there is no such file")
    return path


def _folder(path: Path, language: str) -> list[Source]:
    if news := news_crawl.files_in(path, language):
        return [TextFile(file) for file in news]
    if WikiExtractor.files_in(path):
        return [WikiExtractor(path)]
    if any(path.rglob("*.parquet")) or any(path.rglob("*.jsonl*")) or (path / "README.md").exists():
        return [HubDataset(str(path))]
    if text := next(iter(sorted(path.glob("*.txt*"))), None):
        raise ValueError(f"{path}: is a folder; its text files are '{path}/*{text.name[text.name.index('.txt') :]}'")
    raise ValueError(
        f"{path}: is a folder with no text known here: no News Crawl files of language {language}, "
        "no wiki_NN files of WikiExtractor, no data set in the hub's layout"
    )
