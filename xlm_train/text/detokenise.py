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
_MARKS = ('"', "'")  # what they are depends on the words behind them
_CONTRACTED = re.compile(r"'(s|t|re|ve|ll|d|m)", re.IGNORECASE)  # as Moses parts English
_PUNCTUATION = re.compile(r"\W+")
_BOTH = re.compile(r"[/\\@_|^~]")
_SHORT = {"s", "n", "ne", "nen", "nem", "ner", "nes", "m", "ns", "rein", "raus", "rauf", "runter", "rum", "t"}


def detokenise(words: Sequence[str]) -> str:
    """Join words to running text.

    Args:
        words: Of one sentence, as Moses' tokeniser parts them, without its escapes.
    """
    return "".join(spaced(words))


def spaced(words: Sequence[str], whole: bool = True) -> list[str]:
    """Put before each word the space that belongs there, if one does.

    Args:
        words: As of `detokenise`.
        whole: They are the whole sentence. Otherwise others may follow: the result ends where it could depend on them.
    """
    text: list[str] = []
    space = False  # whether one may stand before the next word
    open_marks: set[str] = set()
    for number, word in enumerate(words):
        before = words[number - 1] if number else ""
        after = words[number + 1] if number + 1 < len(words) else ""
        left = right = False  # whether the word is joined to what stands there
        rest = words[number + 1 :]
        if not whole and word in _MARKS and _may_change(word, before, rest, open_marks):
            break
        if word == '"' or (word == "'" and not _is_apostrophe(before, after, rest, open_marks)):
            left = word in open_marks or (number > 0 and _closes(word, before, rest))
            right = not left
            open_marks ^= {word}
        elif word[0] == "'" and len(word) > 1:
            left = bool(_CONTRACTED.fullmatch(word)) and before[-1:].isalnum()
            if not left and "'" in rest:
                open_marks.add("'")
        elif word == "'":
            left, right = True, _is_clitic(before, after)
        elif _BOTH.fullmatch(word):
            left = right = True
        else:
            left, right = bool(_TO_THE_LEFT.fullmatch(word)), bool(_TO_THE_RIGHT.fullmatch(word))
        text.append(f" {word}" if space and not left else word)
        space = not right
    return text


def _closes(mark: str, before: str, rest: Sequence[str]) -> bool:
    """Tell whether a quotation mark closes that nothing has opened: at the end, and the last one also in `...," she said`."""
    return all(_PUNCTUATION.fullmatch(one) for one in rest) or (
        mark not in rest and before in (",", ".", "!", "?") and rest[0][:1].islower()
    )


def _may_change(mark: str, before: str, rest: Sequence[str], open_marks: set[str]) -> bool:
    """Tell whether what a mark is may depend on words that follow those of `rest`."""
    if mark == "'" and before[-1:].isalpha():  # an apostrophe, perhaps
        if rest and _is_clitic(before, rest[0]):
            return False
        if not rest or not {mark} & {*open_marks, *rest}:
            return True
    return bool(before) and mark not in open_marks and _closes(mark, before, rest)


def _is_clitic(before: str, after: str) -> bool:
    """Tell whether an apostrophe between two words leaves out letters: gibt ' s, O ' Neill."""
    return after.lower() in _SHORT or (len(before) == 1 and after[:1].isupper())


def _is_apostrophe(before: str, after: str, rest: Sequence[str], open_marks: set[str]) -> bool:
    """Tell whether a lone `'` belongs to the word before it, rather than being a quotation mark."""
    if not before[-1:].isalpha():
        return False
    return _is_clitic(before, after) or ("'" not in open_marks and "'" not in rest)
