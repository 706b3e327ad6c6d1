"""BPE pieces as transformers' XLMTokenizer spells them, and back to fastBPE's spelling.

fastBPE marks a piece that goes on (`wor@@ d`), transformers one that ends a word (`wor d</w>`). Which piece a
word of fastBPE's vocabulary stands for is nearly always plain. `x@@` can be the piece `x` that goes on, or the
end of a word that is spelled `x@@`; both have one id in the vocabulary, so both spellings are written with that
id where the codes can make the second.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

from xlm_train.text.bpe import CONTINUED, END_OF_WORD, BpeCodes
from xlm_train.text.vocabulary import SPECIALS, Vocabulary


@dataclass(frozen=True)
class Pieces:
    """Pieces as transformers spells them.

    Attributes:
        ids: Piece -> id.
        ambiguous: Words of the vocabulary whose piece already stands for another word.
    """

    ids: dict[str, int]
    ambiguous: list[str]


def to_transformers(vocabulary: Vocabulary, codes: BpeCodes) -> Pieces:
    """Spell the vocabulary as vocab.json has it.

    Args:
        vocabulary: fastBPE's.
        codes: The merges, which tell the ends of words from pieces that go on where both look the same.

    Returns:
        Pieces and their ids.
    """
    word_ends = {left + right for left, right, _ in codes.merges if right.endswith(END_OF_WORD)}
    ids: dict[str, int] = {}
    ambiguous = []
    for number, word in enumerate(vocabulary.words):
        spellings = [word + END_OF_WORD]
        if number < len(SPECIALS):
            spellings = [word]
        elif word.endswith(CONTINUED) and word != CONTINUED:
            # the last one is what transformers decodes the id to
            spellings = [*(end for end in spellings if end in word_ends), word.removesuffix(CONTINUED)]
        for spelling in spellings:
            if ids.setdefault(spelling, number) != number:
                ambiguous.append(word)
    return Pieces(ids, ambiguous)


def from_transformers(ids: Mapping[str, int], n_words: int) -> list[str | None]:
    """Spell vocab.json as fastBPE's vocabulary.

    Args:
        ids: Piece -> id.
        n_words: Of the model.

    Returns:
        Words by id; None where no piece has the id (two words had one spelling).

    Raises:
        ValueError: If a piece has an id that the model does not have.
    """
    words: list[str | None] = [None] * n_words
    for piece, number in ids.items():
        if not 0 <= number < n_words:
            raise ValueError(f"{piece!r} has the id {number}, the model has {n_words} words")
        if number < len(SPECIALS):
            words[number] = piece
        elif piece.endswith(END_OF_WORD):
            words[number] = piece.removesuffix(END_OF_WORD)
        else:
            words[number] = piece + CONTINUED
    return words


def unreadable_merges(codes: BpeCodes) -> list[str]:
    """List the merges that transformers does not read back as they are: it splits lines at any white space."""
    lines = io.StringIO(codes.to_text(), newline=None).read().split("\n")[:-1]
    read = {tuple(line.split()[:2]) for line in lines}
    return [f"{left} {right}" for left, right, _ in codes.merges if (left, right) not in read]
