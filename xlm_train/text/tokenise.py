"""Raw lines to tokens as the original has them: four Moses steps, then lower-casing and accent removal if wanted.

The four steps are the perl scripts replace-unicode-punctuation, normalize-punctuation, remove-non-printing-char and
tokenizer -no-escape; docs/tokenisation.md says what each does and what was checked against perl.

They work on a block: many lines as one string, so that one C-level operation applies a rule to all of them. A block is
a newline, then every line followed by a newline. Each line thus lies between two newlines, where perl sees the start
and the end of its string. A rule that cannot match a newline gives what it gives in perl line by line, since neither a
match nor the search that follows it crosses one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

from xlm_train.text.moses_normalise import normalise_punctuation, remove_non_printing, replace_unicode_punctuation
from xlm_train.text.moses_tokenise import tokenise

# Goes into the corpus manifest. To be raised whenever any line can come out differently.
RULES_VERSION = "1"

# Characters of one block: small enough for its copies to stay in a core's cache, large enough for the cost of
# some hundred calls a block (0.1 ms) not to count.
_BLOCK_CHARACTERS = 1 << 16

_PRINTABLE_ASCII = bytes(range(0x20, 0x7F)) + b"\n"


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
        for group in groups(lines):
            *_, block = self._steps(join_lines(group)).values()
            tokens += split_lines(block)
        return tokens

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
            steps["lower"] = self._lower(steps["tokens"])
        return steps

    def _lower(self, block: str) -> str:
        """The original's lowercase_and_remove_accent.py, which strips the ends of lines too.

        Accents go as combining marks (category Mn) after canonical decomposition; what else it decomposes, such as
        Hangul, stays decomposed.
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


def groups(lines: Sequence[str]) -> Iterator[Sequence[str]]:
    """Consecutive groups of lines, each of a block's size or one line above it."""
    first = characters = 0
    for i, line in enumerate(lines, start=1):
        characters += len(line)
        if characters >= _BLOCK_CHARACTERS:
            yield lines[first:i]
            first, characters = i, 0
    if first < len(lines):
        yield lines[first:]


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
