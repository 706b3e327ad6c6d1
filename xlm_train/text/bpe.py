"""Byte-pair encoding, applied: the output of fastBPE's `applybpe`, byte for byte (docs/bpe.md).

A word starts as its characters, the last with `</w>` behind it; merges are made in the order they were
learned; pieces that do not end the word are written with `@@` behind them.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise
from sys import intern
from typing import Any

import numpy as np
import numpy.typing as npt

from xlm_train.text.bpe_codes import CONTINUED, END_OF_WORD, BpeCodes
from xlm_train.text.bpe_table import ManyWords, WordTable
from xlm_train.text.numbered import NumberedText, ranges
from xlm_train.text.vocabulary import EOS, LINE_END, SPECIALS, UNK, Vocabulary

_NUMBERS_AT_ONCE = 1 << 18  # of a text, when its words become pieces: what is needed for that stays in the cache


@dataclass
class EncodedLines:
    """Lines as ids, every line ended by eos.

    Args:
        ids: (tokens,) all lines one after the other, in the vocabulary's dtype.
        starts: (lines,) where each line begins in `ids`.
        words: Words of the lines, before they were cut into pieces.
        unknown: Pieces that became `<unk>`, and how often each.
        dropped: Special words spelled in the text, which get no id, and how often each.
    """

    ids: npt.NDArray[Any]
    starts: npt.NDArray[np.int64]
    words: int
    unknown: Counter[str]
    dropped: Counter[str]


@dataclass
class CutText:
    """Lines as pieces, before any vocabulary gives them ids.

    Args:
        pieces: The different pieces; the first is the line end.
        numbers: (pieces of the text,) which piece, for all lines one after the other, every line ended by 0.
        words: Words of the lines, before they were cut into pieces.
    """

    pieces: list[str]
    numbers: npt.NDArray[Any]
    words: int

    def counts(self) -> Counter[str]:
        """How often each piece occurs: what `Vocabulary.from_counts` asks for. Counts of parts add up."""
        return self._count(np.arange(1, len(self.pieces)))

    def encode(self, vocabulary: Vocabulary) -> EncodedLines:
        """The ids of the pieces, by the original's rules.

        A piece that `vocabulary` lacks becomes `<unk>`, and so does one that spells `<unk>`; one that spells another
        special word is dropped; eos ends every line, an empty one too. Pieces of white space other than the ASCII space
        (all that is left of a line of nothing else) are dropped: the original splits lines of pieces at any white space.
        """
        known = np.array([EOS, *vocabulary.indices(self.pieces[1:])], np.int64)
        blank = np.array([False, *[piece.removesuffix(CONTINUED).isspace() for piece in self.pieces[1:]]])
        special = (known < len(SPECIALS)) & (known != UNK) & ~blank
        special[0] = False
        line_ends = np.flatnonzero(self.numbers == 0) + 1
        ids = known.astype(vocabulary.dtype)[self.numbers]
        absent = special | blank
        if absent.any():
            gone = absent[self.numbers]
            line_ends -= np.cumsum(gone)[line_ends - 1]
            ids = ids[~gone]
        starts = np.zeros(len(line_ends), np.int64)
        starts[1:] = line_ends[:-1]
        unknown, dropped = self._count(np.flatnonzero((known == UNK) & ~blank)), self._count(np.flatnonzero(special))
        return EncodedLines(ids, starts, self.words, unknown, dropped)

    @functools.cached_property
    def _times(self) -> npt.NDArray[np.int64]:
        return np.bincount(self.numbers, minlength=len(self.pieces))

    def _count(self, numbers: npt.NDArray[np.int64]) -> Counter[str]:
        times = self._times[numbers].tolist()
        return Counter({self.pieces[k]: n for k, n in zip(numbers.tolist(), times, strict=True)})


class BpeEncoder:
    """Cuts words into the pieces that fastBPE's `applybpe` cuts them into.

    Not to be shared between threads: its table of known words grows while it works.

    Args:
        codes: The merges.
        vocabulary: fastBPE's vocabulary limit, words as they stand in its file (continued pieces with `@@`): a piece
            that it lacks is cut again where its last merge joined it, and so on down to characters. None: no limit.
    """

    def __init__(self, codes: BpeCodes, vocabulary: Collection[str] | None = None) -> None:
        self.codes = codes
        self.vocabulary = None if vocabulary is None else frozenset(vocabulary)
        # Interned, so that looking a pair up compares addresses and not characters.
        self._left = [intern(left) for left, _, _ in codes.merges]
        self._right = [intern(right) for _, right, _ in codes.merges]
        self._merged = [intern(left + right) for left, right, _ in codes.merges]
        self._rank = {pair: i for i, pair in enumerate(zip(self._left, self._right, strict=True))}
        self._parts = dict(zip(self._merged, self._rank, strict=True))
        self._table = WordTable(self.encode_text, lambda: self._many_words)

    def __reduce__(self) -> tuple[type[BpeEncoder], tuple[BpeCodes, frozenset[str] | None]]:
        return BpeEncoder, (self.codes, self.vocabulary)  # to a worker process, without the table

    def encode_text(self, word: str) -> str:
        """The pieces of one word as they are written, a space between two."""
        symbols = self.merge(word)
        if self.vocabulary is not None:
            symbols = self._limited(symbols, self.vocabulary)
        return f"{CONTINUED} ".join(symbols)[: -len(END_OF_WORD)]

    def encode_ids(self, lines: Sequence[str], vocabulary: Vocabulary) -> EncodedLines:
        """Lines of words as ids."""
        return self.cut(NumberedText.of(lines)).encode(vocabulary)

    def cut(self, text: NumberedText) -> CutText:
        """Text cut into pieces. The table of known words lasts from call to call."""
        of_words, lengths = self._table.pieces_of(text.words)
        # The table's numbers are its own, so those that occur get numbers of this text; the line end, 0, keeps its.
        seen = np.flatnonzero(np.bincount(of_words))
        own = np.zeros(seen[-1] + 1, np.min_scalar_type(len(seen)))
        own[seen] = np.arange(len(seen))
        of_words, firsts = own[of_words], np.cumsum(lengths) - lengths
        parts: list[npt.NDArray[Any]] = [np.empty(0, own.dtype)]
        for start in range(0, len(text.numbers), _NUMBERS_AT_ONCE):
            numbers = text.numbers[start : start + _NUMBERS_AT_ONCE]
            parts.append(of_words[ranges(firsts[numbers], lengths[numbers])])
        blank = np.array([word in ("", LINE_END) for word in text.words])
        words = len(text.numbers) - int(np.bincount(text.numbers, minlength=len(blank))[blank].sum())
        return CutText(self._table.pieces(seen), np.concatenate(parts), words)

    def merge(self, word: str) -> list[str]:
        """The symbols of `word` after all merges, `</w>` on the last: the pieces before a vocabulary limit.

        As fastBPE: of all merges that apply, the one learned first is made wherever its pair stands, from
        left to right; then the next is looked for. A heap of (rank, position) does it in n log n.
        """
        symbols = _characters(word)
        size = len(symbols)
        symbols[-1] += END_OF_WORD
        rank, left, right = self._rank.get, self._left, self._right
        heap = [r << 32 | i for i, pair in enumerate(pairwise(symbols)) if (r := rank(pair)) is not None]
        if not heap:
            return symbols
        heapify(heap)
        following = list(range(1, size + 1))
        previous = list(range(-1, size - 1))
        symbols.append("")  # behind the last one; a symbol joined to the one before also leaves ""
        postponed: list[int] = []  # pairs with an earlier merge than the one at work, which ends first
        while heap:
            entry = heappop(heap)
            r, i = entry >> 32, entry & 0xFFFF_FFFF
            j = following[i]
            if symbols[i] == left[r] and symbols[j] == right[r]:  # else one of the two has been joined since
                symbols[i] = merged = self._merged[r]
                symbols[j] = ""
                j = following[i] = following[j]
                if j < size:
                    previous[j] = i
                    if (q := rank((merged, symbols[j]))) is not None:
                        heappush(heap if q > r else postponed, q << 32 | i)
                if i:
                    i = previous[i]
                    if (q := rank((symbols[i], merged))) is not None:
                        heappush(heap if q > r else postponed, q << 32 | i)
            if postponed and (not heap or heap[0] >> 32 != r):
                for entry in postponed:
                    heappush(heap, entry)
                postponed.clear()
        return [symbol for symbol in symbols if symbol]

    @functools.cached_property
    def _many_words(self) -> ManyWords | None:
        """The fast way for many new words, where these codes and the lack of a limit allow it."""
        return ManyWords(self.codes) if self.vocabulary is None and ManyWords.serves(self.codes) else None

    def _limited(self, symbols: list[str], vocabulary: frozenset[str]) -> list[str]:
        """Symbols with every merge undone whose result the vocabulary lacks."""
        limited: list[str] = []
        stack = [(symbol, False) for symbol in reversed(symbols)]
        stack[0] = (symbols[-1], True)
        while stack:
            symbol, final = stack.pop()
            written = symbol.removesuffix(END_OF_WORD) if final else symbol + CONTINUED
            if written in vocabulary or (parts := self._parts.get(symbol)) is None:
                limited.append(symbol)
            else:
                stack += (parts[1], final), (parts[0], False)
        return limited


def decode(text: str) -> str:
    """A line of pieces as the line of words it was made from; of a piece that the text breaks off after, what is there.

    Not exact for words that themselves end in `@@`: in fastBPE's format they read as pieces to be continued.
    """
    return text.replace(f"{CONTINUED} ", "").removesuffix(CONTINUED)


def decode_ids(ids: Iterable[int], vocabulary: Vocabulary) -> str:
    """Ids as a line of words. Special words are left out, but for `<unk>`, which stands for something."""
    return decode(" ".join(vocabulary.words[i] for i in ids if i == UNK or i >= len(SPECIALS)))


def _characters(word: str) -> list[str]:
    """The symbols a word starts as. fastBPE stops at a NUL: it and the rest stick to the character before."""
    if "\0" not in word:
        return list(word)
    head = max(word.index("\0") - 1, 0)
    return [*word[:head], word[head:]]
