"""The original's binarised text to a corpus of ours and back."""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import golden_pieces
from xlm_train.data.corpus import Corpus
from xlm_train.interop.export import export_corpus
from xlm_train.interop.original import unpickle
from xlm_train.interop.original.binarised import (
    BinarisedText,
    files_in,
    key_of,
    read_binarised,
    write_binarised,
    write_corpus,
)
from xlm_train.runtime.errors import CheckpointError, ConfigError
from xlm_train.text.vocabulary import EOS, Vocabulary


@pytest.fixture
def golden_files(shared: Path) -> dict[tuple[str, str], Path]:
    return files_in(shared / "goldens/bpe")


@pytest.mark.parametrize("language", ["de", "en"])
def test_sentences_are_those_of_the_text(
    shared: Path, golden_ids: Callable[[str], list[list[int]]], golden_text: tuple[str, str], language: str
) -> None:
    text = read_binarised(shared / f"goldens/bpe/valid.{language}.pth")
    found = [part[:-1].tolist() for part in np.split(text.ids, text.starts[1:])]
    assert found == golden_ids(f"valid.{language}")
    assert text.ids.dtype == np.uint16
    assert text.vocabulary.to_text() == golden_text[0]


@pytest.mark.parametrize("language", ["de", "en"])
def test_written_as_the_original_writes(
    shared: Path, tmp_path: Path, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read back by plain torch with a class where the original has its Dictionary: the same as the golden file."""
    golden = shared / f"goldens/bpe/valid.{language}.pth"
    write_binarised(tmp_path / "out.pth", read_binarised(golden))
    assert "xlm.data.dictionary" not in sys.modules
    parts = [types.ModuleType(name) for name in ("xlm", "xlm.data", "xlm.data.dictionary")]
    parts[-1].Dictionary = type("Dictionary", (), {"__module__": "xlm.data.dictionary"})  # type: ignore[attr-defined]
    for part in parts:
        monkeypatch.setitem(sys.modules, part.__name__, part)
    before, after = (torch.load(path, weights_only=False) for path in (golden, tmp_path / "out.pth"))
    assert list(before) == list(after)
    assert vars(before["dico"]) == vars(after["dico"])
    assert list(vars(before["dico"])) == list(vars(after["dico"]))
    assert before["unk_words"] == after["unk_words"]
    for name in ("sentences", "positions"):
        assert before[name].dtype == after[name].dtype
        assert np.array_equal(before[name], after[name])


def test_unknown_words_and_large_vocabularies(tmp_path: Path) -> None:
    vocabulary = Vocabulary((f"w{n}", 1) for n in range(70_000))
    text = BinarisedText(
        np.array([70_013, 3, 1, 1, 14, 1], dtype=np.int32), np.array([0, 3, 4]), vocabulary, {"odd@@": 1}
    )
    write_binarised(tmp_path / "out.pth", text)
    found = read_binarised(tmp_path / "out.pth")
    assert found.ids.dtype == np.int32
    assert np.array_equal(found.ids, text.ids)
    assert np.array_equal(found.starts, text.starts)
    assert found.unknown == text.unknown


def test_damaged_text_is_refused(shared: Path, tmp_path: Path) -> None:
    golden = unpickle.load(shared / "goldens/bpe/valid.de.pth")

    def broken(**changes: Any) -> BinarisedText:
        ids, positions = changes.get("ids", golden["sentences"]), changes.get("positions", golden["positions"])
        vocabulary = read_binarised(shared / "goldens/bpe/valid.de.pth").vocabulary
        return BinarisedText(ids, positions[:, 0], vocabulary, {})

    beyond = golden["sentences"].copy()
    beyond[3] = 6142
    shifted = golden["positions"].copy()
    shifted[5, 0] += 1
    for number, (text, message) in enumerate(
        [(broken(ids=beyond), "beyond its dictionary"), (broken(positions=shifted), "do not cut")]
    ):
        write_binarised(tmp_path / f"{number}.pth", text)
        with pytest.raises(CheckpointError, match=message):
            read_binarised(tmp_path / f"{number}.pth")


@pytest.mark.parametrize(
    "positions",
    [
        np.array(3),
        np.array([0, 3]),
        np.array([[0, 2, 3]]),
        np.empty((0, 2), np.int64),
        np.array([[0.0, 3.0]]),
        np.array([[0, 4]]),
        np.array([[-1, 3]]),
        np.array([[0, 2**63 - 1], [-(2**63), 3]]),
        [[0, 3]],
    ],
)
def test_positions_that_cut_no_sentence_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positions: Any
) -> None:
    """Nothing is looked up with them before they are checked."""
    vocabulary = Vocabulary([("a", 3)])
    path = tmp_path / "test.en.pth"
    ids = np.array([14, 14, 14, 1], np.uint16)
    write_binarised(path, BinarisedText(ids, np.array([0]), vocabulary, {"b": 1}))
    assert len(read_binarised(path).ids) == 4
    changed = {**unpickle.load(path), "positions": positions}
    monkeypatch.setattr(unpickle, "load", lambda path: changed)
    with pytest.raises(CheckpointError, match=r"test\.en\.pth: its positions"):
        read_binarised(path)


@pytest.mark.parametrize("content", [[1], {"sentences": np.arange(3)}, {"model": {}, "params": {}}])
def test_other_files_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "valid.de.pth")
    with pytest.raises(CheckpointError, match="not binarised text"):
        read_binarised(tmp_path / "valid.de.pth")


def test_a_corpus_of_ours(
    golden_files: dict[tuple[str, str], Path], shared: Path, tmp_path: Path, golden_text: tuple[str, str]
) -> None:
    assert golden_files.keys() == {("valid", "de"), ("valid", "en")}
    write_corpus(tmp_path, golden_files, ["de", "en"], golden_text[1])
    corpus = Corpus(tmp_path)
    corpus.verify()
    assert corpus.languages == {"de": 0, "en": 1}
    assert corpus.vocab_path.read_text() == golden_text[0]
    assert corpus.codes_path.read_text() == golden_text[1]
    for (split, language), path in golden_files.items():
        stream = corpus.stream(split, language)
        assert np.array_equal(stream.read(0, stream.n_tokens), unpickle.load(path)["sentences"])
        lines = golden_pieces(shared, f"valid.{language}")
        counts = corpus.manifest["splits"][split][language]
        assert counts["sentences"] == len(lines)
        assert counts["words"] == sum(len(line.replace("@@ ", "").split()) for line in lines)
        assert counts["characters"] is None
        assert counts["unknown"] == 0


def test_words_are_counted_around_unknown_pieces(tmp_path: Path) -> None:
    vocabulary = Vocabulary([("a", 3), ("b@@", 2)])
    # the lines `a odd@@ a` and `b@@ odd`: three words
    ids = np.array([14, 3, 14, 1, 15, 3, 1], dtype=np.uint16)
    write_binarised(tmp_path / "test.en.pth", BinarisedText(ids, np.array([0, 4]), vocabulary, {"odd@@": 1, "odd": 1}))
    (tmp_path / "corpus").mkdir()
    manifest = write_corpus(tmp_path / "corpus", files_in(tmp_path), ["en"], "")
    assert manifest["splits"]["test"]["en"]["words"] == 3
    assert manifest["splits"]["test"]["en"]["unknown"] == 2


def test_the_same_files_give_the_same_lineage(golden_files: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    hashes = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        hashes.add(write_corpus(tmp_path / name, golden_files, ["de", "en"], "")["lineage"])
    assert len(hashes) == 1


def test_different_vocabularies_make_no_corpus(golden_files: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    other = Vocabulary([("a", 1)])
    write_binarised(tmp_path / "test.en.pth", BinarisedText(np.array([14, 1], np.uint16), np.array([0]), other, {}))
    (tmp_path / "corpus").mkdir()
    with pytest.raises(ConfigError, match="vocabulary"):
        write_corpus(tmp_path / "corpus", {**golden_files, **files_in(tmp_path)}, ["de", "en"], "")


@pytest.fixture
def golden_pairs(shared: Path, tmp_path: Path) -> dict[str, list[list[int]]]:
    """The original's parallel text, with an empty sentence on either side, as its files in `tmp_path/"original"`."""
    folder = tmp_path / "original"
    folder.mkdir()
    vocabulary = Vocabulary.from_file(shared / "goldens/bpe/vocab")
    sides = {}
    for language, empty in (("de", 7), ("en", 99)):
        lines = [
            [vocabulary.index(piece) for piece in line.split()]
            for line in golden_pieces(shared, f"parvalid.{language}", limited=True)
        ]
        lines[empty] = []
        ids = np.array([token for line in lines for token in [*line, EOS]], dtype=np.uint16)
        starts = np.cumsum([0, *(len(line) + 1 for line in lines[:-1])])
        write_binarised(folder / f"train.de-en.{language}.pth", BinarisedText(ids, starts, vocabulary, {}))
        sides[language] = [line for number, line in enumerate(lines) if number not in (7, 99)]
    return sides


def test_pairs_come_in_and_go_out(golden_pairs: dict[str, list[list[int]]], shared: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    shutil.copy(shared / "goldens/bpe/valid.de.pth", tmp_path / "original")
    manifest = write_corpus(tmp_path / "corpus", files_in(tmp_path / "original"), ["de", "en"], "")
    assert manifest["pairs"]["train"]["de-en"]["dropped"] == {"empty": 2}
    corpus = Corpus(tmp_path / "corpus")
    corpus.verify()
    assert corpus.has("valid", "de")
    pairs = corpus.pairs("train", "de-en")
    found = pairs.read(np.arange(pairs.n))
    assert [side.tolist() for side, _ in found] == golden_pairs["de"]
    assert [side.tolist() for _, side in found] == golden_pairs["en"]
    assert len(corpus.length_order("train", "de-en").numbers) == 998
    export_corpus(corpus, tmp_path / "back")
    for language, expected in golden_pairs.items():
        text = read_binarised(tmp_path / f"back/train.de-en.{language}.pth")
        assert [part[:-1].tolist() for part in np.split(text.ids, text.starts[1:])] == expected
    assert (tmp_path / "back/valid.de.pth").exists()


def test_a_pair_needs_both_sides_equally_long(golden_pairs: dict[str, list[list[int]]], tmp_path: Path) -> None:
    files = files_in(tmp_path / "original")
    (tmp_path / "corpus").mkdir()
    text = read_binarised(files["train", "de-en.en"])
    write_binarised(files["train", "de-en.en"], replace(text, ids=text.ids[: text.starts[-1]], starts=text.starts[:-1]))
    with pytest.raises(ConfigError, match=r"de\.pth has 1,000 sentences, .*en\.pth 999: they are no pairs"):
        write_corpus(tmp_path / "corpus", files, ["de", "en"], "")
    del files["train", "de-en.en"]
    with pytest.raises(ConfigError, match=r"train\.de-en\.en\.pth: is not there, but the other side of the pair is"):
        write_corpus(tmp_path / "corpus", files, ["de", "en"], "")


def test_names_of_files() -> None:
    assert key_of(Path("x/train.de.pth")) == ("train", "de")
    assert key_of(Path("valid.en-GB.pth")) == ("valid", "en-GB")
    assert key_of(Path("checkpoint.pth")) is None
    assert key_of(Path("valid.de-en.de.pth")) == ("valid", "de-en.de")
    assert key_of(Path("valid.de-en.fr.pth")) is None
    assert key_of(Path("valid.deutsch-en.en.pth")) is None
