r"""The three Moses steps before tokenisation, on blocks of lines (`xlm_train.text.tokenise`).

replace-unicode-punctuation.perl | normalize-punctuation.perl -l LANGUAGE | remove-non-printing-char.perl

The first two read bytes in perl, so that their ``\d`` and ``\s`` are ASCII's. No sequence of UTF-8 that they name
can begin inside another character, therefore the rules are the same on characters.

`unusual` is everywhere a set that holds every character of the block outside printable ASCII; characters that
are no longer there do no harm.
"""

from __future__ import annotations

import re
from collections.abc import Set

from xlm_train.text.moses_unicode import OTHER

NBSP = "\u00a0"

_SPACES = re.compile("  +")

# replace-unicode-punctuation: one character for one or more of ASCII. The two full stops, which also take the
# spaces after them, are apart.
_REPLACED = {
    "，": ",", "、": ",", "”": '"', "“": '"', "∶": ":", "：": ":", "？": "?", "《": '"', "》": '"', "）": ")",
    "！": "!", "（": "(", "；": ";", "」": '"', "「": '"', "～": "~", "’": "'", "…": "...", "━": "-", "〈": "<",
    "〉": ">", "【": "[", "】": "]", "％": "%", "０": "0", "１": "1", "２": "2", "３": "3", "４": "4", "５": "5",
    "６": "6", "７": "7", "８": "8", "９": "9",
}  # fmt: skip
_FULL_STOPS = frozenset("。．")
_FULL_STOP_AND_SPACES = re.compile("[。．] *")

# A search for a space and another character halts at every word. Beginning with the rarer one costs a quarter of
# it; what is before that one is then seen by a lookbehind.
_OPENING = re.compile(r"\((?<! \()")
_CLOSING = re.compile(r"\)(?! )")
_SPACE_AFTER_CLOSING = re.compile(r"\) (?=[.!:?;,])")
_SPACE_AFTER_OPENING = re.compile(r"\( ")
_SPACE_BEFORE = {mark: re.compile(rf"{re.escape(mark)}(?<= {re.escape(mark)})") for mark in ")%:;"}
_PERCENT_AFTER_NUMBER = re.compile("(?<=[0-9]) %")

# A quotation mark becomes the plain one; what `replace_unicode_punctuation` has replaced before cannot occur.
_QUOTES = {"„": '"', "–": "-", "—": " - ", "´": "'", "‘": "'", "‚": "'"}
# In this order: the mark with its no-break spaces before the mark alone.
_GUILLEMETS = [
    (NBSP + "«" + NBSP, ' "'), ("«" + NBSP, '"'), ("«", '"'),
    (NBSP + "»" + NBSP, '" '), (NBSP + "»", '"'), ("»", '"'),
]  # fmt: skip
_NO_BREAK_SPACES = [
    (NBSP + "%", "%"), ("nº" + NBSP, "nº "), (NBSP + ":", ":"), (NBSP + "ºC", " ºC"), (NBSP + "cm", " cm"),
    (NBSP + "?", "?"), (NBSP + "!", "!"), (NBSP + ";", ";"), ("," + NBSP, ", "),
]  # fmt: skip
_NUMBER_WITH_NO_BREAK_SPACE = re.compile(f"([0-9]){NBSP}([0-9])")
_DECIMAL_COMMA_LANGUAGES = frozenset({"de", "es", "cz", "cs", "fr"})

_QUOTE_BEFORE_STOPS = re.compile(r'"([,.]+)')
# What `\s*[^<]` takes after a quotation mark, where \s leaves out the newline that [^<] may take.
_AFTER_QUOTE = re.compile(r"[ \t\f\v]*[^<]")


def replace_unicode_punctuation(block: str, unusual: Set[str]) -> str:
    """Full-width and typographic punctuation to ASCII (replace-unicode-punctuation.perl)."""
    if not _FULL_STOPS.isdisjoint(unusual):
        block = _FULL_STOP_AND_SPACES.sub(". ", block)
    for character in unusual & _REPLACED.keys():
        block = block.replace(character, _REPLACED[character])
    return block


def normalise_punctuation(block: str, language: str, unusual: Set[str]) -> str:
    """Quotation marks, brackets and their spaces, in the order of normalize-punctuation.perl.

    Args:
        block: Lines that have been through `replace_unicode_punctuation`.
        language: Decides what becomes of a quotation mark beside commas and full stops, and of a no-break space
            inside a number.
        unusual: Every character of the block outside printable ASCII.
    """
    if "\r" in unusual:
        block = block.replace("\r", "")
    block = _OPENING.sub(" (", _CLOSING.sub(") ", block))
    block = single_spaces(block)
    block = _SPACE_AFTER_CLOSING.sub(")", block)
    block = _SPACE_AFTER_OPENING.sub("(", block)
    if _SPACE_BEFORE[")"].search(block):
        block = block.replace(" )", ")")
    if _SPACE_BEFORE["%"].search(block):
        block = _PERCENT_AFTER_NUMBER.sub("%", block)
    for mark in ":;":
        if _SPACE_BEFORE[mark].search(block):
            block = block.replace(" " + mark, mark)
    block = block.replace("`", "'").replace("''", ' " ')
    for character in unusual & _QUOTES.keys():
        block = block.replace(character, _QUOTES[character])
    block = block.replace("''", '"')  # from two marks of the lines above
    if "«" in unusual or "»" in unusual:
        for old, new in _GUILLEMETS:
            block = block.replace(old, new)
    if NBSP in unusual:
        for old, new in _NO_BREAK_SPACES:
            block = block.replace(old, new)
    block = single_spaces(block)
    if language == "en":
        if '",' in block or '".' in block:
            block = _QUOTE_BEFORE_STOPS.sub(r'\1"', block)
    elif language not in ("cs", "cz"):
        block = _quote_before_full_stops(block.replace(',"', '",'))
    if NBSP in unusual:
        decimal = "," if language in _DECIMAL_COMMA_LANGUAGES else "."
        block = _NUMBER_WITH_NO_BREAK_SPACE.sub(rf"\1{decimal}\2", block)
    return block


def _quote_before_full_stops(block: str) -> str:
    r"""The effect of perl's ``s/(\.+)"(\s*[^<])/"$1$2/g`` on a line that still has its newline.

    The end of the line therefore counts as the character after the quotation mark. That character is consumed:
    in ``a." ."b`` the second full stop is no longer there to be matched. Written as a loop because the regular
    expression takes quadratic time on a long run of full stops.
    """
    parts: list[str] = []
    done = 0
    stop = block.find('."')
    while stop >= 0:
        quote = stop + 1
        after = _AFTER_QUOTE.match(block, quote + 1)
        if after:
            first = stop
            while first > done and block[first - 1] == ".":
                first -= 1
            parts += (block[done:first], '"', block[first:quote], after[0])
            done = after.end()
        stop = block.find('."', max(done, quote))
    parts.append(block[done:])
    return "".join(parts)


def remove_non_printing(block: str, unusual: Set[str]) -> str:
    """Every character of general category C made a space, tabs and zero-width characters included."""
    for character in unusual:
        if character in OTHER:
            block = block.replace(character, " ")
    return block


def single_spaces(block: str) -> str:
    """Every run of spaces made one space."""
    return _SPACES.sub(" ", block) if "  " in block else block
