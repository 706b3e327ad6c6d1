"""The original's binarised text (SPLIT.LANG.pth, SPLIT.PAIR.LANG.pth), to arrays and back, and as a corpus of ours.

A file is a dict of sentences (ids, eos after each sentence), positions (start, and place of the eos, of each),
unk_words and dico, an object of the original's Dictionary class. Source: xlm/data/dictionary.py, index_data.
"""

from __future__ import annotations

import contextlib
import platform
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlm_train.data.manifest import FILE, FORMAT, VERSION, languages_of, lineage
from xlm_train.data.sentence_files import Pairs, open_sentences, write_length_order
from xlm_train.interop.original import unpickle
from xlm_train.interop.original.params import from_vocabulary, is_text, to_vocabulary
from xlm_train.interop.original.unpickle import DICTIONARIES, DictionaryRecord
from xlm_train.runtime.checkpoint_file import save_into
from xlm_train.runtime.errors import CheckpointError, ConfigError
from xlm_train.runtime.files import atomic_write, sha256_of, write_json
from xlm_train.text.bpe import CONTINUED, BpeCodes
from xlm_train.text.vocabulary import BOS, EOS, PAD, UNK, Vocabulary

NAME = re.compile(r"(train|valid|test)\.(?:([\w-]+)\.)?([\w-]+)\.pth")
KEYS = ("sentences", "positions", "dico", "unk_words")

Key = tuple[str, str]  # split; language, or pair and language as `de-en.de`


@dataclass(frozen=True)
class BinarisedText:
    """Binarised text of one language.

    Attributes:
        ids: All sentences one after the other, each with its eos, (tokens,).
        starts: Where each sentence begins in `ids`, (sentences,).
        vocabulary: The words of the ids.
        unknown: Words that became `<unk>`, and how often.
    """

    ids: NDArray[Any]
    starts: NDArray[np.int64]
    vocabulary: Vocabulary
    unknown: dict[str, int]


def read_binarised(path: str | Path) -> BinarisedText:
    """Read binarised text of the original.

    Raises:
        CheckpointError: If the file is unsafe, damaged or something else.
    """
    path = Path(path)
    raw = unpickle.load(path)
    if not isinstance(raw, dict) or not raw.keys() >= {*KEYS} or not isinstance(raw["dico"], DictionaryRecord):
        raise CheckpointError(f"{path}: is not binarised text of the original")
    ids, positions, unknown, dictionary = raw["sentences"], raw["positions"], raw["unk_words"], raw["dico"].state
    if not {"id2word", "word2id", "counts"} <= dictionary.keys():
        raise CheckpointError(f"{path}: its dictionary is incomplete")
    vocabulary = to_vocabulary(dictionary["id2word"], dictionary["word2id"], dictionary["counts"], path)
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype not in (np.uint16, np.int32) or not len(ids):
        raise CheckpointError(f"{path}: its sentences are not a row of word ids")
    if not isinstance(positions, np.ndarray) or positions.dtype != np.int64 or positions.shape[1:] != (2,):
        raise CheckpointError(f"{path}: its positions are not pairs of numbers")
    starts, ends = positions.T
    follow = np.array_equal(starts, np.append(0, ends[:-1] + 1)) and ends[-1] == len(ids) - 1
    if not follow or not ((starts <= ends) & (ends < len(ids))).all() or not (ids[ends] == EOS).all():
        raise CheckpointError(f"{path}: its positions do not cut its sentences at their ends")
    if not 0 <= int(ids.min()) <= int(ids.max()) < len(vocabulary):
        raise CheckpointError(f"{path}: has word ids beyond its dictionary of {len(vocabulary)} words")
    if not isinstance(unknown, dict) or not all(
        type(word) is str and is_text(word) and isinstance(count, int | np.integer) for word, count in unknown.items()
    ):
        raise CheckpointError(f"{path}: its unk_words are not counted words")
    unknown = {word: int(count) for word, count in unknown.items()}
    return BinarisedText(ids.astype(vocabulary.dtype), np.ascontiguousarray(starts), vocabulary, unknown)


def write_binarised(path: str | Path, text: BinarisedText) -> None:
    """Write binarised text as the original does, atomically.

    Reading it with plain torch needs the original's Dictionary class.
    """
    ends = np.append(text.starts[1:], len(text.ids)) - 1
    with _dictionary_class() as dictionary, atomic_write(path) as file:
        dico = dictionary()
        dico.__dict__.update(
            from_vocabulary(text.vocabulary), bos_index=BOS, eos_index=EOS, pad_index=PAD, unk_index=UNK
        )
        positions = np.stack([text.starts, ends], axis=1)
        data = {"dico": dico, "positions": positions, "sentences": text.ids, "unk_words": text.unknown}
        save_into(file, data, pickle_protocol=4)


