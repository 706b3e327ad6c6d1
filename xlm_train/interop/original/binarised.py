"""The original's binarised text (SPLIT.LANG.pth), to arrays and back.

A file is a dict of sentences (ids, eos after each sentence), positions (start, and place of the eos, of each),
unk_words and dico, an object of the original's Dictionary class.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xlm_train.interop.original import unpickle
from xlm_train.interop.original.dictionaries import from_vocabulary, to_vocabulary
from xlm_train.interop.original.plain import plain
from xlm_train.interop.original.unpickle import DICTIONARIES, DictionaryRecord
from xlm_train.runtime.errors import CheckpointError
from xlm_train.runtime.files import atomic_write
from xlm_train.text.vocabulary import BOS, EOS, PAD, UNK, Vocabulary

KEYS = ("sentences", "positions", "dico", "unk_words")


@dataclass(frozen=True)
class BinarisedText:
    """Binarised text of one language.

    ids: all sentences one after the other, each with its eos. starts: where each begins. unknown: words that became
    `<unk>`, and how often.
    """

    ids: NDArray[Any]
    starts: NDArray[np.int64]
    vocabulary: Vocabulary
    unknown: dict[str, int]


def read_binarised(path: str | Path) -> BinarisedText:
    """Binarised text of the original. Raises CheckpointError where the file is unsafe, damaged or something else."""
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
    if (
        not isinstance(positions, np.ndarray)
        or positions.dtype != np.int64
        or positions.shape != (len(positions), 2)
        or not len(positions)
    ):
        raise CheckpointError(f"{path}: its positions are not pairs of numbers")
    starts, ends = positions.T
    follow = starts[0] == 0 and np.array_equal(starts[1:], ends[:-1] + 1) and ends[-1] == len(ids) - 1
    if not follow or not (starts <= ends).all() or not (ids[ends] == EOS).all():
        raise CheckpointError(f"{path}: its positions do not cut its sentences at their ends")
    if not 0 <= int(ids.min()) <= int(ids.max()) < len(vocabulary):
        raise CheckpointError(f"{path}: has word ids beyond its dictionary of {len(vocabulary)} words")
    words = plain(unknown, path)
    if not isinstance(words, dict) or not all(
        isinstance(word, str) and isinstance(count, int) for word, count in words.items()
    ):
        raise CheckpointError(f"{path}: its unk_words are not counted words")
    return BinarisedText(ids.astype(vocabulary.dtype), np.ascontiguousarray(starts), vocabulary, words)


def write_binarised(path: str | Path, text: BinarisedText) -> None:
    """Write binarised text as the original does, atomically. Reading it with plain torch needs the original's
    Dictionary class.
    """
    ends = np.append(text.starts[1:], len(text.ids)) - 1
    with _dictionary_class() as dictionary, atomic_write(path) as file:
        dico = dictionary()
        dico.__dict__.update(
            from_vocabulary(text.vocabulary), bos_index=BOS, eos_index=EOS, pad_index=PAD, unk_index=UNK
        )
        positions = np.stack([text.starts, ends], axis=1)
        data = {"dico": dico, "positions": positions, "sentences": text.ids, "unk_words": text.unknown}
        torch.save(data, file, pickle_protocol=4)


@contextlib.contextmanager
def _dictionary_class() -> Iterator[type]:
    """A class that pickles under the name of the original's Dictionary: pickle insists on finding it there
    while it writes.
    """
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
