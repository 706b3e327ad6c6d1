"""tokenizer.perl -no-escape -l LANGUAGE, on blocks of lines (`xlm_train.text.tokenise`).

The rules follow one another as in the script. Where one looks at the neighbours of a character, what a match in
perl consumes is not there for the next match: in ``a'b'c`` the first one takes the ``b``, so that the second
apostrophe has no letter before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from functools import lru_cache, partial

from xlm_train.text.moses_normalise import single_spaces
from xlm_train.text.moses_unicode import ALPHABETIC, DECIMAL, LOWERCASE, NUMBER, OTHER_LOWERCASE

# Printable ASCII that is neither alphanumeric nor treated by a rule of its own.
_ASCII_SYMBOLS = '!"#$%&()*+/:;<=>?@[\\]^_{|}~'

# Characters that a language has inside words, and the string that is split off all the same unless a lower-case
# letter follows. Catalan's is two characters: the script's source is UTF-8 read as Latin-1.
_INSIDE_WORDS = {"fi": (":", ":"), "sv": (":", ":"), "tdt": ("'", "'"), "ca": ("·", "Â·")}

_FIRST_SPACE = re.compile("\n ")

# Stands for one dot of a run of dots until the end. It cannot occur, being of general category C.
_DOT = "\x01"
_RUN_OF_DOTS = re.compile(r"\.\.+")
# The script's own mark for such a run, "DOT" for each dot but the last, in the lines where the text spells it too.
# Neither entering a run in its middle nor going back in it keeps the time linear.
_LITERAL_RUN = re.compile("(?<!DOT)(?:DOT)++MULTI")

# Stands for a comma that is no token; as the dot, it cannot occur.
_COMMA = "\x02"
# A whole run of commas before anything but the commonest characters that are no number. Not matching from inside
# a run keeps the time linear.
_COMMAS = re.compile(r',(?<!,,),*+(?=[^"a-zA-Z \n])')

# An apostrophe and all that follow it with one character between, which two matches would share. (Normalisation
# leaves no two side by side.)
_APOSTROPHES = re.compile("'(?:[^\n]')*")


def tokenise(block: str, language: str, unusual: Set[str]) -> str:
    """The tokens of every line, one space between two; a line of nothing but white space stays as it is.

    Args:
        block: Lines that have been through `xlm_train.text.moses_normalise`.
        language: Chooses the rules for apostrophes and abbreviations.
        unusual: Every character of the block outside printable ASCII.
    """
    before = block
    for character in unusual:
        if character.isspace():
            block = block.replace(character, " ")
    block = _trim(block)
    block = _separate_symbols(block, language, unusual)
    literal = "DOTMULTI" in block
    if literal:
        block = "\n".join(_join_dots_literally(line) if "DOTMULTI" in line else line for line in block.split("\n"))
    block = _RUN_OF_DOTS.sub(_join_dots, block)
    block = _COMMAS.sub(_keep_comma, block).replace(",", " , ").replace(_COMMA, ",")
    if language in _APOSTROPHE_RULES:
        block = _APOSTROPHES.sub(_APOSTROPHE_RULES[language], block)
    else:
        block = block.replace("'", " ' ")
    block = _separate_full_stops(block, _prefixes(language))
    block = _trim(block)
    # The last rule looks once more at the end of the line, and the space it leaves there is in the output.
    block = block.replace(".'\n", " . ' \n").replace(_DOT, ".")
    if literal:
        block = _LITERAL_RUN.sub(lambda run: "." * (len(run[0]) // 3 - 1), block)
    if "\n\n" in block:
        block = "\n".join(tokens or line for tokens, line in zip(block.split("\n"), before.split("\n"), strict=True))
    return block


def _trim(block: str) -> str:
    """One space for a run of them, none at the start and the end of lines."""
    return _FIRST_SPACE.sub("\n", single_spaces(block).replace(" \n", "\n"))


def _separate_symbols(block: str, language: str, unusual: Set[str]) -> str:
    """Spaces around every character that is not alphanumeric, a space or one of ``. ' ` , -``."""
    inside, separated = _INSIDE_WORDS.get(language, ("", ""))
    for character in _ASCII_SYMBOLS:
        if character != inside:
            block = block.replace(character, f" {character} ")
    for character in unusual:
        if not (character in ALPHABETIC or character in DECIMAL or character.isspace() or character == inside):
            block = block.replace(character, f" {character} ")
    if inside:
        small = "".join(c for c in unusual if c in LOWERCASE and c not in OTHER_LOWERCASE)
        block = re.sub(f"{separated}(?![a-z{small}])", f" {separated} ", block)
    return block


def _join_dots(run: re.Match[str]) -> str:
    return f" {_DOT * len(run[0])} "


def _join_dots_literally(line: str) -> str:
    """Runs of dots where the text itself spells DOTMULTI, the script's marker: what its loop, a dot a round, comes to.

    Each of the dots after a marker becomes a DOT before it, and a space parts it from the character that follows.
    That character is consumed: of two markers side by side with one dot each, the second gets no space.
    """
    line = re.sub(r"\.(\.+)", r" DOTMULTI\1", line)
    parted = -1  # where the marker would stand whose first character was consumed

    def join(marker: re.Match[str]) -> str:
        nonlocal parted
        dots = len(marker[1])
        space = marker.end() < len(line) and not (dots == 1 and marker.start() == parted)
        parted = marker.end() if space and dots == 1 else -1
        return "DOT" * dots + "DOTMULTI" + " " * space

    return re.sub(r"DOTMULTI(\.+)", join, line)