@contextlib.contextmanager
def _dictionary_class() -> Iterator[type]:
    """A class that pickles under the name of the original's Dictionary: pickle wants to find it there as it writes."""
    module_name, _, name = DICTIONARIES[0].rpartition(".")
    parts = module_name.split(".")
    stand_ins = {path: types.ModuleType(path) for path in (".".join(parts[: n + 1]) for n in range(len(parts)))}
    cls = type(name, (), {"__module__": module_name})
    setattr(stand_ins[module_name], name, cls)
    before = {path: sys.modules[path] for path in stand_ins if path in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield cls
    finally:
        for path in stand_ins:
            del sys.modules[path]
        sys.modules.update(before)


# -- a corpus folder of ours ----------------------------------------------------------------------------------------


def files_in(folder: Path) -> dict[Key, Path]:
    """Find the original's binarised files in a folder, by split and language, parallel text by pair and language."""
    return {key: path for path in sorted(folder.iterdir()) if (key := key_of(path)) is not None}


def key_of(path: Path) -> Key | None:
    """What a file is by the original's naming, SPLIT.LANG.pth or SPLIT.PAIR.LANG.pth; None of any other file."""
    found = NAME.fullmatch(path.name)
    if found is None or (found[2] and found[3] not in (languages_of(found[2]) or ())):
        return None
    return found[1], ".".join(filter(None, found.groups()[1:]))


def languages_in(files: Mapping[Key, Path]) -> set[str]:
    """The languages that files are of."""
    return {name.rpartition(".")[2] for _, name in files}


def write_corpus(folder: Path, files: Mapping[Key, Path], languages: Sequence[str], codes: str) -> dict[str, Any]:
    """Write a corpus into an existing folder.

    Characters of the raw text, which no .pth tells, stay unknown (null). A language's split goes through memory as a
    whole.

    Args:
        folder: Where to write.
        files: The original's files, at least one.
        languages: Codes in the order of their ids.
        codes: Text of the BPE codes, empty where they are not known.

    Returns:
        The corpus's manifest.

    Raises:
        CheckpointError: If a file is unsafe or damaged.
        ConfigError: If files have different vocabularies, or a pair's side is missing or not as long as the other.
    """
    splits: dict[str, dict[str, Any]] = {}
    pairs: dict[str, dict[str, Any]] = {}
    first: tuple[Path, Vocabulary] | None = None

    def read(path: Path) -> BinarisedText:
        nonlocal first
        text = read_binarised(path)
        first = first or (path, text.vocabulary)
        if text.vocabulary.words != first[1].words:
            raise ConfigError(f"{path}: its vocabulary is not that of {first[0]}: they do not make one corpus")
        return text

    for (split, name), path in files.items():
        pair = name.rpartition(".")[0]
        splits.setdefault(split, {})
        if not pair:
            entry = _write_text(folder, f"{split}.{name}", read(path), path)
            order = write_length_order(folder, f"{split}.{name}", open_sentences(folder, entry["shards"]))
            splits[split][name] = {**entry, "bylength": order}
        elif pair not in pairs.setdefault(split, {}):
            pairs[split][pair] = _write_pairs(folder, split, pair, files, read)
    assert first is not None
    vocabulary = first[1]
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
        **({"pairs": pairs} if pairs else {}),
        "parallel": {},
        "text": {"lowercase": False, "remove_accents": False},
        "settings": {"imported": "binarised text of the original"},
        "tools": {"python": platform.python_version()},
        "warnings": [],
    }
    manifest["lineage"] = lineage(manifest)
    write_json(folder / FILE, manifest)
    return manifest


def _write_pairs(
    folder: Path, split: str, pair: str, files: Mapping[Key, Path], read: Callable[[Path], BinarisedText]
) -> dict[str, Any]:
    """Write both sides of a pair, without the pairs of which one is empty: the original drops them as it loads."""
    languages = sorted(languages_of(pair) or ())
    paths = [files.get((split, f"{pair}.{language}")) for language in languages]
    for language, path in zip(languages, paths, strict=True):
        if path is None:
            raise ConfigError(f"{split}.{pair}.{language}.pth: is not there, but the other side of the pair is")
    first, second = texts = [read(path) for path in paths if path is not None]
    if len(first.starts) != len(second.starts):
        raise ConfigError(
            f"{paths[0]} has {len(first.starts):,} sentences, {paths[1]} {len(second.starts):,}: they are no pairs"
        )
    lengths = [np.diff(text.starts, append=len(text.ids)) for text in texts]
    full = (lengths[0] > 1) & (lengths[1] > 1)  # an empty sentence is its eos
    sides = {}
    for language, path, text, own in zip(languages, paths, texts, lengths, strict=True):
        starts = np.cumsum(own[full]) - own[full]
        kept = BinarisedText(text.ids[np.repeat(full, own)], starts, text.vocabulary, text.unknown)
        assert path is not None
        sides[language] = _write_text(folder, f"{split}.{pair}.{language}", kept, path)
    one, other = (open_sentences(folder, sides[language]["shards"]) for language in languages)
    return {
        "sentences": int(full.sum()),
        "lines": len(full),
        "dropped": {"empty": int((~full).sum())},
        "sides": sides,
        "bylength": write_length_order(folder, f"{split}.{pair}", Pairs((languages[0], languages[1]), (one, other))),
    }


def _write_text(folder: Path, name: str, text: BinarisedText, source: Path) -> dict[str, Any]:
    """Write one text as a shard. Words that only dropped pairs had are counted where they were unknown."""
    stem = f"{name}.00000"
    for file_name, array in ((f"{stem}.npy", text.ids), (f"{stem}.idx.npy", text.starts)):
        with atomic_write(folder / file_name) as file:
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
