"""Byte-pair encoding, applied and learned, against the goldens and against the real fastBPE where it is built."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from data_prep import fastbpe, learn_bpe
from tests.conftest import CHECKS, count_words, golden_pieces, golden_tokens
from xlm_train.runtime.errors import UserError
from xlm_train.text import bpe_table
from xlm_train.text.bpe import BpeEncoder, decode, decode_ids
from xlm_train.text.bpe_codes import BpeCodes, read_limit
from xlm_train.text.bpe_table import ManyWords
from xlm_train.text.numbered import NumberedText
from xlm_train.text.tokenise import Tokeniser
from xlm_train.text.vocabulary import SPECIALS, UNK, Vocabulary

SETS = [f"{name}.{language}" for name in ("train", "valid", "novels", "parvalid") for language in ("en", "de")]


@pytest.fixture(scope="session")
def tool() -> Path:
    """The real fastBPE. Skips where it is not built; fails in CI, where it must be."""
    try:
        return fastbpe.binary()
    except UserError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def golden_codes(shared: Path) -> BpeCodes:
    return BpeCodes.from_file(shared / "goldens/bpe/codes")


@pytest.fixture(scope="session")
def golden_words(shared: Path) -> Counter[str]:
    """The words the golden codes were learned from, in the order of the text (en, then de)."""
    return count_words(itertools.chain(golden_tokens(shared, "train.en"), golden_tokens(shared, "train.de")))


def encode(encoder: BpeEncoder, lines: list[str]) -> list[str]:
    """Lines of words as lines of pieces, one space between two."""
    made = encoder.cut(NumberedText.of(lines))
    text = " ".join(made.pieces[number] for number in made.numbers.tolist())  # a newline stands at each line's end
    return [line.removeprefix(" ").removesuffix(" ") for line in text.split("\n")[:-1]]


def single_spaces(lines: list[str]) -> list[str]:
    """fastBPE keeps the spaces of its input, doubled ones too; a corpus has no place for them."""
    return [" ".join(word for word in line.split(" ") if word) for line in lines]


# ---- codes


def test_golden_codes_read_and_write_back(shared: Path, golden_codes: BpeCodes, tmp_path: Path) -> None:
    golden = (shared / "goldens/bpe/codes").read_bytes()
    assert len(golden_codes) == 6000
    golden_codes.write(tmp_path / "codes")
    assert (tmp_path / "codes").read_bytes() == golden


def test_symbols_of_codes_may_hold_any_white_space_but_the_space() -> None:
    merges = [("\u00a0", "\u2028</w>", 7), ("\x85", "\t", 3)]
    assert BpeCodes.from_text(BpeCodes(merges).to_text()).merges == merges


def test_what_is_no_codes_file_is_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "codes").write_text("#version: 0.2\nt h 5\nt h</w>\na b x\nt h 4\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        BpeCodes.from_file(tmp_path / "codes")
    assert [p.split(" ")[0] for p in caught.value.problems] == [f"{tmp_path}/codes:{n}:" for n in (1, 3, 4, 5)]
    assert "line 2 has already" in caught.value.problems[-1]
    for read in (BpeCodes.from_file, read_limit):
        (tmp_path / "empty").write_text("")
        with pytest.raises(UserError, match="empty:1"):
            read(tmp_path / "empty")
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path / "missing")


# ---- applying, against the goldens


@pytest.mark.parametrize("name", SETS)
def test_golden_text_is_encoded_byte_for_byte(shared: Path, golden_codes: BpeCodes, name: str) -> None:
    golden = single_spaces(golden_pieces(shared, name))
    assert encode(BpeEncoder(golden_codes), golden_tokens(shared, name)) == golden


@pytest.mark.parametrize("name", [name for name in SETS if not name.startswith("train")])
def test_the_vocabulary_limit_is_byte_for_byte(shared: Path, golden_codes: BpeCodes, name: str) -> None:
    limit = read_limit(shared / f"goldens/bpe/vocab.{name[-2:]}")
    golden = single_spaces(golden_pieces(shared, name, limited=True))
    assert encode(BpeEncoder(golden_codes, limit), golden_tokens(shared, name)) == golden


def test_ids_are_those_of_the_golden_pieces(shared: Path, golden_codes: BpeCodes) -> None:
    vocabulary = Vocabulary.from_file(shared / "goldens/bpe/vocab")
    text, golden = golden_tokens(shared, "novels.de"), golden_pieces(shared, "novels.de")
    pieces = [line.split() for line in golden]
    ids = [[vocabulary.index(piece) for piece in line] + [1] for line in pieces]
    encoded = BpeEncoder(golden_codes).encode_ids(text, vocabulary)
    assert encoded.ids.dtype == np.uint16
    assert encoded.ids.tolist() == [number for line in ids for number in line]
    assert encoded.starts.tolist() == [0, *itertools.accumulate(len(line) for line in ids[:-1])]
    assert encoded.words == sum(len(line.split()) for line in text)
    assert encoded.unknown == Counter(p for line in pieces for p in line if p not in vocabulary) != Counter()
    assert not encoded.dropped


def test_counted_pieces_give_the_golden_vocabulary(shared: Path, golden_codes: BpeCodes) -> None:
    encoder, counts = BpeEncoder(golden_codes), Counter[str]()
    for language in ("en", "de"):
        lines = golden_tokens(shared, f"train.{language}")
        for start in range(0, len(lines), 10_000):
            counts += encoder.cut(NumberedText.of(lines[start : start + 10_000])).counts()
    assert Vocabulary.from_counts(counts).to_text().encode() == (shared / "goldens/bpe/vocab").read_bytes()


# ---- applying, by hand


def codes_of(*merges: str) -> BpeCodes:
    return BpeCodes.from_text("".join(f"{merge} 1\n" for merge in merges))


@pytest.mark.parametrize(
    ("merges", "word", "pieces"),
    [
        ([], "abc", "a@@ b@@ c"),
        (["a b"], "ab", "a@@ b"),  # the last character is b</w>, another symbol than b
        (["a b</w>"], "ab", "ab"),
        (["a a"], "aaaa", "aa@@ a@@ a"),
        (["a a", "aa aa"], "aaaaa", "aaaa@@ a"),
        (["b c", "a b"], "abcx", "a@@ bc@@ x"),
        (["a b", "b c"], "abcx", "ab@@ c@@ x"),
        # Out of the order of learning: `a b` makes `x ab` possible, which ranks before it. fastBPE still makes every
        # `a b` first, and only then looks for the best again.
        (["x ab", "a b", "ab ab"], "xababy", "xab@@ ab@@ y"),
        (["ab a", "a b"], "ababy", "ab@@ ab@@ y"),
        (["a @", "a@ @</w>"], "a@@", "a@@"),
    ],
)
def test_merges_by_hand(merges: list[str], word: str, pieces: str) -> None:
    codes = codes_of(*merges) if merges else BpeCodes([])
    assert BpeEncoder(codes).encode_text(word) == pieces


def test_the_vocabulary_limit_undoes_merges_by_hand() -> None:
    codes = codes_of("h a", "u s</w>", "ha us</w>", "x y")
    encoder = BpeEncoder(codes, {"ha@@", "s"})
    assert encoder.encode_text("haus") == "ha@@ u@@ s"  # haus and us are not there, ha@@ is; u is a character
    assert BpeEncoder(codes, {"haus"}).encode_text("haus") == "haus"
    assert BpeEncoder(codes, {"us"}).encode_text("haus") == "h@@ a@@ us"
    assert BpeEncoder(codes, {"ha", "us@@"}).encode_text("haus") == "h@@ a@@ u@@ s"


def test_special_words_in_the_text_follow_the_original() -> None:
    merges = []
    for word in ("<s>", "</s>", "<unk>", "<special0>"):
        symbols = [*word[:-1], word[-1] + "</w>"]
        merges += [("".join(symbols[:i]), symbols[i], 1) for i in range(1, len(symbols))]
    encoder = BpeEncoder(BpeCodes(dict.fromkeys(merges)))
    vocabulary = Vocabulary([("a", 5), ("b", 3)])
    encoded = encoder.encode_ids(["<s> a", "</s>", "", "b <unk> <special0> a c", "</s> a"], vocabulary)
    assert encoded.ids.tolist() == [14, 1, 1, 1, 15, 3, 14, 3, 1, 14, 1]
    assert encoded.starts.tolist() == [0, 2, 3, 4, 9]
    assert encoded.words == 10
    assert encoded.unknown == {"<unk>": 1, "c": 1}
    assert encoded.dropped == {"<s>": 1, "</s>": 2, "<special0>": 1}


def test_ids_of_no_lines_and_of_empty_lines() -> None:
    encoder, vocabulary = BpeEncoder(codes_of("a b")), Vocabulary([("a", 1)])
    nothing = encoder.encode_ids([], vocabulary)
    assert (len(nothing.ids), len(nothing.starts), nothing.words) == (0, 0, 0)
    assert encode(encoder, []) == []
    empty = encoder.encode_ids(["", "  ", ""], vocabulary)
    assert empty.ids.tolist() == [1, 1, 1]
    assert empty.starts.tolist() == [0, 1, 2]
    assert empty.words == 0
    assert encode(encoder, ["", " a  b ", ""]) == ["", "a b", ""]
    with pytest.raises(ValueError, match="newline"):
        encoder.encode_ids(["a\n"], vocabulary)


@pytest.mark.parametrize("blank", ["\u00a0", "\u3000", "\u2028", "\u00a0\u00a0", "\u2003 \u00a0\u3000"])
def test_a_line_of_white_space_has_no_ids_but_its_end(blank: str) -> None:
    """The original splits lines of pieces at any white space, so that nothing is left of such a line."""
    (tokens,) = Tokeniser("en").tokenise([blank])
    for merges in ((), ("a b", f"{tokens[0]} {tokens[-1]}</w>")):
        encoder, vocabulary = BpeEncoder(codes_of(*merges) if merges else BpeCodes([])), Vocabulary([("a", 2)])
        encoded = encoder.encode_ids(["a", tokens, "b"], vocabulary)
        assert encoded.ids.tolist() == [14, 1, 1, UNK, 1]
        assert encoded.starts.tolist() == [0, 2, 3]
        assert encoded.unknown == {"b": 1}
        assert not encoded.dropped


def test_one_encoder_serves_several_vocabularies() -> None:
    encoder, lines = BpeEncoder(codes_of("a b</w>")), ["ab a", "c ab"]
    first, second = Vocabulary([("ab", 2)]), Vocabulary([("c", 2), ("ab", 1)])
    for _ in range(2):
        assert encoder.encode_ids(lines, first).ids.tolist() == [14, UNK, 1, UNK, 14, 1]
        assert encoder.encode_ids([*lines, "new"], second).ids.tolist() == [15, UNK, 1, 14, 15, 1, 3, 3, 3, 1]


WORDS = st.text(st.characters(codec="utf-8", exclude_characters=" \n"), min_size=1, max_size=8)
TEXT = st.lists(st.lists(WORDS, max_size=8).map(" ".join), min_size=1, max_size=6)


@given(st.lists(TEXT, max_size=6))
def test_full_tables_of_words_change_nothing(blocks: list[list[str]]) -> None:
    codes = codes_of("a b", "ab ab", "0 0", "0 0</w>")
    vocabulary = Vocabulary([("0", 9), ("00", 5), ("ab@@", 3)])
    small, large = BpeEncoder(codes), BpeEncoder(codes)
    pieces = [encode(large, lines) for lines in blocks]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe_table, "MAX_WORDS", 3)
        assert [encode(small, lines) for lines in blocks] == pieces
        ids = [small.encode_ids(lines, vocabulary).ids.tolist() for lines in blocks]
        counts = [small.cut(NumberedText.of(lines)).counts() for lines in blocks]
        most = max((len({w for line in lines for w in line.split(" ")}) for lines in blocks), default=0)
        assert len(small._table) <= 3 + 2 + most
    assert counts == [count_words(lines) for lines in pieces]
    kept = [
        [[p for p in line.split(" ") if p and not p.removesuffix("@@").isspace()] for line in part] for part in pieces
    ]
    expected = [[i for line in part for i in [*map(vocabulary.index, line), 1]] for part in kept]
    assert ids == expected == [large.encode_ids(lines, vocabulary).ids.tolist() for lines in blocks]


def test_many_words_at_once_are_cut_as_one_by_one(golden_words: Counter[str]) -> None:
    codes = learn_bpe.learn(golden_words, 20_000)
    encoder = BpeEncoder(codes)
    assert encode(encoder, list(golden_words)) == [encoder.encode_text(word) for word in golden_words]
    assert encoder._many_words is not None
    assert BpeEncoder(codes, {"a"})._many_words is None  # a vocabulary limit is not its business


@pytest.mark.parametrize(
    "merges",
    [
        ["x ab", "a b"],  # a part that is made later only
        ["a b", "b c", "ab c", "a bc"],  # two ways to one symbol
        ["a </w>"],  # a symbol that stands for a last character too
    ],
)
def test_codes_out_of_the_order_of_learning_are_not_cut_in_bulk(merges: list[str]) -> None:
    assert not ManyWords.serves(codes_of(*merges))


def test_an_encoder_goes_to_another_process(golden_codes: BpeCodes) -> None:
    encoder = BpeEncoder(golden_codes, {"the", "un@@"})
    encode(encoder, ["the unknown"])
    again = pickle.loads(pickle.dumps(encoder))
    assert len(again._table) == 2
    assert again.encode_text("unknown") == encoder.encode_text("unknown")


def test_a_very_long_word_takes_no_quadratic_time(golden_codes: BpeCodes) -> None:
    encoder = BpeEncoder(golden_codes)
    word = "dasisteinelangezeichenkettethequickbrownfox" * 5000
    start = time.process_time()
    pieces = encoder.encode_text(word).split(" ")
    assert "".join(piece.removesuffix("@@") for piece in pieces) == word
    assert time.process_time() - start < 300  # about 1 s; a quadratic way takes an hour


@given(TEXT)
def test_decoding_gives_the_words_back(lines: list[str]) -> None:
    assume(not any(word.endswith("@@") for line in lines for word in line.split(" ")))
    encoder = BpeEncoder(codes_of("a b", "0 0", "@ @", "@@ @</w>"))
    assert [decode(line) for line in encode(encoder, lines)] == lines


def test_decoding_ids_leaves_special_words_out() -> None:
    vocabulary = Vocabulary([("hel@@", 3), ("lo", 2)])
    assert len(SPECIALS) == 14
    assert decode_ids(np.array([1, 14, 15, 3, 14, 15, 1, 2, 4]), vocabulary) == "hello <unk> hello"
    assert decode_ids([14], vocabulary) == "hel"


# ---- applying, against the real fastBPE


def apply_with(
    tool: Path, folder: Path, codes: BpeCodes, lines: list[str], limit: list[str] | None
) -> list[str] | None:
    """The lines as fastBPE encodes them; None where one of its own assertions stops it."""
    (folder / "in").write_bytes("".join(f"{line}\n" for line in lines).encode())
    codes.write(folder / "codes")
    command = [tool, "applybpe", folder / "out", folder / "in", folder / "codes"]
    if limit is not None:
        (folder / "limit").write_bytes("".join(f"{word} 1\n" for word in limit).encode())
        command.append(folder / "limit")
    if subprocess.run(command, capture_output=True).returncode != 0:
        return None
    return single_spaces((folder / "out").read_bytes().decode().removesuffix("\n").split("\n"))


NASTY = st.text("ab</w>@\u00e4\u00df", min_size=1, max_size=12)
CONTROLS = st.text("ab\0\t\r\x85\u00a0\u200b\u2028\ufeff\u0301\U0001f600", min_size=1, max_size=6)
REPEATED = st.tuples(st.sampled_from(["a", "ab", "@@", "</w>", "\u00e4"]), st.integers(1, 60)).map(
    lambda p: p[0] * p[1]
)
NASTY_WORDS = st.one_of(NASTY, REPEATED, CONTROLS, WORDS)
NASTY_TEXT = st.lists(st.lists(NASTY_WORDS, max_size=12).map(" ".join), min_size=1, max_size=12)


@st.composite
def unordered_codes(draw: st.DrawFn) -> BpeCodes:
    """Merges of any symbols in any order, as no learner would give them: a merge may stand before its parts."""
    symbols = [*"ab</w>@\u00e4", "a</w>", "b</w>", "></w>", "@</w>"]
    merges = {}
    for _ in range(draw(st.integers(1, 25))):
        left, right = draw(st.sampled_from(symbols)), draw(st.sampled_from(symbols))
        if not left.endswith("</w>") and left + right not in merges:
            merges[left + right] = (left, right, 1)
            symbols.append(left + right)
    return BpeCodes(draw(st.permutations(list(merges.values()))))


AGAINST_FASTBPE = settings(max_examples=70, suppress_health_check=[*CHECKS, HealthCheck.function_scoped_fixture])


def encode_both_ways(codes: BpeCodes, lines: list[str], limit: list[str] | None = None) -> list[str]:
    """Word by word, and many words at once (which a small table would not do); both must be the same."""
    encoded = encode(BpeEncoder(codes, limit), lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe_table, "MANY", 2)
        assert encode(BpeEncoder(codes, limit), lines) == encoded
    return encoded


@AGAINST_FASTBPE
@given(codes=unordered_codes(), lines=NASTY_TEXT)
def test_nasty_words_and_codes_as_fastbpe(tool: Path, tmp_path: Path, codes: BpeCodes, lines: list[str]) -> None:
    golden = apply_with(tool, tmp_path, codes, lines, None)
    assume(golden is not None)
    assert encode_both_ways(codes, lines) == golden


@settings(AGAINST_FASTBPE, max_examples=40)
@given(NASTY_TEXT, NASTY_TEXT, st.integers(1, 60), st.sampled_from(learn_bpe.ENGINES), st.data())
def test_learned_codes_and_limits_as_fastbpe(
    tool: Path,
    tmp_path: Path,
    learned_from: list[str],
    lines: list[str],
    n_codes: int,
    engine: str,
    data: st.DataObject,
) -> None:
    counts = count_words(learned_from)
    assume(any(len(word) > 1 and "\0" not in word for word in counts))
    codes = learn_bpe.learn(counts, n_codes, engine)
    # From a literal </w> in the text fastBPE can learn two merges with one result, and then refuses its own codes.
    assume(len({left + right for left, right, _ in codes.merges}) == len(codes) or engine == "builtin")
    assert encode_both_ways(codes, lines) == apply_with(tool, tmp_path, codes, lines, None)
    encoder = BpeEncoder(codes)
    pieces = sorted({piece for word in counts for piece in encoder.encode_text(word).split(" ")})
    limit = data.draw(st.lists(st.sampled_from(pieces), min_size=1, unique=True))
    golden = apply_with(tool, tmp_path, codes, lines, limit)
    assume(golden is not None)  # a NUL in a word, or a literal </w>, can trip an assertion of fastBPE's
    assert encode_both_ways(codes, lines, limit) == golden


def test_real_text_as_fastbpe_with_other_codes(
    tool: Path, shared: Path, tmp_path: Path, golden_words: Counter[str]
) -> None:
    codes = learn_bpe.learn(golden_words, 20_000)
    lines = golden_tokens(shared, "novels.de") + golden_tokens(shared, "parvalid.en")
    assert encode(BpeEncoder(codes), lines) == apply_with(tool, tmp_path, codes, lines, None)
    limit = [word for word, count in BpeEncoder(codes).cut(NumberedText.of(lines)).counts().items() if count > 3]
    assert encode(BpeEncoder(codes, limit), lines) == apply_with(tool, tmp_path, codes, lines, limit)


# ---- learning


def test_both_engines_give_the_golden_codes(tool: Path, golden_codes: BpeCodes, golden_words: Counter[str]) -> None:
    for engine in learn_bpe.ENGINES:
        assert learn_bpe.learn(golden_words, 6000, engine).to_text() == golden_codes.to_text()


@settings(AGAINST_FASTBPE, max_examples=60)
@given(st.lists(st.text("abßé漢\U00010400", min_size=1, max_size=20), min_size=1), st.integers(1, 60))
def test_learned_codes_are_fastbpes(tool: Path, words: list[str], n_codes: int) -> None:
    """Few words, so that nearly every pair has equals: which comes first is decided by fastBPE's hash table."""
    counts = Counter(words)
    assume(any(len(word) > 1 for word in counts))
    golden = learn_bpe.learn(counts, n_codes, "fastbpe")
    assume(len({left + right for left, right, _ in golden.merges}) == len(golden))
    assert learn_bpe.learn(counts, n_codes).merges == golden.merges