def _keep_comma(run: re.Match[str]) -> str:
    """Marks the comma that stays with the number after it, there being a number or the line's start before it.

    In perl first ``([^number]),`` and then ``,([^number])`` is replaced. In a run of commas every match of the
    first takes two of them, the character before and the comma; so the last one is missed if the run is odd and
    its first comma has no match, or if it is even and has one. It then has a number after it but a space before.
    """
    before, after = run.string[run.start() - 1], run.string[run.end()]
    commas = run[0]
    first_matches = before != "\n" and before not in NUMBER
    if after not in NUMBER or first_matches != (len(commas) % 2 == 0):
        return commas
    return _COMMA if commas == "," else f"{commas[1:]} {_COMMA}"


def _with_neighbours(rule: Callable[[str], str]) -> Callable[[re.Match[str]], str]:
    """For `re.sub`: the rule applied to a match with the character before it and the one after it.

    What it gave is kept, for the same few hundred neighbours come again and again; long runs are not kept, so
    that the memory taken stays below 1 MB.
    """
    memory = lru_cache(maxsize=4096)(rule)

    def replacement(match: re.Match[str]) -> str:
        around = match.string[match.start() - 1 : match.end() + 1]
        return memory(around) if len(around) <= 8 else rule(around)

    return replacement


def _is_letter(character: str) -> bool:
    return character in ALPHABETIC


def _is_number(character: str) -> bool:
    return character in NUMBER


def _is_no_letter(character: str) -> bool:
    return character != "\n" and character not in ALPHABETIC


def _is_neither(character: str) -> bool:
    return _is_no_letter(character) and character not in NUMBER


def _is_s(character: str) -> bool:
    return character == "s"


# (test of the character before, test of the one after, what becomes of the apostrophe), in the order of the
# script. In languages that are not named every apostrophe is a token.
_Rules = list[tuple[Callable[[str], bool], Callable[[str], bool], str]]
_KEPT: _Rules = [
    (_is_no_letter, _is_no_letter, " ' "),
    (_is_no_letter, _is_letter, " ' "),
    (_is_letter, _is_no_letter, " ' "),
]
_LEFT: _Rules = [*_KEPT, (_is_letter, _is_letter, "' ")]
_RIGHT: _Rules = [
    (_is_no_letter, _is_no_letter, " ' "),
    (_is_neither, _is_letter, " ' "),
    (_is_letter, _is_no_letter, " ' "),
    (_is_letter, _is_letter, " '"),
    (_is_number, _is_s, " '"),
]


def _separate_apostrophes(rules: _Rules, around: str) -> str:
    characters = around[::2]
    apostrophes = ["'"] * (len(characters) - 1)
    for test_before, test_after, replacement in rules:
        taken = False  # the character before, by the apostrophe before
        for i, apostrophe in enumerate(apostrophes):
            taken = not taken and apostrophe == "'" and test_before(characters[i]) and test_after(characters[i + 1])
            if taken:
                apostrophes[i] = replacement
    return "".join(a + c for a, c in zip(apostrophes, characters[1:], strict=True))[:-1]


_APOSTROPHE_RULES = {
    language: _with_neighbours(partial(_separate_apostrophes, rules))
    for languages, rules in [("en", _RIGHT), ("fr it ga ca", _LEFT), ("so tdt", _KEPT)]
    for language in languages.split()
}


@lru_cache(maxsize=64)
def _prefixes(language: str) -> dict[str, bool]:
    """Non-breaking prefix -> whether only before a number. The English ones for a language that has none."""
    from sacremoses.corpus import NonbreakingPrefixes  # 0.3 s: not for every command that imports this module

    source = NonbreakingPrefixes()
    known = source.available_langs.values()
    prefixes: dict[str, bool] = {}
    for entry in source.words(language if language in known else "en"):
        prefix, mark, _ = entry.partition(" #NUMERIC_ONLY#")
        prefixes[prefix] = bool(mark)
    return prefixes


def _separate_full_stops(block: str, prefixes: dict[str, bool]) -> str:
    """A space before the full stop that ends a word, unless the word or the next one speaks against it.

    The last word of a line loses its full stop always.
    """
    parts = block.replace(".\n", " .\n").split(". ")
    for i in range(len(parts) - 1):
        word = parts[i][parts[i].rfind(" ") + 1 :]
        word = word[word.rfind("\n") + 1 :]
        # The next word's first character; a second space, where a symbol follows; or nothing: the word is a full stop.
        following = parts[i + 1][:1] or "."
        parts[i] += " . " if _is_split(word, following, prefixes) else ". "
    return "".join(parts)


def _is_split(word: str, following: str, prefixes: dict[str, bool]) -> bool:
    """Whether the full stop after `word` is a token; `following` is the character after the space after it."""
    if following in LOWERCASE or ("." in word and any(c in ALPHABETIC for c in word)):
        return False
    numeric_only = prefixes.get(word)
    return numeric_only is None or (numeric_only and not "0" <= following <= "9")
