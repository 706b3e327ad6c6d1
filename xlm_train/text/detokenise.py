"""Words back to running text: the spaces that tokenising put in are taken out again, for German and English.

sacremoses' detokeniser leaves "gibt 's" apart, reads every apostrophe of German as a quotation mark, and parts what a
backslash or slash joins. What tokenising has lost (whether a quotation mark opened or closed, a space before a
full stop) can only be guessed; `tests/xlm_train/text/test_detokenise.py` bounds how often lines come back exactly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

DETOKENISED = ("de", "en")  # languages that these rules are for
_TO_THE_LEFT = re.compile(r"[,;:!?)\]}%‹.]")  # no space before
_TO_THE_RIGHT = re.compile(r"[(\[{$£¿¡#›]+")  # none after
_CONTRACTED = re.compile(r"'(s|t|re|ve|ll|d|m)", re.IGNORECASE)  # as Moses parts English
_PUNCTUATION = re.compile(r"\W+")
_BOTH = re.compile(r"[/\\@_|^~]")
_SHORT = {"s", "n", "ne", "nen", "nem", "ner", "nes", "m", "ns", "rein", "raus", "rauf", "runter", "rum", "t"}


def detokenise(words: Sequence[str]) -> str:
    """Join words to running text.

    Args:
        words: Of one sentence, as Moses' tokeniser parts them, without its escapes.
    """
    text: list[str] = []
    space = False  # whether one may stand before the next word
    open_marks: set[str] = set()
    for number, word in enumerate(words):
        before = words[number - 1] if number else ""
        after = words[number + 1] if number + 1 < len(words) else ""
        left = right = False  # whether the word is joined to what stands there
        rest = words[number + 1 :]
        if word == '"' or (word == "'" and not _is_apostrophe(before, after, rest, open_marks)):
            # a mark that nothing has opened closes at the end of a sentence, and the last one also in `...," she said`
            closes = all(_PUNCTUATION.fullmatch(one) for one in rest) or (
                word not in rest and before in (",", ".", "!", "?") and after[:1].islower()
            )
            left = word in open_marks or (number > 0 and closes)
            right = not left
            open_marks ^= {word}
        elif word[0] == "'" and len(word) > 1:
            left = bool(_CONTRACTED.fullmatch(word)) and before[-1:].isalnum()
            if not left and "'" in rest:
                open_marks.add("'")
        elif word == "'":
            left, right = True, after.lower() in _SHORT or (len(before) == 1 and after[:1].isupper())
        elif _BOTH.fullmatch(word):
            left = right = True
        else:
            left, right = bool(_TO_THE_LEFT.fullmatch(word)), bool(_TO_THE_RIGHT.fullmatch(word))
        text.append(f" {word}" if space and not left else word)
        space = not right
    return "".join(text)


def _is_apostrophe(before: str, after: str, rest: Sequence[str], open_marks: set[str]) -> bool:
    """Tell whether a lone `'` belongs to the word before it, rather than being a quotation mark."""
    if not before[-1:].isalpha():
        return False
    if after.lower() in _SHORT or (len(before) == 1 and after[:1].isupper()):
        return True
    return "'" not in open_marks and "'" not in rest
