"""Lines as numbers of their different words: words are parted once, and all that follows works on arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xlm_train.text.vocabulary import LINE_END, split_lines

_BLOCK_CHARACTERS = 1 << 20  # of lines parted at once: what else is needed goes with it


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
        known = _Numbers({LINE_END: 0})
        parts = [np.empty(0, np.intc)]
        for block in _blocks(lines):
            words = split_lines(block)
            parts.append(np.fromiter(map(known.__getitem__, words), np.intc, len(words)))
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


class _Numbers(dict[str, int]):
    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


def _blocks(lines: Sequence[str]) -> Iterator[Sequence[str]]:
    """The same lines in consecutive blocks of about _BLOCK_CHARACTERS."""
    start = held = 0
    for number, line in enumerate(lines):
        held += len(line)
        if held >= _BLOCK_CHARACTERS:
            yield lines[start : number + 1]
            start, held = number + 1, 0
    if start < len(lines):
        yield lines[start:]
