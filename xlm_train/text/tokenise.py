"""Raw lines to tokens as the original has them: four Moses steps, then lower-casing and accent removal if wanted.

The four steps are the perl scripts replace-unicode-punctuation, normalize-punctuation, remove-non-printing-char and
tokenizer -no-escape; docs/tokenisation.md says what each does and what was checked against perl.

They work on a block: many lines as one string, so that one C-level operation applies a rule to all of them. A block is
a newline, then every line followed by a newline. Each line thus lies between two newlines, where perl sees the start
and the end of its string. A rule that cannot match a newline gives what it gives in perl line by line, since neither a
match nor the search that follows it crosses one.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import numpy.typing as npt

from xlm_train.text import numbered
from xlm_train.text.moses_normalise import normalise_punctuation, remove_non_printing, replace_unicode_punctuation
from xlm_train.text.moses_tokenise import tokenise
from xlm_train.text.numbered import NumberedText, Numbers, groups, ranges

# Goes into the corpus manifest. To be raised whenever any line can come out differently.
RULES_VERSION = "1"

# Characters of one block: small enough for its copies to stay in a core's cache, large enough for the cost of
# some hundred calls a block (0.1 ms) not to count.
BLOCK_CHARACTERS = 1 << 16

_PRINTABLE_ASCII = bytes(range(0x20, 0x7F)) + b"\n"

# No rule looks across a space that has one of the first characters before it and one of the second behind it: what is
# on one side does not depend on what is on the other, nor on whether the line ends there.
_BEFORE_BORDER, _BEHIND_BORDER = (
    np.isin(np.arange(256), list(f"{string.ascii_letters}{string.digits}{marks}".encode())) for marks in (",;:!?-", "")
)


@dataclass(frozen=True)
class Tokeniser:
    """The text chain of one language.

    What becomes of a line depends on this line alone: neither on the lines given with it nor on those before.
    An instance holds its settings only, so it is free to make and to pickle.

    Args:
        language: A code such as "en" or "de". It chooses the rules for apostrophes, quotation marks, numbers and
            abbreviations; a code that Moses does not know gets what Moses gives it, the English abbreviations.
        lowercase: Lower-case the tokens.
        remove_accents: Remove accents from the tokens.
    """

    language: str
    _: KW_ONLY
    lowercase: bool = False
    remove_accents: bool = False

    def tokenise(self, lines: Sequence[str]) -> list[str]:
        """One line of space-separated tokens for each line.

        Args:
            lines: Without their newline.

        Raises:
            ValueError: A line contains a newline.
        """
        tokens: list[str] = []
        for group in groups(lines, BLOCK_CHARACTERS):
            *_, block = self._steps(join_lines(group)).values()
            tokens += split_lines(block)
        return tokens

    def number(self, lines: Sequence[str]) -> NumberedText:
        """The tokens of lines with each different word numbered: `NumberedText.of(self.tokenise(lines))`, but faster.

        Lines are cut into parts where no rule looks across, mostly single words, and each different part is tokenised
        once.

        Args:
            lines: Without their newline.

        Raises:
            ValueError: A line contains a newline.
        """
        known = Numbers()
        found: list[tuple[npt.NDArray[np.intc], npt.NDArray[np.bool_]]] = []
        for group in groups(lines, numbered.BLOCK_CHARACTERS):
            parts, is_last = _parts(group)
            found.append((known.of(parts), is_last))
        tokens = NumberedText.of(self.tokenise(list(known)))
        lengths = tokens.lengths()  # with a line's end, which only the last part of a line takes
        firsts = np.cumsum(lengths) - lengths
        numbers = [tokens.numbers[ranges(firsts[part], lengths[part] - ~is_last)] for part, is_last in found]
        return NumberedText(tokens.words, np.concatenate([tokens.numbers[:0], *numbers]))

    def stages(self, lines: Sequence[str]) -> dict[str, list[str]]:
        """The lines after each step: "replace", "normalise", "nonprinting", "tokens" and, if it is on, "lower"."""
        return {step: split_lines(block) for step, block in self._steps(join_lines(lines)).items()}

    def _steps(self, block: str) -> dict[str, str]:
        """The block after each step, in order."""
        unusual = unusual_characters(block)
        steps = {"replace": replace_unicode_punctuation(block, unusual)}
        steps["normalise"] = normalise_punctuation(steps["replace"], self.language, unusual)
        steps["nonprinting"] = remove_non_printing(steps["normalise"], unusual)
        steps["tokens"] = tokenise(steps["nonprinting"], self.language, unusual)
        if self.lowercase or self.remove_accents:
            steps["lower"] = self.lower(steps["tokens"])
        return steps

    def lower(self, block: str) -> str:
        """Lower-case lines and remove accents, whichever is on.

        As the original's lowercase_and_remove_accent.py, which strips the ends of lines too. Accents go as combining
        marks (category Mn) after canonical decomposition; what else it decomposes, such as Hangul, stays decomposed.
        """
        block = "\n".join([line.rstrip() for line in block.split("\n")])
        if self.lowercase:
            block = block.lower()
        if self.remove_accents:
            block = unicodedata.normalize("NFD", block)
            for character in unusual_characters(block):
                if unicodedata.category(character) == "Mn":
                    block = block.replace(character, "")
        return block


def _parts(lines: Sequence[str]) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """Lines cut at all borders.

    Returns:
        The parts of all lines; (parts,) whether it is the last of its line.
    """
    block = join_lines(lines)
    text = np.frombuffer(bytearray(block.encode("utf-8", "surrogatepass")), np.uint8)
    is_end = text == ord("\n")
    spaces = np.flatnonzero(text == ord(" "))
    text[spaces[_BEFORE_BORDER[text[spaces - 1]] & _BEHIND_BORDER[text[spaces + 1]]]] = ord("\n")
    is_last = is_end[np.flatnonzero(text == ord("\n"))]
    return split_lines(text.tobytes().decode("utf-8", "surrogatepass")), is_last[1:]


def join_lines(lines: Sequence[str]) -> str:
    """The block of these lines.

    Raises:
        ValueError: A line contains a newline.
    """
    block = "\n".join(["", *lines, ""])
    if block.count("\n") != len(lines) + 1:
        raise ValueError("a line to tokenise contains a newline")
    return block


def split_lines(block: str) -> list[str]:
    """The inverse of `join_lines`."""
    return block.split("\n")[1:-1]


def unusual_characters(block: str) -> frozenset[str]:
    """The characters of a block outside printable ASCII, newlines apart.

    Rules about any of them ask this small set (some 20 in 64 KB of German) before they touch the text. Deleting
    the bytes of printable ASCII is four times faster than asking a regular expression for all others.
    """
    unusual = block.encode("utf-8", "surrogatepass").translate(None, _PRINTABLE_ASCII)
    return frozenset(unusual.decode("utf-8", "surrogatepass"))
