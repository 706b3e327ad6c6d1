"""The original's binarised text (SPLIT.LANG.pth files) as a corpus folder of ours."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from xlm_train.data.manifest import FILE, FORMAT, VERSION, lineage
from xlm_train.interop.original.binarised import BinarisedText, read_binarised
from xlm_train.runtime.errors import ConfigError
from xlm_train.runtime.files import atomic_write, sha256_of, write_json
from xlm_train.text.bpe import CONTINUED, BpeCodes
from xlm_train.text.vocabulary import UNK

NAME = re.compile(r"(train|valid|test)\.([\w-]+)\.pth")

Key = tuple[str, str]  # split, language


def files_in(folder: Path) -> dict[Key, Path]:
    """The original's binarised files of a folder, by split and language."""
    return {key: path for path in sorted(folder.iterdir()) if (key := key_of(path)) is not None}


def key_of(path: Path) -> Key | None:
    """Split and language by the original's naming, SPLIT.LANG.pth."""
    found = NAME.fullmatch(path.name)
    return (found[1], found[2]) if found else None


def write_corpus(folder: Path, files: Mapping[Key, Path], languages: Sequence[str], codes: str) -> dict[str, Any]:
    """Write a corpus into an existing folder; returns its manifest.

    languages: by id. codes: text of the BPE codes, empty where they are not known. Characters of the raw text, which
    no .pth tells, stay unknown (null). A language's split goes through memory as a whole.
    Raises CheckpointError where a file is unsafe or damaged, ConfigError where files have different vocabularies.
    """
    splits: dict[str, dict[str, Any]] = {}
    first: tuple[Path, BinarisedText] | None = None
    for (split, language), path in files.items():
        text = read_binarised(path)
        first = first or (path, text)
        if text.vocabulary.words != first[1].vocabulary.words:
            raise ConfigError(f"{path}: its vocabulary is not that of {first[0]}: they do not make one corpus")
        splits.setdefault(split, {})[language] = _write_split(folder, f"{split}.{language}.00000", text, path)
    assert first is not None
    vocabulary = first[1].vocabulary
    for name, data in (("codes", codes), ("vocab", vocabulary.to_text())):
        with atomic_write(folder / name) as file:
            file.write(data.encode())
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "languages": {language: number for number, language in enumerate(languages)},
        "dtype": vocabulary.dtype.name,
        "vocabulary": {"file": "vocab", "sha256": sha256_of(folder / "vocab"), "entries": len(vocabulary)},
        "codes": {
            "file": "codes",
            "sha256": sha256_of(folder / "codes"),
            "merges": len(BpeCodes.from_text(codes)) if codes else 0,
        },
        "language_vocabularies": {},
        "splits": splits,
        "parallel": {},
        "text": {"lowercase": False, "remove_accents": False},
        "settings": {"imported": "binarised text of the original"},
        "tools": {"python": platform.python_version()},
        "warnings": [],
    }
    manifest["lineage"] = lineage(manifest)
    write_json(folder / FILE, manifest)
    return manifest


def _write_split(folder: Path, stem: str, text: BinarisedText, source: Path) -> dict[str, Any]:
    for name, array in ((f"{stem}.npy", text.ids), (f"{stem}.idx.npy", text.starts)):
        with atomic_write(folder / name) as file:
            np.save(file, array)
    words = text.vocabulary.words
    ends_word = np.array([not word.endswith(CONTINUED) for word in words])
    unknown_ends = sum(count for word, count in text.unknown.items() if not word.endswith(CONTINUED))
    ends_word[UNK] = False  # counted by the pieces they were
    return {
        "sentences": len(text.starts),
        "tokens": len(text.ids),
        "unknown": int((text.ids == UNK).sum()),
        "words": int(ends_word[text.ids].sum()) - len(text.starts) + unknown_ends,
        "characters": None,
        "shards": [
            {
                "file": f"{stem}.npy",
                "sha256": sha256_of(folder / f"{stem}.npy"),
                "tokens": len(text.ids),
                "sentences": len(text.starts),
                "index": f"{stem}.idx.npy",
                "index_sha256": sha256_of(folder / f"{stem}.idx.npy"),
            }
        ],
        "inputs": [{"path": str(source), "bytes": source.stat().st_size, "sha256": sha256_of(source)}],
    }
