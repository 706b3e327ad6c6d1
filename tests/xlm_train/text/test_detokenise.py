"""Words back to text: how often real lines come back exactly, and what must never go wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from xlm_train.text.detokenise import detokenise, spaced
from xlm_train.text.tokenise import Tokeniser

TEXT = REPOSITORY / "tests/text"


def lines_of(file: Path, most: int) -> list[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [text for line in lines if (text := line.strip())][:most]


@pytest.mark.parametrize(
    ("language", "least", "by_sacremoses"),
    [("de", 0.985, 0.922), ("en", 0.98, 0.928)],
)
def test_real_lines_come_back(language: str, least: float, by_sacremoses: float) -> None:
    """The share of lines restored exactly, as they were before tokenising (quotation marks and dashes normalised)."""
    from sacremoses import MosesDetokenizer

    lines = [line for file in sorted(TEXT.glob(f"*.{language}.gz")) for line in lines_of(file, 2500)]
    assert len(lines) > 6000
    stages = Tokeniser(language).stages(lines)
    wanted = [" ".join(line.split()) for line in stages["nonprinting"]]
    words = [line.split() for line in stages["tokens"]]
    share = sum(detokenise(some) == line for some, line in zip(words, wanted, strict=True)) / len(lines)
    assert share >= least
    moses = MosesDetokenizer(lang=language)
    few = slice(None, None, 10)
    pairs = zip(words[few], wanted[few], strict=True)
    theirs = sum(moses.detokenize(some, unescape=False) == line for some, line in pairs) / len(words[few])
    assert theirs == pytest.approx(by_sacremoses, abs=0.02)  # what it would be without


@pytest.mark.parametrize("language", ["de", "en"])
def test_what_a_beginning_shows_stays(language: str) -> None:
    """Of each beginning of a real line, what is said to be final is the beginning of the line; most of it is final at once."""
    lines = [line for file in sorted(TEXT.glob(f"*.{language}.gz")) for line in lines_of(file, 250)]
    marked = [line for file in sorted(TEXT.glob(f"*.{language}.gz")) for line in lines_of(file, 2500) if '"' in line]
    shown = seen = 0
    for line in Tokeniser(language).tokenise([*lines, *marked[:300]]):
        words = line.split()
        whole = spaced(words)
        for count in range(1, len(words)):
            final = spaced(words[:count], whole=False)
            assert final == whole[: len(final)], (line, count)
            shown, seen = shown + len(final), seen + count
    assert shown > 0.8 * seen


@pytest.mark.parametrize(
    ("language", "line"),
    [
        ("en", "it's, don't, they'll, the boys' dog"),
        ("en", "He said: \"It's 'fine', isn't it?\""),
        ("de", "Wie geht's? Ich hab' es (12) gesehen!"),
        ("de", "Er sagte: \"Gibt's 'so was' denn?\" und/oder C:\\Text\\neu"),
        ("en", "C:\\new\\text, a\\b and x@y.org"),
        ("en", ""),
    ],
)
def test_lines_that_must_come_back(language: str, line: str) -> None:
    (words,) = Tokeniser(language).tokenise([line])
    assert detokenise(words.split()) == line
