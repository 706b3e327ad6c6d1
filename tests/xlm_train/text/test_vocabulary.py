"""Counting words, and vocabularies: the golden files, the original's reading rules, refusals by file and line."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import count_words, golden_pieces
from xlm_train.runtime.errors import UserError
from xlm_train.text.numbered import NumberedText
from xlm_train.text.vocabulary import BOS, EOS, PAD, SPECIALS, UNK, Vocabulary, split_lines


def test_special_words_have_the_originals_ids() -> None:
    assert (SPECIALS[BOS], SPECIALS[EOS]) == ("<s>", "</s>")
    assert (SPECIALS[PAD], SPECIALS[UNK]) == ("<pad>", "<unk>")
    assert SPECIALS[4] == "<special0>"
    assert SPECIALS[13] == "<special9>"
    assert len(SPECIALS) == 14


@pytest.mark.parametrize(("name", "languages"), [("vocab", "en de"), ("vocab.en", "en"), ("vocab.de", "de")])
def test_counting_bpe_text_gives_fastbpes_vocabulary(shared: Path, name: str, languages: str) -> None:
    counts: Counter[str] = Counter()
    for language in languages.split():
        counts.update(count_words(golden_pieces(shared, f"train.{language}")))
    made = Vocabulary.from_counts(counts)
    golden = (shared / "goldens/bpe" / name).read_bytes()
    assert made.to_text().encode() == golden


def test_a_golden_file_reads_and_writes_back(shared: Path, tmp_path: Path) -> None:
    golden = shared / "goldens/bpe/vocab"
    vocabulary = Vocabulary.from_file(golden)
    assert len(vocabulary) == 14 + 6128
    first = golden.read_text(encoding="utf-8").split(" ", 1)[0]
    assert vocabulary.words[14] == first
    assert vocabulary.index(first) == 14
    vocabulary.write(tmp_path / "vocab")
    assert (tmp_path / "vocab").read_bytes() == golden.read_bytes()


def test_equal_counts_stand_in_byte_order() -> None:
    words = ["b", "a", "é", "z", "\ufb01", "\U00010400", "ab"]
    made = Vocabulary.from_counts(Counter(words) + Counter(["z"]))
    others = sorted({*words} - {"z"}, key=lambda word: word.encode())
    assert made.words[14:] == ["z", *others]
    assert made.counts[14:] == [2, 1, 1, 1, 1, 1, 1]


def test_special_words_of_the_text_get_no_second_id() -> None:
    made = Vocabulary.from_counts({"a": 1, "</s>": 9, "<unk>": 5})
    assert made.words == [*SPECIALS, "a"]


def test_lines_without_two_fields_take_no_id() -> None:
    text = "the 9\n7\n\n\u2028 5\na b 4\nx\u00a0y 3\ny\u20281 2\n@@ 2\nend 0\n"
    vocabulary = Vocabulary.from_text(text)
    assert vocabulary.words[14:] == ["the", "@@", "end"]
    assert vocabulary.counts[14:] == [9, 2, 0]
    assert len(vocabulary) == 14 + 3
    assert vocabulary.index("end") == 16
    assert vocabulary.index("a") == UNK
    assert "the" in vocabulary
    assert "a" not in vocabulary


def test_all_mistakes_of_a_file_are_named_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "v"
    file.write_text("a 5\nb x\na 4\n<pad> 3\nc 2\nd 3\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        Vocabulary.from_file(file)
    problems = caught.value.problems
    assert [problem.split(" ")[0] for problem in problems] == [f"{file}:{n}:" for n in (2, 3, 4, 6)]
    assert "first in line 1" in problems[1]
    assert "<pad>" in problems[2]
    assert "rise" in problems[3]


def test_a_wrong_file_is_one_short_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Vocabulary.from_file(tmp_path / "missing")
    (tmp_path / "latin1").write_bytes(b"gr\xfc\xdfe 3\n")
    with pytest.raises(UserError, match="latin1: not UTF-8 at byte 2"):
        Vocabulary.from_file(tmp_path / "latin1")
    for text in ("", "\n", "just some prose that is no vocabulary\n"):
        with pytest.raises(UserError, match="no vocabulary"):
            Vocabulary.from_text(text)
    with pytest.raises(UserError) as caught:
        Vocabulary.from_text("word word\n" * 1000)
    assert len(caught.value.problems) == 11
    assert "990 problems more" in caught.value.problems[-1]


def test_ids_are_two_bytes_below_65536_entries() -> None:
    entries = [(f"w{i}", 1) for i in range(65_535 - 14)]
    assert Vocabulary(entries).dtype == np.uint16
    assert Vocabulary([*entries, ("one more", 1)]).dtype == np.int32


def test_a_word_cannot_have_two_ids() -> None:
    for twice in ("a", "<s>"):
        with pytest.raises(ValueError, match="twice"):
            Vocabulary([("a", 2), (twice, 1)])


def test_words_are_split_at_ascii_spaces_alone() -> None:
    assert split_lines([]) == []
    assert split_lines(["", "a"]) == ["", "\n", "a", "\n"]
    line = "a\tb c\u00a0d  e\u2028f\r"
    assert split_lines([line]) == ["a\tb", "c\u00a0d", "", "e\u2028f\r", "\n"]
    assert count_words([line, " a\tb "]) == {"a\tb": 2, "c\u00a0d": 1, "e\u2028f\r": 1}
    with pytest.raises(ValueError, match="newline"):
        count_words(["a b\n"])


@given(st.lists(st.text("ab \t", max_size=12), max_size=30), st.lists(st.integers(0, 30), max_size=3))
def test_counts_do_not_depend_on_how_text_is_divided(lines: list[str], cuts: list[int]) -> None:
    whole = count_words(iter(lines))
    assert whole == Counter(word for line in lines for word in line.split(" ") if word)
    total: Counter[str] = Counter()
    bounds = [0, *sorted(min(cut, len(lines)) for cut in cuts), len(lines)]
    for start, end in itertools.pairwise(bounds):
        total.update(count_words(lines[start:end]))
    assert list(total.items()) == list(whole.items())


@given(st.lists(st.tuples(st.text("ab \t", max_size=12), st.integers(0, 3)), max_size=30))
def test_lines_are_taken_and_counted_by_their_numbers(copied: list[tuple[str, int]]) -> None:
    lines, copies = [line for line, _ in copied], np.array([n for _, n in copied], np.int64)
    text = NumberedText.of(lines)
    assert text.lines() == lines
    assert text.lengths().tolist() == [len(line.split(" ")) + 1 for line in lines]
    taken = text.take(copies > 0)
    assert taken.lines() == [line for line, n in copied if n]
    assert taken.words == NumberedText.of(taken.lines()).words
    repeated = count_words(line for line, n in copied for _ in range(n))
    assert list(taken.counts(copies[copies > 0]).items()) == list(repeated.items())