def test_equally_frequent_pairs_of_real_text_come_in_fastbpes_order(tool: Path, golden_words: Counter[str]) -> None:
    """All words once: there are as many of them as can be. The table has grown 14 times."""
    words = dict.fromkeys(golden_words, 1)
    assert learn_bpe.learn(words, 20_000).merges == learn_bpe.learn(words, 20_000, "fastbpe").merges


def test_counts_of_codes_are_how_often_the_pair_stands_there() -> None:
    codes = learn_bpe.learn({"abab": 3, "ab": 4, "x": 100}, 10)
    assert codes.merges == [("a", "b</w>", 7), ("a", "b", 3), ("ab", "ab</w>", 3)]
    assert learn_bpe.learn({"aaab": 2, "aac": 1}, 1).merges == [("a", "a", 5)]  # joined 3 times


def test_learned_codes_are_the_same_for_any_hashes_of_python(shared: Path) -> None:
    program = (
        "import gzip, sys\nfrom data_prep.learn_bpe import learn\nfrom xlm_train.text.numbered import NumberedText\n"
        "lines = gzip.open(sys.argv[1]).read().decode().split('\\n')\n"
        "print(learn(NumberedText.of(lines).counts(), 3000).to_text())"
    )
    text = shared / "corpora/novels.valid.de.gz"
    found = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", program, str(text)]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1


