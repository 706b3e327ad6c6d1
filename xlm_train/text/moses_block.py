"""A block: many lines as one string, so that one C-level operation applies a rule to all of them.

Layout: a newline, then every line followed by a newline. Each line thus lies between two newlines, where perl
sees the start and the end of its string. A rule that cannot match a newline gives what it gives in perl line by
line, since neither a match nor the search that follows it crosses one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

# Characters of one block: small enough for its copies to stay in a core's cache, large enough for the cost of
# some hundred calls a block (0.1 ms) not to count.
_BLOCK_CHARACTERS = 1 << 16

_SPACES = re.compile("  +")
_PRINTABLE_ASCII = bytes(range(0x20, 0x7F)) + b"\n"


def cut(lines: Sequence[str]) -> Iterator[Sequence[str]]:
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
    """The block of these lines. Raises ValueError if one of them contains a newline."""
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


def single_spaces(block: str) -> str:
    """Every run of spaces made one space."""
    return _SPACES.sub(" ", block) if "  " in block else block
