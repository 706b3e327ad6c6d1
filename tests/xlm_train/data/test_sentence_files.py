"""Sentences and pairs by number, and their order by length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.xlm_train.conftest import CorpusMaker
from xlm_train.data import sentence_files
from xlm_train.data.corpus import Corpus
from xlm_train.data.manifest import languages_of, lineage
from xlm_train.data.sentence_files import LengthOrder, Pairs, Sentences, is_length_order_of, write_length_order
from xlm_train.runtime.errors import CorpusError
from xlm_train.runtime.files import sha256_of
from xlm_train.text.vocabulary import EOS


def made_lines(n: int, seed: int, longest: int = 6) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(14, 90, random.integers(0, longest)).tolist() for _ in range(n)]


def sentences_of(lines: list[list[int]], sizes: list[int]) -> Sentences:
    shards, first = [], 0
    for size in sizes:
        mine = lines[first : first + size]
        tokens = np.array([i for line in mine for i in [*line, EOS]], dtype=np.uint16)
        shards.append((tokens, np.cumsum([0, *(len(line) + 1 for line in mine)])[:-1].astype(np.int64)))
        first += size
    return Sentences(shards)


def opened(folder: Path, entry: dict[str, Any]) -> LengthOrder:
    return LengthOrder(*(np.load(folder / entry[key], mmap_mode="r") for key in ("file", "classes")))


@pytest.mark.parametrize("sizes", [[50], [1, 0, 30, 19]])
def test_sentences_are_read_by_number(sizes: list[int]) -> None:
    lines = made_lines(50, 0)
    sentences = sentences_of(lines, sizes)
    numbers = np.random.default_rng(1).permutation(50).astype(np.uint32)
    assert sentences.n == 50
    assert [found.tolist() for found in sentences.read(numbers)] == [lines[number] for number in numbers]
    assert sentences.lengths(numbers).tolist() == [len(lines[number]) + 2 for number in numbers]


def test_pairs_are_read_by_number() -> None:
    first, second = made_lines(50, 0), made_lines(50, 1)
    pairs = Pairs(("de", "en"), (sentences_of(first, [20, 30]), sentences_of(second, [33, 17])))
    found = pairs.read(np.array([49, 3, 20, 33]))
    assert [(a.tolist(), b.tolist()) for a, b in found] == [(first[n], second[n]) for n in (49, 3, 20, 33)]
    assert (pairs.name, pairs.n) == ("de-en", 50)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_length_order_is_a_stable_sort(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_files, "CHUNK", chunk)
    first, second = made_lines(200, 0), made_lines(200, 1)
    one = sentences_of(first, [150, 50])
    pairs = Pairs(("de", "en"), (one, sentences_of(second, [200])))
    order = opened(tmp_path, write_length_order(tmp_path, "train.de", one))
    lengths = [len(line) + 2 for line in first]
    assert order.numbers.dtype == np.uint32
    assert order.numbers.tolist() == sorted(range(200), key=lambda n: lengths[n])
    assert order.classes.tolist() == [[length, lengths.count(length)] for length in sorted(set(lengths))]
    both = opened(tmp_path, write_length_order(tmp_path, "train.de-en", pairs))
    keys = [(len(a) + len(b) + 4, len(a) + 2) for a, b in zip(first, second, strict=True)]
    assert both.numbers.tolist() == sorted(range(200), key=lambda n: keys[n])
    assert both.classes.tolist() == [[*key, keys.count(key)] for key in sorted(set(keys))]
    for text, right, wrong in ((one, order, both), (pairs, both, order)):
        assert is_length_order_of(right, text)
        assert not is_length_order_of(LengthOrder(right.numbers[::-1], right.classes), text)
        assert not is_length_order_of(LengthOrder(wrong.numbers, right.classes), text)
    swapped = both.numbers.copy()
    swapped[[8, 9]] = swapped[[9, 8]]
    assert not is_length_order_of(LengthOrder(swapped, both.classes), pairs)
    twice = both.numbers.copy()
    twice[8] = twice[9]
    assert not is_length_order_of(LengthOrder(twice, both.classes), pairs)


def test_no_sentences_have_an_order_too(tmp_path: Path) -> None:
    none = Sentences([])
    order = opened(tmp_path, write_length_order(tmp_path, "train.de", none))
    assert is_length_order_of(order, none)


@pytest.fixture
def corpus(tmp_path: Path, make_corpus: CorpusMaker) -> Path:
    """A corpus of German text and of de-en pairs for training, and of pairs alone for validation."""
    vocab = "".join(f"w{number} {100 - number}\n" for number in range(90))
    pairs = {
        split: {"de-en": {"de": made_lines(40, seed), "en": made_lines(40, seed + 1)}}
        for split, seed in (("train", 3), ("valid", 5))
    }
    return make_corpus(tmp_path / "corpus", vocab, "", {"train": {"de": made_lines(30, 0)}}, pairs=pairs)


def test_a_corpus_gives_sentences_pairs_and_their_orders(corpus: Path) -> None:
    found = Corpus(corpus)
    found.verify()
    assert found.sentences("train", "de").n == 30
    assert found.pair_names("train") == found.pair_names("valid") == ["de-en"]
    assert found.pair_names("test") == []
    pairs = found.pairs("valid", "de-en")
    assert [[side.tolist() for side in pair] for pair in pairs.read(np.arange(40))] == [
        list(pair) for pair in zip(made_lines(40, 5), made_lines(40, 6), strict=True)
    ]
    for split, name, columns in (("train", "de", 2), ("train", "de-en", 3), ("valid", "de-en", 3)):
        order = found.length_order(split, name)
        assert order.classes.shape[1] == columns
        assert order.classes[:, -1].sum() == len(order.numbers)
    with pytest.raises(CorpusError, match=r"no parallel text test\.de-en \(it has train\.de-en, valid\.de-en\)"):
        found.pairs("test", "de-en")


def test_pairs_that_are_not_aligned_are_refused(corpus: Path) -> None:
    manifest = json.loads((corpus / "manifest.json").read_bytes())
    sides = manifest["pairs"]["train"]["de-en"]["sides"]
    del sides["en"]["shards"][1]
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match=r"train\.de-en is not aligned: 40 sentences of de, 20 of en"):
        Corpus(corpus)


def test_a_damaged_length_order_is_found(corpus: Path) -> None:
    path = corpus / "valid.de-en.bylength.npy"
    np.save(path, np.load(path)[::-1])
    with pytest.raises(CorpusError, match=r"valid\.de-en\.bylength\.npy: its checksum"):
        Corpus(corpus).verify()
    manifest = json.loads((corpus / "manifest.json").read_bytes())
    manifest["pairs"]["valid"]["de-en"]["bylength"]["sha256"] = sha256_of(path)
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match=r"valid\.de-en\.bylength\.npy: does not list the sentences of valid\.de-en"):
        Corpus(corpus).verify()
    np.save(path, np.load(path)[:-1])
    with pytest.raises(CorpusError, match=r"valid\.de-en\.bylength\.npy: holds \(39,\)"):
        Corpus(corpus)


def test_pairs_belong_to_the_lineage(corpus: Path) -> None:
    manifest = json.loads((corpus / "manifest.json").read_bytes())
    first = lineage(manifest)
    shard = manifest["pairs"]["train"]["de-en"]["sides"]["de"]["shards"][0]
    shard["sha256"] = "0" * 64
    assert lineage(manifest) != first
    manifest["pairs"] = {}
    assert lineage(manifest) == lineage({name: value for name, value in manifest.items() if name != "pairs"}) != first


@pytest.mark.parametrize(
    ("name", "languages"),
    [
        ("de-en", ("de", "en")),
        ("en-de", ("en", "de")),
        ("en-pt-BR", ("en", "pt-BR")),
        ("pt-BR-en", ("pt-BR", "en")),
        ("de", None),
        ("de-de", None),
        ("pt-br-en", None),
        ("deutsch-en", None),
    ],
)
def test_names_of_pairs(name: str, languages: tuple[str, str] | None) -> None:
    assert languages_of(name) == languages


def test_a_corpus_of_an_earlier_version_opens_and_says_what_it_lacks(shared: Path) -> None:
    corpus = Corpus(shared / "goldens/old_run/corpus")
    corpus.verify()
    assert corpus.lineage == lineage(corpus.manifest)
    sentences = corpus.sentences("train", "de")
    stream = corpus.stream("train", "de")
    assert sentences.n == stream.n_sentences
    words = np.concatenate(sentences.read(np.arange(sentences.n)))
    whole = stream.read(0, stream.n_tokens)
    assert np.array_equal(words, whole[whole != EOS])
    with pytest.raises(CorpusError, match=r"does not list its sentences by length.*run the same xlm-prep again"):
        corpus.length_order("train", "de")
    with pytest.raises(CorpusError, match=r"has no parallel text train\.de-en \(it has none\).*'pairs\.de-en\.train="):
        corpus.pairs("train", "de-en")
