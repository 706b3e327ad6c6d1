"""Words: how text is parted into them, and the vocabulary that gives each its id.

Vocabulary files are fastBPE's own (its getvocab): one `word count` a line, by falling count, equal counts in
byte order. The ids are the original's: 14 special words first, then the file in its order.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import atomic_write

BOS, EOS, PAD, UNK = 0, 1, 2, 3
SPECIALS = ("<s>", "</s>", "<pad>", "<unk>", *(f"<special{i}>" for i in range(10)))
MASK = 5  # <special1>: stands for a hidden word
NEVER_WRITTEN = tuple(number for number in range(len(SPECIALS)) if number != EOS)  # by a model that continues a text

LINE_END = "\n"
"""What `split_lines` puts after the words of each line. No word can be it."""

_PROBLEMS_SHOWN = 10


def split_lines(lines: Sequence[str]) -> list[str]:
    """The words of many lines in one list, `LINE_END` after each line. The one rule for what a word is.

    fastBPE's rule: words are separated by the ASCII space and by nothing else (a tab, a no-break space or a carriage
    return is part of a word). Two spaces in a row give an empty string, which is no word.

    Raises:
        ValueError: A line holds a newline: it would silently be two lines.
    """
    if not lines:
        return []
    separator = f" {LINE_END} "
    text = separator.join(lines) + separator[:-1]
    if text.count(LINE_END) != len(lines):
        raise ValueError("a line holds a newline character: pass lines without their ends")
    return text.split(" ")


class Vocabulary:
    """An immutable list of words: position is id. The special words come first and count 0.

    Attributes:
        words: id -> word, specials included.
        counts: id -> how often the word was seen when the vocabulary was made.

    Args:
        entries: (word, count) in the order of their ids, without the special words.

    Raises:
        ValueError: A word comes twice or is a special word.
    """

    def __init__(self, entries: Iterable[tuple[str, int]]) -> None:
        self.words: list[str] = list(SPECIALS)
        self.counts: list[int] = [0] * len(SPECIALS)
        for word, count in entries:
            self.words.append(word)
            self.counts.append(count)
        self._index = {word: i for i, word in enumerate(self.words)}
        if len(self._index) != len(self.words):
            twice = [word for word, times in Counter(self.words).items() if times > 1]
            raise ValueError(f"words that come twice: {twice[:_PROBLEMS_SHOWN]}")

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._index

    def index(self, word: str) -> int:
        """The id of `word`; `UNK` where the vocabulary lacks it."""
        return self._index.get(word, UNK)

    def indices(self, words: Iterable[str]) -> list[int]:
        """The ids of many words."""
        find = self._index.get
        return [find(word, UNK) for word in words]

    @property
    def dtype(self) -> np.dtype[Any]:
        """What its ids are stored as: uint16 below 65,536 entries, else int32 (as the original)."""
        return np.dtype(np.uint16) if len(self) < 1 << 16 else np.dtype(np.int32)

    @classmethod
    def from_counts(cls, counts: Mapping[str, int]) -> Vocabulary:
        """The vocabulary of counted words: falling count, equal counts in byte order (as fastBPE).

        Special words spelled in the text are left out: they have their ids already.
        """
        # Code points order as their UTF-8 bytes do, so Python's own order of strings is fastBPE's.
        entries = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
        return cls(entry for entry in entries if entry[0] not in SPECIALS)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read a vocabulary file.

        Raises:
            UserError: The file cannot be read or is no vocabulary; names the file and the line.
        """
        return cls.from_text(read_text(path), name=os.fspath(path))

    @classmethod
    def from_text(cls, text: str, name: str = "vocabulary") -> Vocabulary:
        """Read the text of a vocabulary file, by the original's rules.

        Args:
            text: Lines of two fields, separated by white space of any kind. A line that has not two of them, or holds
                U+2028, is skipped without taking an id.
            name: Of the file, for messages.

        Raises:
            UserError: A word comes twice or is a special word, a count is not a number, counts rise, or there is no
                entry at all; names `name` and the line.
        """
        entries: list[tuple[str, int]] = []
        line_of: dict[str, int] = {}
        problems: list[str] = []
        for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
            fields = line.split()
            if len(fields) != 2 or "\u2028" in line:
                continue
            word, count = fields
            where = f"{name}:{number}"
            if word in SPECIALS:
                problems.append(f"{where}: {word} is a special word, which has an id of its own already")
            elif word in line_of:
                problems.append(f"{where}: {word!r} comes again (first in line {line_of[word]})")
            elif not (count.isascii() and count.isdigit()):
                problems.append(f"{where}: the count {count!r} is not a number")
            elif entries and int(count) > entries[-1][1]:
                problems.append(f"{where}: counts rise here; a vocabulary is ordered by falling count")
            else:
                line_of[word] = number
                entries.append((word, int(count)))
        if not entries and not problems:
            problems.append(f"{name}: holds no `word count` lines; it is no vocabulary")
        if problems:
            raise UserError(first_problems(problems, name))
        return cls(entries)

    def to_text(self) -> str:
        """The vocabulary as fastBPE writes it: `word count` lines, without the special words."""
        entries = itertools.islice(zip(self.words, self.counts, strict=True), len(SPECIALS), None)
        return "".join(f"{word} {count}\n" for word, count in entries)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write `to_text` to `path`, atomically."""
        with atomic_write(path) as file:
            file.write(self.to_text().encode())


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a codes or vocabulary file.

    Raises:
        UserError: It cannot be read, is not UTF-8, or begins with a byte order mark.
    """
    try:
        text = Path(path).read_bytes().decode()  # no universal newlines: a carriage return is part of a word
    except OSError as error:
        raise UserError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{os.fspath(path)}: not UTF-8 at byte {error.start}") from error
    if text.startswith("\ufeff"):
        raise UserError(f"{os.fspath(path)}: begins with a byte order mark, which its first word would hold: remove it")
    return text


def first_problems(problems: list[str], name: str) -> list[str]:
    """The first problems of a file, and how many more there are: a wrong file is wrong in every line."""
    more = len(problems) - _PROBLEMS_SHOWN
    return problems if more <= 0 else [*problems[:_PROBLEMS_SHOWN], f"{name}: and {more} problems more"]
