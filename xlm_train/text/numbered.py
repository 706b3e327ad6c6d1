"""Lines as numbers of their different words: words are parted once, and all that follows works on arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xlm_train.text.vocabulary import LINE_END, split_lines

BLOCK_CHARACTERS = 1 << 18  # of lines parted at once: what else is needed goes with it


@dataclass(frozen=True)
class NumberedText:
    """Lines of words.

    Args:
        words: The different ones in the order of first occurrence, `LINE_END` before all. The empty string stands between
            two spaces and for an empty line; it is no word.
        numbers: (words and lines,) which word, for all lines one after the other, every line ended by 0.
    """

    words: list[str]
    numbers: npt.NDArray[Any]

    @classmethod
    def of(cls, lines: Sequence[str]) -> NumberedText:
        """Number the words of lines.

        Raises:
            ValueError: A line holds a newline.
        """
        known = Numbers({LINE_END: 0})
        parts = [np.empty(0, np.intc)]
        for group in groups(lines, BLOCK_CHARACTERS):
            parts.append(known.of(split_lines(group)))
        return cls(list(known), np.concatenate(parts).astype(np.min_scalar_type(len(known))))

    def lines(self) -> list[str]:
        """The lines."""
        words = [self.words[number] for number in self.numbers.tolist()]
        return (
            " ".join(words).replace(f" {LINE_END} ", LINE_END).removesuffix(f" {LINE_END}").split(LINE_END)
            if words
            else []
        )

    def lengths(self) -> npt.NDArray[np.intp]:
        """(lines,) the numbers of each line, that of its end too."""
        return np.diff(np.flatnonzero(self.numbers == 0), prepend=-1)

    def take(self, chosen: npt.NDArray[np.bool_]) -> NumberedText:
        """The chosen ones of the lines."""
        if chosen.all():
            return self
        numbers = self.numbers[np.repeat(chosen, self.lengths())]
        first = np.full(len(self.words), len(numbers))
        first[numbers[::-1]] = np.arange(len(numbers))[::-1]
        order = np.argsort(first, kind="stable")[: np.count_nonzero(first < len(numbers))]
        order = np.concatenate(([0], order[order != 0]))
        new = np.zeros(len(self.words), self.numbers.dtype)
        new[order] = np.arange(len(order))
        return NumberedText([self.words[number] for number in order.tolist()], new[numbers])

    def counts(self, copies: npt.NDArray[np.int64] | None = None) -> dict[str, int]:
        """How often each word occurs, in the order of first occurrence. Counts of parts add up.

        Args:
            copies: (lines,) how often each line is there, one time or more; None: once.
        """
        weights = None if copies is None else np.repeat(copies, self.lengths())
        counts = dict(zip(self.words, np.bincount(self.numbers, weights).astype(np.int64).tolist(), strict=False))
        counts.pop(LINE_END, None)
        counts.pop("", None)
        return counts


class Numbers(dict[str, int]):
    """Different strings, numbered as they come up."""

    def __missing__(self, string: str) -> int:
        number = self[string] = len(self)
        return number

    def of(self, strings: Sequence[str]) -> npt.NDArray[np.intc]:
        """The number of each."""
        return np.fromiter(map(self.__getitem__, strings), np.intc, len(strings))


def groups(lines: Sequence[str], characters: int) -> Iterator[Sequence[str]]:
    """Consecutive groups of lines, each of so many characters or one line above it."""
    first = held = 0
    for i, line in enumerate(lines, start=1):
        held += len(line)
        if held >= characters:
            yield lines[first:i]
            first, held = i, 0
    if first < len(lines):
        yield lines[first:]


def ranges(firsts: npt.NDArray[np.integer[Any]], lengths: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """first, first + 1, ..., first + length - 1 for each of several."""
    found = np.repeat(firsts - (np.cumsum(lengths) - lengths), lengths)
    found += np.arange(len(found))
    return found
