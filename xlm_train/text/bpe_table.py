"""The pieces of every word met so far, so that a word is cut up once however often it comes.

Words are numbered by row and pieces by number, both as they come up; the different words of a text become arrays of
pieces, and no Python code runs for a word that is known.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xlm_train.text.bpe_codes import END_OF_WORD, BpeCodes, as_piece
from xlm_train.text.numbered import ranges
from xlm_train.text.vocabulary import LINE_END

MAX_WORDS = 1 << 19
"""Words a table may hold when a text comes in, about 200 bytes each; where it holds more, it is emptied first. So it can
outgrow this by the different words of one text."""

MANY = 1000  # words of a table from which on `ManyWords` is worth its start (0.1 s); words it is given at once


class ManyWords:
    """Cuts up many new words at once with Hugging Face's tokenizers: some 8 times faster than word by word.

    Its merging is fastBPE's for ordinary words and for codes in an order that learning can give (`serves`). It tells
    which words are not ordinary.
    """

    def __init__(self, codes: BpeCodes) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers

        symbols = dict.fromkeys(symbol for left, right, _ in codes.merges for symbol in (left, right, left + right))
        self.pieces = [*map(as_piece, symbols), LINE_END]  # the last stands for a character that no merge knows
        self._unknown = len(symbols)
        ids = {symbol: i for i, symbol in enumerate([*symbols, LINE_END])}
        merges = [(left, right) for left, right, _ in codes.merges]
        model = models.BPE(ids, merges, cache_capacity=0, unk_token=LINE_END, end_of_word_suffix=END_OF_WORD)
        self._tokenizer = Tokenizer(model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")

    @staticmethod
    def serves(codes: BpeCodes) -> bool:
        """Whether each merge joins what is there before it (characters, results of earlier merges) to something new.

        Then no merge makes an earlier one possible, and it does not matter whether all places of a merge are done
        first (fastBPE) or each place for itself (tokenizers).
        """
        made: set[str] = set()
        for left, right, _ in codes.merges:
            if not all(_is_character(part) or part in made for part in (left, right)):
                return False
            if _is_character(left + right) or left + right in made:
                return False
            made.add(left + right)
        return True

    def encode(self, words: list[str]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64], list[int]]:
        """Cut many words up.

        Returns:
            Indices into `pieces` of all words in a row; how many each word has; and which words are to be done one by
            one: those with a character that no merge knows, with a NUL (which fastBPE treats in its own way) or with a
            literal `</w>` (which would pass for the end of a word here).
        """
        text = " ".join(words)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        found, of_word = np.array(encoding.ids, np.intp), np.array(encoding.word_ids, np.intp)
        lengths = np.bincount(of_word, minlength=len(words))
        odd = set(of_word[found == self._unknown].tolist())
        if "\0" in text or END_OF_WORD in text:
            odd.update(k for k, word in enumerate(words) if "\0" in word or END_OF_WORD in word)
        return found, lengths, sorted(odd)


def _is_character(symbol: str) -> bool:
    return len(symbol.removesuffix(END_OF_WORD)) <= 1


class WordTable(dict[str, int]):
    """word -> row. Row r has the pieces `flat[first[r] : first[r] + length[r]]`. The line end is piece 0.

    Args:
        encode: Gives the pieces of one word, with spaces between them.
        many: Gives what cuts up many words at once, or None where it cannot serve.
    """

    def __init__(self, encode: Callable[[str], str], many: Callable[[], ManyWords | None]) -> None:
        self._encode = encode
        self._many = many
        self._clear()

    def __missing__(self, word: str) -> int:
        row = self[word] = len(self)
        self._new.append(word)
        return row

    def pieces_of(self, words: Sequence[str]) -> tuple[npt.NDArray[np.intc], npt.NDArray[np.int64]]:
        """The numbers of the pieces of words, one word after the other, and how many each has: none for ""."""
        if len(self) > MAX_WORDS:
            self._clear()  # forgetting the oldest gains nothing: words that come often are back at once
        rows = np.fromiter(map(self.__getitem__, words), np.intp, count=len(words))
        if self._new:
            self._add_new()
        lengths = np.frombuffer(self._length, np.int64)
        firsts = np.frombuffer(self._first, np.int64)
        return np.frombuffer(self._flat, np.intc)[ranges(firsts[rows], lengths[rows])], lengths[rows]

    def pieces(self, numbers: npt.NDArray[np.integer[Any]]) -> list[str]:
        """Pieces by their numbers."""
        return [self._pieces[number] for number in numbers.tolist()]

    def _clear(self) -> None:
        self.clear()
        self.update({"": 0, LINE_END: 1})
        self._new: list[str] = []  # words that have a row, but not yet pieces
        self._first, self._length, self._flat = array("q", [0, 0]), array("q", [0, 1]), array("i", [0])
        self._pieces = [LINE_END]
        self._numbers = {LINE_END: 0}
        self._many_numbers: npt.NDArray[np.intc] | None = None

    def _add_new(self) -> None:
        """Give the new words their pieces."""
        many = self._many() if len(self) >= MANY else None
        for start in range(0, len(self._new), MANY):
            words = self._new[start : start + MANY]
            if many is None:
                numbers, lengths = np.empty(0, np.intc), np.zeros(len(words), np.int64)
                one_by_one: Sequence[int] = range(len(words))
            else:
                found, lengths, one_by_one = many.encode(words)
                numbers = self._numbers_of(many)[found]
            row = len(self._first)
            self._first.frombytes((len(self._flat) + np.cumsum(lengths) - lengths).tobytes())
            self._length.frombytes(lengths.tobytes())
            self._flat.frombytes(numbers.tobytes())
            for k in one_by_one:
                pieces = [self._number_of(piece) for piece in self._encode(words[k]).split(" ")]
                self._first[row + k], self._length[row + k] = len(self._flat), len(pieces)
                self._flat.extend(pieces)
        self._new = []

    def _number_of(self, piece: str) -> int:
        number = self._numbers.setdefault(piece, len(self._pieces))
        if number == len(self._pieces):
            self._pieces.append(piece)
        return number

    def _numbers_of(self, many: ManyWords) -> npt.NDArray[np.intc]:
        if self._many_numbers is None:
            self._many_numbers = np.array([self._number_of(piece) for piece in many.pieces], np.intc)
        return self._many_numbers
