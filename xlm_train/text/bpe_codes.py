"""The merges of a byte-pair encoding, and the words it may be limited to, in fastBPE's files."""

from __future__ import annotations

import os
from collections.abc import Iterable

from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import atomic_write
from xlm_train.text.vocabulary import first_problems, read_text

END_OF_WORD = "</w>"
CONTINUED = "@@"


def as_piece(symbol: str) -> str:
    """A symbol of the merges as it is written in text and vocabularies: without `</w>`, or with `@@`."""
    return symbol.removesuffix(END_OF_WORD) if symbol.endswith(END_OF_WORD) else symbol + CONTINUED


class BpeCodes:
    """The merges of a byte-pair encoding in the order they were learned.

    The file is fastBPE's own, one `left right count` a line. Applying it uses the order, not the counts.

    Args:
        merges: (left, right, count) each.
    """

    def __init__(self, merges: Iterable[tuple[str, str, int]]) -> None:
        self.merges = list(merges)

    def __len__(self) -> int:
        return len(self.merges)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> BpeCodes:
        """Read a codes file.

        Raises:
            UserError: The file cannot be read or is no codes file; names the file and the line.
        """
        return cls.from_text(read_text(path), name=os.fspath(path))

    @classmethod
    def from_text(cls, text: str, name: str = "codes") -> BpeCodes:
        """Read the text of a codes file.

        Args:
            text: Lines of three fields, separated by the ASCII space alone.
            name: Of the file, for messages.

        Raises:
            UserError: A line has not three fields, its count is not a number, a merge comes twice, or there is none.
        """
        merges: list[tuple[str, str, int]] = []
        line_of: dict[tuple[str, str], int] = {}
        problems: list[str] = []
        for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
            fields = [field for field in line.split(" ") if field]
            if len(fields) != 3 or not fields[2].strip().isdecimal():
                problems.append(f"{name}:{number}: not a `left right count` line of fastBPE: {line[:80]!r}")
            elif (first := line_of.setdefault((fields[0], fields[1]), number)) != number:
                problems.append(f"{name}:{number}: a merge that line {first} has already: {line[:80]!r}")
            else:
                merges.append((fields[0], fields[1], int(fields[2])))
        if problems:
            raise UserError(first_problems(problems, name))
        return cls(merges)

    def to_text(self) -> str:
        """The codes as fastBPE writes them."""
        return "".join(f"{left} {right} {count}\n" for left, right, count in self.merges)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write `to_text` to `path`, atomically."""
        with atomic_write(path) as file:
            file.write(self.to_text().encode())


def read_limit(path: str | os.PathLike[str]) -> frozenset[str]:
    """The words of a vocabulary file that `BpeEncoder` is to be limited to, read by fastBPE's rule (ASCII space only).

    Raises:
        UserError: A line has not two fields, or the file is empty (fastBPE takes an empty vocabulary for none, which
            would silently lift the limit); names the file and the line.
    """
    name = os.fspath(path)
    words: set[str] = set()
    problems: list[str] = []
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), start=1):
        fields = [field for field in line.split(" ") if field]
        if len(fields) == 2:
            words.add(fields[0])
        else:
            problems.append(f"{name}:{number}: not a `word count` line: {line[:80]!r}")
    if problems:
        raise UserError(first_problems(problems, name))
    return frozenset(words)