@pytest.mark.parametrize("engine", learn_bpe.ENGINES)
def test_fewer_merges_than_asked_for(
    request: pytest.FixtureRequest, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    if engine == "fastbpe":
        request.getfixturevalue("tool")
    codes = learn_bpe.learn(count_words(["aaa aaaa aaab", "bb aaa aab"]), 1000, engine)
    assert 5 <= len(codes) <= 8
    assert "were learned" in caplog.text
    encoder = BpeEncoder(codes)
    assert encode(encoder, ["aaa aaab"]) == ["aaa aaab"]


def test_what_cannot_be_learned_is_said() -> None:
    for nothing in ({}, {"a": 5, "b": 2}):
        with pytest.raises(UserError, match="no pair to learn"):
            learn_bpe.learn(nothing, 10)
    with pytest.raises(UserError, match=r"bpe\.engine=subword-nmt: .* builtin, fastbpe"):
        learn_bpe.learn({"ab": 1}, 10, "subword-nmt")


def test_a_pair_more_frequent_than_fastbpe_counts(tool: Path) -> None:
    assert learn_bpe.learn({"ab": 1 << 31}, 10).merges == [("a", "b</w>", 1 << 31)]
    with pytest.raises(UserError, match="'a b</w>' comes 2,147,483,648 times"):
        learn_bpe.learn({"ab": 1 << 31}, 10, "fastbpe")


def test_a_missing_fastbpe_names_the_command_that_builds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match="make fastbpe"):
        learn_bpe.check_engine("fastbpe")


def test_a_failing_fastbpe_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "fastbpe").write_text("#!/bin/sh\necho out of memory >&2\nexit 3\n")
    (tmp_path / "fastbpe").chmod(0o755)
    with pytest.raises(UserError, match="status 3: out of memory"):
        learn_bpe.learn({f"word{number}": 5 for number in range(100_000)}, 10, "fastbpe")
