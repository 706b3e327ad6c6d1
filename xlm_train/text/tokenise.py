"""Raw lines to tokens as the original has them: four Moses steps, then lower-casing and accent removal if wanted.

The four steps are the perl scripts replace-unicode-punctuation, normalize-punctuation, remove-non-printing-char and
tokenizer -no-escape; docs/tokenisation.md says what each does and what was checked against perl.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from xlm_train.text.moses_block import cut, join_lines, split_lines, unusual_characters
from xlm_train.text.moses_normalise import normalise_punctuation, remove_non_printing, replace_unicode_punctuation
from xlm_train.text.moses_tokenise import tokenise

# Goes into the corpus manifest. To be raised whenever any line can come out differently.
RULES_VERSION = "1"


@dataclass(frozen=True)
class Tokeniser:
    """The text chain of one language.

    What becomes of a line depends on this line alone: neither on the lines given with it nor on those before.
    An instance holds its settings only, so it is free to make and to pickle.

    `language` is a code such as "en" or "de" and chooses the rules for apostrophes, quotation marks, numbers and
    abbreviations; a code that Moses does not know gets what Moses gives it, the English abbreviations.
    """

    language: str
    _: KW_ONLY
    lowercase: bool = False
    remove_accents: bool = False

    def tokenise(self, lines: Sequence[str]) -> list[str]:
        """One line of space-separated tokens for each line. The lines come without their newline.

        Raises ValueError if a line contains a newline.
        """
        tokens: list[str] = []
        for group in cut(lines):
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
