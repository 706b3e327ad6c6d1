"""The whole preparation: what comes out, the same however it is made, and what happens when things go wrong."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from data_prep.counters import most_frequent
from data_prep.distributed import Share
from data_prep.prepare import prepare
from data_prep.publish import locked
from data_prep.settings import read_settings
from data_prep.work import compress, save
from tests.conftest import PATIENCE, REPOSITORY, golden_pieces
from xlm_train.config.overrides import config_folder
from xlm_train.data import manifest
from xlm_train.data.corpus import Corpus
from xlm_train.runtime.errors import ConfigError, TextError, UserError
from xlm_train.text.bpe import BpeEncoder
from xlm_train.text.bpe_codes import BpeCodes, read_limit
from xlm_train.text.tokenise import Tokeniser
from xlm_train.text.vocabulary import EOS, UNK, Vocabulary

WORDS = {
    "de": "der die das und nicht ein Haus Häuser Straße läuft schöner größte Übung Zug Züge spät früh sagte 1984 usw.",
    "en": "the and of not a house houses street runs nicer greatest exercise train trains late early said 1984 etc.",
}


def made_text(language: str, n: int, seed: int) -> list[str]:
    """Distinct made-up sentences."""
    draw = random.Random(f"{language}{seed}")
    words = WORDS[language].split()
    return [f"{' '.join(draw.choices(words, k=draw.randint(2, 12)))} {seed}-{number}." for number in range(n)]


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Two training files a language, and a valid and a test file."""
    folder = tmp_path / "text"
    folder.mkdir()
    found: dict[str, dict[str, Any]] = {"train": {}, "valid": {}, "test": {}}
    for language in ("de", "en"):
        names = [write(folder / f"train{part}.{language}", made_text(language, 300, part)) for part in (0, 1)]
        found["train"][language] = names
        found["valid"][language] = write(folder / f"valid.{language}", made_text(language, 40, 2))
        found["test"][language] = write(folder / f"test.{language}", made_text(language, 30, 3))
    return found


def request(out: Path | str, texts: dict[str, dict[str, Any]], **changes: Any) -> DictConfig:
    """A request as the command line makes it: the shipped configuration with changes; `bpe__n_codes` is bpe.n_codes."""
    config = OmegaConf.load(config_folder() / "prep.yaml")
    del config["hydra"], config["defaults"]
    config = OmegaConf.merge(config, {"out": str(out), "workers": 1, "bpe": {"n_codes": 60}, **texts})
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    return config  # type: ignore[return-value]


def run(out: Path, texts: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    manifest = prepare(read_settings(request(out, texts, **changes)))
    Corpus(out).verify()
    return manifest


def problems(out: Path, texts: dict[str, dict[str, Any]], **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read_settings(request(out, texts, **changes))
    return "\n".join(caught.value.problems)


def files_of(out: Path) -> dict[str, bytes]:
    """Every byte of a corpus but the time it was made."""
    found = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != ".lock"}
    manifest = json.loads(found.pop("manifest.json"))
    del manifest["created"]
    return found | {"manifest": json.dumps(manifest).encode()}


def lines_of(out: Path, split: str, language: str) -> list[str]:
    """The sentences of a corpus, as BPE pieces."""
    manifest = json.loads((out / "manifest.json").read_bytes())
    vocabulary = Vocabulary.from_file(out / "vocab")
    lines = []
    for shard in manifest["splits"][split][language]["shards"]:
        ids, index = np.load(out / shard["file"]), np.load(out / shard["index"])
        for sentence in np.split(ids, index[1:]):
            assert sentence[-1] == EOS
            lines.append(" ".join(vocabulary.words[token] for token in sentence[:-1]))
    return lines


def words_of(out: Path, split: str, language: str) -> list[str]:
    return [line.replace("@@ ", "") for line in lines_of(out, split, language)]


def read_text(value: str | list[str]) -> list[str]:
    names = [value] if isinstance(value, str) else value
    return [line for name in names for line in Path(name).read_text(encoding="utf-8").split("\n")[:-1]]


# ---- what comes out


def test_the_corpus_is_the_text_tokenised_and_encoded(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    out = tmp_path / "out"
    manifest = run(out, texts)
    codes = BpeCodes.from_file(out / "codes")
    counted: Counter[str] = Counter()
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            raw = read_text(texts[split][language])
            tokens = Tokeniser(language).tokenise(raw)
            limit = None if split == "train" else read_limit(out / f"vocab.{language}")
            encoder = BpeEncoder(codes, limit)
            expected = [" ".join(map(encoder.encode_text, line.split(" "))) for line in tokens]
            vocabulary = Vocabulary.from_file(out / "vocab")
            known = [" ".join(p if p in vocabulary else "<unk>" for p in line.split(" ")) for line in expected]
            assert lines_of(out, split, language) == known
            entry = manifest["splits"][split][language]
            pieces = [piece for line in expected for piece in line.split(" ")]
            assert entry["sentences"] == entry["lines"] == len(raw)
            assert entry["tokens"] == len(pieces) + len(raw)
            assert entry["unknown"] == sum(piece not in vocabulary for piece in pieces)
            assert entry["words"] == sum(len(line.split(" ")) for line in tokens)
            assert entry["characters"] == sum(map(len, raw))
            if split == "train":
                counted.update(pieces)
    assert Vocabulary.from_file(out / "vocab").to_text() == Vocabulary.from_counts(counted).to_text()
    assert manifest["languages"] == {"de": 0, "en": 1}
    assert manifest["dtype"] == "uint16"
    assert {path.name for path in out.iterdir()} >= {"manifest.json", "codes", "vocab", "vocab.de", "vocab.en"}
    assert not (out / ".work").exists()


@pytest.mark.parametrize("changes", [{"workers": 2, "piece_bytes": 3000}, {"piece_bytes": 1}, {"piece_bytes": 700}])
def test_workers_and_pieces_change_no_byte(
    tmp_path: Path, texts: dict[str, dict[str, Any]], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"bpe__sample_sentences": 200, "deduplicate": True, "holdout__sentences": 10, "shard_tokens": 2000}
    first, second = tmp_path / "first", tmp_path / "second"
    if changes["piece_bytes"] == 1:  # a piece a line: a short text is enough
        for language in ("de", "en"):
            lines = read_text(texts["valid"].pop(language))
            texts["train"][language] = write(tmp_path / f"short.{language}", lines + lines[:5])
            del texts["test"][language]
    run(first, texts, **settings)
    if changes["piece_bytes"] == 1:  # as of much text: results of results, many parts, many runs
        for name, value in {"work.FAN": 3, "assign.FAN": 3, "assign.PART_LINES": 10}.items():
            monkeypatch.setattr(f"data_prep.{name}", value)
        monkeypatch.setattr("xlm_train.data.sentence_files.CHUNK", 7)
    run(second, texts, **settings, **changes)
    assert files_of(first) == files_of(second)


def test_given_codes_and_vocabulary_give_the_same_corpus(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    manifest = run(first, texts)
    again = run(second, texts, codes=str(first / "codes"), vocab=str(first / "vocab"))
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            assert again["splits"][split][language]["shards"] == manifest["splits"][split][language]["shards"]
    for name in ("codes", "vocab", "vocab.de", "vocab.en"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_vocabulary_limit_can_be_switched_off(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    write(Path(texts["valid"]["de"]), ["Der house train sagte houses."])  # merged only in English
    run(tmp_path / "with", texts)
    run(tmp_path / "without", texts, bpe__vocab_limit=[])
    limited, free = (lines_of(tmp_path / name, "valid", "de")[0] for name in ("with", "without"))
    assert "house" not in limited
    assert "house" in free
    assert len(limited.split(" ")) > len(free.split(" "))


def test_other_text_is_prepared_without_training_text(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    whole = run(tmp_path / "whole", texts)
    files = {name: str(tmp_path / "whole" / name) for name in ("codes", "vocab")}
    own = {language: str(tmp_path / "whole" / f"vocab.{language}") for language in ("de", "en")}
    del texts["train"]
    given = run(tmp_path / "given", texts, **files, language_vocab=own)
    free = run(tmp_path / "free", texts, **files)
    run(tmp_path / "off", texts, **files, bpe__vocab_limit=[])
    assert set(given["splits"]) == {"valid", "test"}
    for split in ("valid", "test"):
        for language in ("de", "en"):
            shards = [found["splits"][split][language]["shards"] for found in (whole, given)]
            assert shards[0] == shards[1]
            assert lines_of(tmp_path / "free", split, language) == lines_of(tmp_path / "off", split, language)
    assert not any("no vocabulary limit" in warning for warning in given["warnings"])
    assert any("no vocabulary limit" in warning for warning in free["warnings"])
    assert {path.name for path in (tmp_path / "given").glob("vocab.*")} == {"vocab.de", "vocab.en"}
    with pytest.raises(UserError, match=r"has no text for train\.en"):
        Corpus(tmp_path / "free").stream("train", "en")


def test_a_split_taken_away_makes_another_corpus(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    run(tmp_path / "first", texts)
    files = {name: str(tmp_path / "first" / name) for name in ("codes", "vocab")}
    del texts["train"]
    run(tmp_path / "out", texts, **files)
    del texts["test"]
    with pytest.raises(UserError, match=r"test\.de: not there now; test\.en: not there now"):
        run(tmp_path / "out", texts, **files)
    assert set(run(tmp_path / "out", texts, **files, overwrite=True)["splits"]) == {"valid"}


def test_text_without_training_text_needs_codes_and_vocabulary(
    tmp_path: Path, texts: dict[str, dict[str, Any]]
) -> None:
    vocab = write(tmp_path / "vocab.de", ["a 1"])
    del texts["train"]
    found = problems(tmp_path / "out", texts, language_vocab={"de": vocab, "fr": str(tmp_path / "none")})
    assert "no training text is given" in found
    assert "language_vocab.en: is not given" in found
    assert "language_vocab.fr: no text of fr is given" in found
    assert f"language_vocab.fr: {tmp_path / 'none'}" in found
    assert "language_vocab: needs the codes" in found


def test_any_languages_and_a_single_path_are_taken(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    other = write(tmp_path / "fr.txt", [f"L'été n'est pas fini, {number}." for number in range(100)])
    single = {"train": {"fr": other, "en": texts["train"]["en"][0]}}
    manifest = run(tmp_path / "out", single, holdout__sentences=10)
    assert manifest["languages"] == {"en": 0, "fr": 1}
    assert words_of(tmp_path / "out", "train", "fr")[0].startswith("L' été n' est pas fini ,")


def test_the_lineage_names_the_text_and_the_settings(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    lineages = {run(tmp_path / "a", texts)["lineage"], run(tmp_path / "b", texts, workers=2, keep_work=True)["lineage"]}
    moved = {split: {} for split in texts}
    (tmp_path / "elsewhere").mkdir()
    for split, per_language in texts.items():
        for language, value in per_language.items():
            names = [value] if isinstance(value, str) else value
            moved[split][language] = [shutil.copy(name, tmp_path / "elsewhere") for name in names]
    lineages.add(run(tmp_path / "c", moved)["lineage"])
    assert len(lineages) == 1
    lineages.add(run(tmp_path / "d", texts, bpe__n_codes=61)["lineage"])
    with open(texts["train"]["de"][0], "a") as file:
        file.write("Noch ein Satz.\n")
    lineages.add(run(tmp_path / "e", texts)["lineage"])
    assert len(lineages) == 3


def test_it_gives_what_the_originals_chain_gives(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw text to ids against perl, fastBPE and the original's indexing, all stages through: the same, byte for byte.

    Words are added up in many parts, as in large text, and stand in the order of the text again.
    """
    monkeypatch.setattr("data_prep.prepare.PART_BYTES", 1 << 18)
    corpora, goldens, out = shared / "corpora", shared / "goldens" / "bpe", tmp_path / "out"
    texts: dict[str, dict[str, Any]] = {
        split: {language: str(corpora / f"{name}.{language}.gz") for language in ("en", "de")}
        for split, name in (("train", "voice.train"), ("valid", "novels.valid"), ("test", "sutta.parvalid"))
    }
    run(out, texts, workers=2, bpe__n_codes=6000, bpe__sample="all")
    for name in ("codes", "vocab", "vocab.de", "vocab.en"):
        assert (out / name).read_bytes() == (goldens / name).read_bytes(), name
    vocabulary = Vocabulary.from_file(out / "vocab")
    for language in ("de", "en"):
        for split, name in (("train", "train"), ("valid", "novels"), ("test", "parvalid")):
            expected = golden_pieces(shared, f"{name}.{language}", limited=split != "train")
            known = [" ".join(p if p in vocabulary else "<unk>" for p in line.split()) for line in expected]
            assert lines_of(out, split, language) == known, (split, language)


# ---- which sentences go where


def test_sentences_are_held_out_where_a_split_is_not_given(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    train = {"train": texts["train"]}
    copies = read_text(texts["train"]["de"])
    write(Path(texts["train"]["de"][1]), copies[300:] + copies[:300])  # every sentence of the first file a second time
    out = tmp_path / "out"
    manifest = run(out, train, holdout__sentences=50)
    raw = set(Tokeniser("de").tokenise(copies))
    found = {split: words_of(out, split, "de") for split in ("train", "valid", "test")}
    assert len(found["valid"]) == len(set(found["valid"])) == len(found["test"]) == 50
    assert not set(found["valid"]) & set(found["test"])
    assert not set(found["train"]) & set(found["valid"] + found["test"])
    assert set(found["train"]) | set(found["valid"]) | set(found["test"]) == raw
    assert manifest["splits"]["train"]["de"]["held_out"] == 900 - len(found["train"])
    assert manifest["splits"]["valid"]["de"]["inputs"] == manifest["splits"]["train"]["de"]["inputs"]

    other = tmp_path / "other"
    run(other, train, holdout__sentences=50, seed=1)
    assert words_of(other, "valid", "de") != found["valid"]


def test_only_the_split_that_is_not_given_is_held_out(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    del texts["test"]
    manifest = run(tmp_path / "out", texts, holdout__sentences=7)
    assert manifest["splits"]["valid"]["en"]["sentences"] == 40
    assert manifest["splits"]["test"]["en"]["sentences"] == 7
    assert manifest["splits"]["train"]["en"]["sentences"] == 593


def test_of_little_text_a_share_is_held_out_and_said_to_be(
    tmp_path: Path, texts: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    splits = run(tmp_path / "out", {"train": texts["train"]}, holdout__sentences=300)["splits"]
    assert [splits[split]["de"]["sentences"] for split in ("train", "valid", "test")] == [540, 30, 30]
    told = "train.de has 600 different sentences, too few to hold out holdout.sentences=300 for valid and test: 30 for each"
    assert told in capsys.readouterr().err
    one = {"train": {"de": write(tmp_path / "tiny", made_text("de", 19, 0))}}
    with pytest.raises(
        UserError, match=r"train\.de has 19 different sentences, too few to hold any out: .*valid\.de and"
    ):
        run(tmp_path / "none", one)
    assert not (tmp_path / "none" / "manifest.json").exists()


@pytest.mark.parametrize("piece_bytes", [3000, 1 << 20])
def test_duplicates_are_counted_and_left_out_if_wanted(
    tmp_path: Path, texts: dict[str, dict[str, Any]], piece_bytes: int
) -> None:
    lines = read_text(texts["train"]["en"][0])
    write(Path(texts["train"]["en"][1]), ["", *lines[:100], "", " " + lines[3] + "  ", "A new one."])
    kept = run(tmp_path / "kept", texts, piece_bytes=piece_bytes)["splits"]["train"]["en"]
    assert (kept["duplicates"], kept["duplicates_exact"], kept["dropped"]["duplicates"]) == (101, True, 0)
    assert (kept["lines"], kept["empty"], kept["sentences"]) == (404, 2, 404)
    gone = run(tmp_path / "gone", texts, piece_bytes=piece_bytes, deduplicate=True)["splits"]["train"]["en"]
    assert (gone["duplicates"], gone["dropped"]["duplicates"], gone["sentences"]) == (101, 101, 303)
    expected = Tokeniser("en").tokenise([*lines, "", "", "A new one."])
    assert words_of(tmp_path / "gone", "train", "en") == expected


def test_overlap_with_test_text_is_counted_and_left_out_if_wanted(
    tmp_path: Path, texts: dict[str, dict[str, Any]]
) -> None:
    train = read_text(texts["train"]["de"])
    write(Path(texts["test"]["de"]), ["Ganz neu.", train[5], train[400], train[5]])
    kept = run(tmp_path / "kept", texts)["splits"]
    assert kept["test"]["de"]["overlap"] == {"lines_in_train": 3}
    assert kept["valid"]["de"]["overlap"] == {"lines_in_train": 0}
    assert kept["train"]["de"]["overlap"] == {"lines_in_valid_or_test": 2, "removed": False}
    assert kept["train"]["de"]["sentences"] == 600
    gone = run(tmp_path / "gone", texts, remove_test_overlap=True)["splits"]
    assert gone["train"]["de"]["dropped"]["test_overlap"] == 2
    expected = Tokeniser("de").tokenise([line for line in train if line not in (train[5], train[400])])
    assert words_of(tmp_path / "gone", "train", "de") == expected
    assert gone["test"]["de"]["sentences"] == 4


def test_a_lower_cased_corpus_compares_lower_cased_sentences(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    write(Path(texts["test"]["de"]), ["Über Nacht.", "Ganz neu."])
    write(
        Path(texts["train"]["de"][0]),
        ["über nacht.", "ÜBER NACHT.", "uber nacht.", "Ein Satz.", "ein satz.", *made_text("de", 300, 3)],
    )
    settings: dict[str, Any] = {"remove_test_overlap": True, "deduplicate": True}
    dropped = {
        name: run(tmp_path / name, texts, **settings, **changes)["splits"]["train"]["de"]["dropped"]
        for name, changes in {
            "as_it_is": {},
            "lower": {"lowercase": True},
            "plain": {"lowercase": True, "remove_accents": True},
        }.items()
    }
    found = {name: (counts["test_overlap"], counts["duplicates"]) for name, counts in dropped.items()}
    repeated = found["as_it_is"][1]
    assert found == {"as_it_is": (0, repeated), "lower": (2, repeated + 1), "plain": (3, repeated + 1)}


@pytest.mark.parametrize("shared", [1, 40])
def test_a_test_set_that_shares_lines_with_validation_is_told(
    tmp_path: Path, texts: dict[str, dict[str, Any]], shared: int
) -> None:
    valid = read_text(texts["valid"]["de"])
    write(Path(texts["test"]["de"]), valid[:shared] + made_text("de", 40 - shared, 7))
    manifest = run(tmp_path / "out", texts)
    told = f"test.de: {shared} of 40 lines in the validation text too"
    assert any(warning.startswith(told) for warning in manifest["warnings"])
    assert manifest["splits"]["test"]["de"]["overlap"] == {"lines_in_train": 0, "lines_in_valid": shared}
    assert not any(warning.startswith("test.en") and "validation" in warning for warning in manifest["warnings"])


def test_one_over_long_line_is_told_with_its_place(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    first = read_text(texts["train"]["de"][1])
    write(Path(texts["train"]["de"][1]), [*first[:6], "x" * 900, *first[6:]])
    warnings = run(tmp_path / "out", texts, max_line_bytes=800)["warnings"]
    place = f"line 7 of {texts['train']['de'][1]}"
    assert any(f"train.de: 1 line above max_line_bytes left out (the first is {place})" in w for w in warnings)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_text_of_over_long_lines_alone_is_refused(tmp_path: Path, texts: dict[str, dict[str, Any]], split: str) -> None:
    write(tmp_path / "long", ["x" * 900, "y" * 900])
    texts[split]["de"] = str(tmp_path / "long")
    with pytest.raises(UserError, match=rf"^{split}\.de: no line is left of it: 2 are longer than max_line_bytes=800$"):
        run(tmp_path / "out", texts | {"test": {}}, max_line_bytes=800, deduplicate=True)


@pytest.mark.parametrize(
    ("blank", "told"), [(["de"], "^de: its training text holds no word$"), (["de", "en"], "no word of two characters")]
)
def test_training_text_of_blank_lines_alone_is_refused(
    tmp_path: Path, texts: dict[str, dict[str, Any]], blank: list[str], told: str
) -> None:
    for n, language in enumerate(blank, start=5):
        texts["train"][language] = write(tmp_path / language, [""] * n)
    with pytest.raises(UserError, match=told):
        run(tmp_path / "out", texts)


def test_any_name_of_the_output_folder_will_do(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    write(tmp_path / "a", ["of somebody"])
    run(tmp_path / "a\u2028b\nc", texts)  # U+2028 and the newline end lines, to Python's splitlines
    assert read_text(str(tmp_path / "a")) == ["of somebody"]


def test_another_encoding_is_told_before_the_work(
    tmp_path: Path, texts: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(texts["train"]["de"][0])
    path.write_bytes(path.read_bytes().decode().encode("latin-1"))
    run(tmp_path / "out", texts)
    errors = capsys.readouterr().err
    assert f"warning: {path}: " in errors
    assert "are not UTF-8, the first 0x" in errors
    assert errors.index("not UTF-8") < errors.index("\ntokenise ")
    assert errors.count("not UTF-8") == 1


def test_parallel_sets_stay_aligned_or_are_refused(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    manifest = run(tmp_path / "out", texts, parallel=["valid", "test"])
    assert manifest["parallel"] == {"valid": ["de", "en"], "test": ["de", "en"]}
    write(Path(texts["test"]["de"]), ["Einer."])
    with pytest.raises(
        UserError, match=r"parallel=test: not line-aligned: test\.de has 1 lines, test\.en has 30 lines"
    ):
        run(tmp_path / "short", texts, parallel=["test"])
    write(Path(texts["test"]["de"]), ["x" * 500] * 30)
    with pytest.raises(
        UserError, match=r"test\.de: line 1 of .*test\.de is longer than max_line_bytes=400; parallel text"
    ):
        run(tmp_path / "long", texts, parallel=["test"], max_line_bytes=400)


# ---- the shipped corpora


def composed(out: Path, name: str, *more: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        return compose("prep", overrides=[f"corpus={name}", f"out={out}", "bpe.n_codes=60", "workers=1", *more])


def test_news_crawl_is_prepared_as_it_is_published(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "news_crawl").mkdir(parents=True)
    (raw / "dev").mkdir()
    for language in ("de", "en"):
        for number, kind in enumerate(("2007.{}.shuffled", "2014.{}.shuffled.v2", "2017.{}.shuffled.deduped")):
            text = "".join(f"{line}\n" for line in made_text(language, 50, number))
            name = f"news.{kind.format(language)}.gz"
            (raw / "news_crawl" / name).write_bytes(gzip.compress(text.encode()))
        segments = "".join(f"<seg>{line}</seg>\n" for line in made_text(language, 20, 9))
        other = "ende" if language == "de" else "deen"
        for name in (f"newstest2013-ref.{language}.sgm", f"newstest2016-{other}-ref.{language}.sgm"):
            (raw / "dev" / name).write_text(segments)
    manifest = prepare(read_settings(composed(tmp_path / "out", "news_crawl_ende", f"raw={raw}")))
    assert [Path(entry["path"]).name for entry in manifest["splits"]["train"]["de"]["inputs"]] == [
        "news.2007.de.shuffled.gz",
        "news.2014.de.shuffled.v2.gz",
        "news.2017.de.shuffled.deduped.gz",
    ]
    assert manifest["splits"]["train"]["en"]["sentences"] == 150
    assert manifest["splits"]["test"]["de"]["sentences"] == 20
    assert manifest["parallel"] == {"valid": ["de", "en"], "test": ["de", "en"]}


def test_wikipedia_is_prepared_in_the_hubs_layout(tmp_path: Path) -> None:
    more = ["holdout.sentences=10"]
    for language in ("de", "en"):
        folder = tmp_path / language / "data"
        folder.mkdir(parents=True)
        rows = ["\n\n".join(made_text(language, 20, number)) for number in range(5)]
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), folder / "train-00000-of-00001.parquet")
        more += [f"train.{language}.dataset={folder.parent}", f"train.{language}.config=null"]
    manifest = prepare(read_settings(composed(tmp_path / "out", "wikipedia_ende", *more)))
    assert manifest["splits"]["train"]["de"]["sentences"] == 80
    assert manifest["splits"]["train"]["de"]["inputs"][0]["path"] == f"{tmp_path / 'de'}/train"


# ---- nasty text


def test_nasty_bytes_are_treated_and_counted(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    raw = b"\xef\xbb\xbfErste Zeile.\r\nGr\xfc\xdfe \xe4\x00\x07 hier.\n"
    raw += b"mit\xe2\x80\xa8Trenner\xc2\x85und\xe2\x80\xa9Ende\n"
    raw += b"\n" + b"x" * 5000 + b"\nohne Zeilenende"
    Path(texts["train"]["de"][0]).write_bytes(raw)
    manifest = run(tmp_path / "out", texts, max_line_bytes=4000)
    entry = manifest["splits"]["train"]["de"]
    assert entry["lines"] == 306
    assert entry["sentences"] == 305
    assert entry["dropped"]["too_long"] == 1
    assert entry["empty"] == 1
    counts = {name: entry["raw"][name] for name in ("bom", "crlf", "control", "replaced")}
    assert counts == {"bom": 1, "crlf": 1, "control": 2, "replaced": 3}
    words = words_of(tmp_path / "out", "train", "de")
    assert words[0] == "Erste Zeile ."
    assert words[1] == "Gr \ufffd \ufffd e \ufffd hier ."
    assert words[2:5] == ["mit Trenner und Ende", "", "ohne Zeilenende"]


def test_lines_of_white_space_are_empty_sentences(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    """As in the original, which splits lines of pieces at any white space."""
    lines = ["Anfang.", " ", "\u00a0", "\u3000", "\u2028", "\u00a0\u00a0", "\t", "Ende."]
    write(Path(texts["train"]["de"][0]), lines)
    manifest = run(tmp_path / "out", texts)
    ids = np.concatenate([shard.tokens for shard in Corpus(tmp_path / "out").stream("train", "de").shards])
    ends = np.flatnonzero(ids == EOS)[: len(lines)]
    assert np.diff(ends)[:-1].tolist() == [1] * (len(lines) - 2)
    assert UNK not in ids
    assert words_of(tmp_path / "out", "train", "de")[: len(lines)] == ["Anfang .", *[""] * (len(lines) - 2), "Ende ."]
    assert manifest["splits"]["train"]["de"]["unknown"] == 0


def test_decode_errors_can_stop_with_the_place(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    path = Path(texts["train"]["de"][0])
    head = b"\xef\xbb\xbfeins\n" + b"y" * 900 + b"\nzwei\n" * 200
    path.write_bytes(head + b"dr\xfcben\n")
    line, offset = head.count(b"\n") + 1, len(head) + 2
    for workers in (1, 2):
        with pytest.raises(TextError) as caught:
            run(tmp_path / "out", texts, decode_errors="stop", max_line_bytes=800, piece_bytes=600, workers=workers)
        assert f"train0.de: line {line:,}, byte {offset:,}: byte 0xfc is not UTF-8" in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_special_words_spelled_in_the_text_get_no_special_ids(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    first = tmp_path / "first"
    run(first, texts)
    codes = tmp_path / "codes"  # merges that put together what the tokeniser leaves of such words
    codes.write_text((first / "codes").read_text() + "< /s></w> 1\n/ s></w> 1\ns ></w> 1\n< unk></w> 1\nunk ></w> 1\n")
    write(Path(texts["train"]["en"][0]), ["a </s> b <unk> c <special3> d <pad>"] * 5)
    manifest = run(tmp_path / "out", texts, codes=str(codes))
    corpus = Corpus(tmp_path / "out")
    ids = np.concatenate([shard.tokens for shard in corpus.stream("train", "en").shards])
    assert np.all((ids == EOS) | (ids == UNK) | (ids >= 14))
    assert int((ids == EOS).sum()) == manifest["splits"]["train"]["en"]["sentences"]


# ---- mistakes


def test_all_mistakes_are_found_together(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    texts["train"]["en"] = [str(tmp_path / "missing.txt"), texts["train"]["en"][0]]
    del texts["valid"]["de"]
    texts["test"]["fr"] = texts["test"]["de"]
    found = problems(
        tmp_path / "out",
        texts,
        bpe__engine="magic",
        bpe__n_codes=0,
        bpe__alpha="much",
        decode_errors="ignore",
        workers=0,
        deduplicate="yes",
        parallel=["train", "nothing"],
        vocab=str(tmp_path / "vocab"),
        bpe__vocab_limit=["everywhere"],
    )
    for expected in (
        "train.en: " + str(tmp_path / "missing.txt") + ": there is no such file",
        "valid.de: is not given, but other text of de or valid is",
        "train.fr: is not given, but other text of fr or train is; give it",
        "test.fr: " + texts["test"]["de"] + " is given twice (also in test.de)",
        "bpe.engine=magic: must be one of builtin, fastbpe",
        "bpe.n_codes=0: must be a whole number from 1",
        "bpe.alpha=much: must be a number",
        "decode_errors=ignore: must be one of replace, stop",
        "workers=0: must be a whole number",
        "deduplicate=yes: must be true or false",
        "parallel=train: train cannot be parallel text",
        "parallel=nothing: must be among train, valid, test",
        f"vocab={tmp_path / 'vocab'}: needs the codes it was made with",
        "bpe.vocab_limit=everywhere: must be among train, valid, test",
    ):
        assert expected in found
    assert not (tmp_path / "out").exists()


def test_keys_that_do_not_exist_are_mistakes(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    found = problems(tmp_path / "out", texts, shard_token=5, bpe__ncodes=3, train="x.txt", parallel="nothing")
    assert "shard_token=5: there is no 'shard_token' (did you mean shard_tokens" in found
    assert "bpe.ncodes=3: there is no 'bpe.ncodes' (did you mean bpe.n_codes" in found
    assert "train=x.txt: which language? give train.en=... (any language code)" in found
    assert "parallel=nothing: must be among train, valid, test" in found


def test_no_text_at_all_is_an_error(tmp_path: Path) -> None:
    assert "no text is given: train.LANG=" in problems(tmp_path / "out", {})


def test_a_file_for_training_and_test_is_an_error(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    texts["test"]["de"] = texts["train"]["de"][1]
    assert "is given twice (also in train.de)" in problems(tmp_path / "out", texts)


def test_codes_and_vocabulary_must_belong_together(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    run(tmp_path / "one", texts)
    vocab = tmp_path / "mismatched"
    vocab.write_text(
        "".join(f"{word} {50 - number}\n" for number, word in enumerate(["alpha", "beta", "gamma", "delta"]))
    )
    found = problems(tmp_path / "out", texts, codes=str(tmp_path / "one" / "codes"), vocab=str(vocab))
    assert f"vocab={vocab}: does not belong to codes=" in found
    broken = tmp_path / "broken"
    broken.write_text("only two\n")
    assert "broken:1" in problems(tmp_path / "out", texts, codes=str(broken))
    assert "no_such" in problems(tmp_path / "out", texts, codes=str(tmp_path / "no_such"))


def test_files_of_something_else_in_the_output_are_not_overwritten(
    tmp_path: Path, texts: dict[str, dict[str, Any]]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "codes").write_text("mine\n")
    assert "holds codes from elsewhere" in problems(out, texts)
    (out / "codes").unlink()
    (out / "manifest.json").write_text("{}\n")
    with pytest.raises(UserError, match=r"its manifest\.json is not of a binarised corpus"):
        run(out, texts)


def test_an_output_that_cannot_be_made_is_an_error(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    (tmp_path / "file").touch()
    assert "is a file; name a folder" in problems(tmp_path / "file", texts)
    assert "cannot be made" in problems(tmp_path / "file" / "below", texts)
    with pytest.raises(UserError, match="out=/proc/corpus: cannot be made: /proc is not writable"):
        run(Path("/proc/corpus"), texts, check_disk=False)


def test_too_little_room_is_said_before_the_work(
    tmp_path: Path, texts: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    assert "0.0 MB are free" in problems(tmp_path / "out", texts)
    read_settings(request(tmp_path / "out", texts, check_disk=False))


def test_a_second_run_into_one_folder_is_refused(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    with locked(tmp_path / "out"), pytest.raises(UserError, match=rf"another xlm-prep \(process {os.getpid()} on "):
        run(tmp_path / "out", texts)
    run(tmp_path / "out", texts)


# ---- learning


def test_too_many_codes_for_the_text_are_told_with_a_number_that_fits(
    tmp_path: Path, texts: dict[str, dict[str, Any]]
) -> None:
    warnings = run(tmp_path / "many", texts, bpe__n_codes=5000)["warnings"]
    told = [
        found
        for w in warnings
        if (found := re.search(r"valid\.de: .* unknown: bpe\.n_codes=5000 is .*about (\d+) ", w))
    ]
    assert told
    fewer = int(told[0][1])
    assert 10 < fewer < 500
    assert not any("of the tokens are unknown" in w for w in run(tmp_path / "few", texts, bpe__n_codes=5)["warnings"])


def test_the_rarest_words_can_be_left_out_of_learning(
    tmp_path: Path, texts: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    texts["train"] = {"de": write(tmp_path / "few", ["haus haus haus maus maus zug"] * 3 + ["rad bus"] * 3)}
    texts["valid"], texts["test"] = ({"de": write(tmp_path / name, ["haus"])} for name in ("valid", "test"))

    def merged(out: str, **changes: Any) -> set[str]:
        run(tmp_path / out, texts, bpe__n_codes=50, **changes)
        return {left + right for left, right, _ in BpeCodes.from_file(tmp_path / out / "codes").merges}

    assert {"haus</w>", "maus</w>", "zug</w>", "rad</w>", "bus</w>"} <= merged("all")
    capsys.readouterr()
    # three words come equally often, so that all of them go
    assert merged("most", bpe__max_words=4) & {"haus</w>", "maus</w>", "zug</w>", "rad</w>", "bus</w>"} == {
        "haus</w>",
        "maus</w>",
    }
    assert "words that come up to 3 times are left out (bpe.max_words=4): 37.50% of the text" in capsys.readouterr().err
    assert merged("none", bpe__max_words=None) == merged("all2") == merged("all3", bpe__sample="all", bpe__max_words=4)


def test_no_more_words_are_learned_from_than_wanted_however_often_they_come(tmp_path: Path) -> None:
    often = {"haus": 900_000, "maus": 800_000, "zug": 70_000, "rad": 70_000, "bus": 3}
    for part in (0, 1):
        words = list(often)[part::2]
        save(
            tmp_path / f"{part}.npz",
            words=compress("\n".join(words).encode()),
            counts=np.array([often[word] for word in words]),
            places=np.arange(part, len(often), 2),
        )
    for most, kept, rarest in ((5, 5, 0), (4, 4, 3), (3, 2, 70_000), (2, 2, 70_000), (1, 1, 800_000), (0, 0, 900_000)):
        counts, *gone = most_frequent([tmp_path / "0.npz", tmp_path / "1.npz"], most)
        assert list(counts.items()) == list(often.items())[:kept]
        assert gone == [rarest, sum(often.values()) - sum(counts.values())]


# ---- interruptions


def in_child(action: Callable[[], Any]) -> int:
    """Run `action` in a forked process. Returns its wait status; an exit status of 3 stands for UserError."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            status = 3
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def killed_after(writes: int) -> None:
    """Have this process killed by SIGKILL right after its n-th file comes to its place."""
    replace, done = os.replace, 0

    def counted(*arguments: Any, **options: Any) -> None:
        nonlocal done
        replace(*arguments, **options)
        done += 1
        if done == writes:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted  # type: ignore[assignment]


def test_killed_after_every_single_write_it_ends_with_the_same_bytes(
    tmp_path: Path, texts: dict[str, dict[str, Any]]
) -> None:
    del texts["test"]
    run(tmp_path / "first", texts, holdout__sentences=10)
    changes = {"codes": str(tmp_path / "first" / "codes"), "holdout__sentences": 10, "piece_bytes": 10_000}
    run(tmp_path / "whole", texts, **changes)
    out = tmp_path / "out"

    for attempt in range(150):

        def work(
            writes: int = attempt % 4 + 1,
        ) -> None:  # a shard is three writes, and begins again if they are not done
            killed_after(writes)
            run(out, texts, **changes)

        status = in_child(work)
        if status == 0:
            break
        assert os.WIFSIGNALED(status), "stopped by itself"
        assert attempt == 0 or (out / ".work").exists() or (out / "manifest.json").exists()
    else:
        pytest.fail("never finished")
    assert attempt > 25
    assert not list(out.rglob("*.tmp"))
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_corpus_stays_whole_until_its_successor_is(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    out = tmp_path / "out"
    run(out, texts, shard_tokens=1000)  # more files than its successor has
    before = files_of(out)
    for writes in range(1, 200):

        def work(writes: int = writes) -> None:
            killed_after(writes)
            run(out, texts, bpe__n_codes=30, keep_work=True, overwrite=True)

        status = in_child(work)
        if (out / "manifest.json").exists():
            Corpus(out).verify()
            if status != 0 and files_of(out) != before:
                break  # killed after the last write: the new corpus is there, whole
        if status == 0:
            break
    assert files_of(out) != before
    run(tmp_path / "other", texts, bpe__n_codes=30)
    assert files_of(out) == files_of(tmp_path / "other")


def test_a_successor_removes_no_files_but_the_corpus_own(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    out = tmp_path / "out"
    first = run(out, texts, shard_tokens=1000)
    own = {"vocab.backup", "train.notes.npy", "codes.txt", ".mine.tmp"}
    for name in own:
        (out / name).write_text("mine")
    new = run(out, texts, overwrite=True)
    assert {path.name for path in out.iterdir()} == {".lock", "manifest.json", *manifest.all_files(new), *own}
    assert len(manifest.all_files(new)) < len(manifest.all_files(first))


@pytest.mark.parametrize(
    ("key", "said"),
    [("dtype", "KeyError: 'dtype'"), ("languages", "KeyError"), ("codes", "KeyError"), ("seed", "its lineage")],
)
def test_a_damaged_manifest_is_said_and_may_be_replaced(
    tmp_path: Path, texts: dict[str, dict[str, Any]], key: str, said: str
) -> None:
    out = tmp_path / "out"
    first = run(out, texts)
    found = json.loads((out / "manifest.json").read_bytes())
    del (found if key in found else found["settings"])[key]
    (out / "manifest.json").write_text(json.dumps(found))
    with pytest.raises(
        UserError, match=rf"manifest\.json is damaged \(.*{said}.*overwrite=true makes the corpus again"
    ):
        run(out, texts)
    assert run(out, texts, overwrite=True)["lineage"] == first["lineage"]
    (out / "manifest.json").write_bytes(b"{")
    with pytest.raises(UserError, match="is not valid JSON"):
        run(out, texts)
    assert run(out, texts, overwrite=True)["lineage"] == first["lineage"]


COMMAND = [sys.executable, "-c", "from data_prep.prepare import main; main()"]
ENV = os.environ | {"PYTHONPATH": str(REPOSITORY)}


def command_line(out: Path, texts: dict[str, dict[str, Any]], *more: str) -> list[str]:
    inputs = [
        f"{split}.{language}=[{','.join([value] if isinstance(value, str) else value)}]"
        for split, per_language in texts.items()
        for language, value in per_language.items()
    ]
    return [*COMMAND, f"out={out}", *inputs, "bpe.n_codes=60", *more]


def test_killed_with_workers_it_leaves_no_process_and_goes_on(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    out = tmp_path / "out"
    command = command_line(out, texts, "workers=2", "piece_bytes=500")
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path, env=ENV
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while not list(out.glob(".work/tokenised/*/*.npz")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert len(children) >= 2
    deadline = time.monotonic() + PATIENCE
    while any(_runs(child) for child in children):
        assert time.monotonic() < deadline, "workers outlived the parent"
        time.sleep(0.05)
    assert not (out / "manifest.json").exists()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob(".work/tokenised/*/*.npz")}
    assert len(done) > 0
    again = run(out, texts, piece_bytes=500, keep_work=True)
    assert all(
        (out / ".work" / "tokenised" / name[:2] / name).stat().st_mtime_ns == when for name, when in done.items()
    )
    assert again["lineage"] == run(tmp_path / "whole", texts)["lineage"]


def _state(process: str | int) -> str | None:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def _runs(process: str) -> bool:
    return _state(process) not in ("Z", None)


def test_only_what_depends_on_a_change_is_redone(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    out = tmp_path / "out"

    def made(**changes: Any) -> dict[str, int]:
        """How many new work files a run makes, by stage."""
        before = {path: path.stat().st_mtime_ns for path in out.glob(".work/*/*/*")}
        run(out, texts, keep_work=True, overwrite=True, **changes)
        after = {path: path.stat().st_mtime_ns for path in out.glob(".work/*/*/*")}
        assert all(after[path] == when for path, when in before.items() if path in after and path.suffix == ".npz")
        new = Counter(path.parents[1].name for path in after if path not in before)
        return {stage: new[stage] for stage in ("tokenised", "words", "codes", "pieces", "ids")}

    assert made() == {"tokenised": 8, "words": 4, "codes": 1, "pieces": 8, "ids": 8}
    assert made(bpe__n_codes=30) == {"tokenised": 0, "words": 0, "codes": 1, "pieces": 8, "ids": 8}
    assert made(lowercase=True)["tokenised"] == 8
    codes = tmp_path / "codes"
    shutil.copy(out / "codes", codes)
    given = {"codes": str(codes), "vocab": str(shutil.copy(out / "vocab", tmp_path / "vocab"))}
    made(**given)
    with open(texts["train"]["de"][0], "a") as file:
        file.write("Noch ein Satz mit the house.\n")
    changed = made(**given)
    # The file's own piece; and the German valid and test sets, for the German vocabulary that limits them has changed.
    assert changed == {"tokenised": 1, "words": 0, "codes": 0, "pieces": 3, "ids": 3}


def test_a_finished_corpus_is_recognised(
    tmp_path: Path, texts: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first = run(out, texts)
    capsys.readouterr()
    assert run(out, texts, workers=2) == first
    assert "nothing to do" in capsys.readouterr().err
    shard = out / first["splits"]["train"]["de"]["shards"][0]["file"]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + b"\x01")
    assert run(out, texts)["lineage"] == first["lineage"]
    assert shard.read_bytes() == whole


@pytest.mark.parametrize("limit", [2_000, 20_000])
def test_a_full_disk_is_an_error_and_harms_nothing(
    tmp_path: Path, texts: dict[str, dict[str, Any]], limit: int, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(out, texts)
    before = files_of(out)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        run(out, texts, bpe__n_codes=50, overwrite=True)

    assert os.waitstatus_to_exitcode(in_child(work)) == 3
    assert "cannot be written" in capfd.readouterr().err
    assert files_of(out) == before
    assert not list(out.rglob("*.tmp"))
    run(out, texts, bpe__n_codes=50, overwrite=True)


def test_a_worker_that_dies_is_an_error(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    out = tmp_path / "out"
    command = command_line(out, texts, "workers=2", "piece_bytes=200")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path, env=ENV) as process:
        deadline = time.monotonic() + PATIENCE
        while not list(out.glob(".work/tokenised/*/*.npz")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)
                break
        assert process.stderr is not None
        message = process.stderr.read().decode()
        assert process.wait() == 2
    assert "workers=2: a worker process was killed from outside" in message
    assert "Traceback" not in message


# ---- more machines than one


def test_datatroves_executor_makes_the_same_bytes(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    pytest.importorskip("datatrove")
    settings = {"piece_bytes": 5000, "deduplicate": True, "bpe__sample_sentences": 300, "holdout__sentences": 10}
    texts["pairs"] = {
        "de-en": {"train": [str(shutil.copy(texts["train"][code][0], tmp_path)) for code in ("de", "en")]}
    }
    run(tmp_path / "here", texts, **settings)
    run(tmp_path / "there", texts, **settings, executor="local", tasks=3, workers=2, keep_work=True)
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")
    logs = tmp_path / "there" / ".work" / "datatrove"
    stages = Counter(path.parents[1].name.split("-")[0] for path in logs.glob("*/completions/*"))
    assert stages == {
        "compare_inputs": 1,
        "read_input": 3,
        "tokenise_piece": 3,
        "pair_lines": 3,
        "count_piece_words": 3,
        "sum_words": 1,
        "cut_piece": 6,
        "encode_piece": 3,
        "survey": 3,
        "take": 2,
        "sort_lines": 3,
        "find_repeated": 3,
        "choose": 3,
        "write_shard": 3,
        "sort_run": 3,
        "write_order": 3,
    }


def note(job: SimpleNamespace) -> None:
    with open(job.log, "a") as file:
        file.write(f"{job.out.name}\n")


def test_every_job_falls_to_exactly_one_task(tmp_path: Path) -> None:
    jobs = [SimpleNamespace(out=tmp_path / f"{number}.npz", log=tmp_path / "log") for number in range(100)]
    jobs[3].out.touch()  # is done already
    share = Share.divide(tmp_path / "stage", note, jobs, 7)
    for rank in range(7):
        share(None, rank, 7)
    assert sorted((tmp_path / "log").read_text().split()) == sorted(j.out.name for j in jobs if j is not jobs[3])


def test_a_task_is_given_its_own_jobs_alone(tmp_path: Path) -> None:
    jobs = [SimpleNamespace(out=tmp_path / f"{number}.npz", log=tmp_path / "log") for number in range(100)]
    Share.divide(tmp_path / "few", note, jobs, 1)
    Share.divide(tmp_path / "many", note, jobs, 50)
    few, many = (sum(f.stat().st_size for f in (tmp_path / n / "jobs").iterdir()) for n in ("few", "many"))
    assert many < 4 * few


@pytest.mark.parametrize("tasks", [2, 7])
def test_the_local_executor_reads_inputs_once(
    tmp_path: Path, texts: dict[str, dict[str, Any]], tasks: int, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datatrove")
    del texts["test"]
    run(tmp_path / "out", texts, executor="local", tasks=tasks, workers=1, holdout__sentences=10, keep_work=True)
    logs = tmp_path / "out" / ".work" / "datatrove"
    files = [job for path in logs.glob("read_input-*/jobs/*") for job in pickle.loads(path.read_bytes())[1]]
    assert sorted(job.source.name for job in files) == sorted(
        name
        for split in texts.values()
        for value in split.values()
        for name in ([value] if isinstance(value, str) else value)
    )
    assert not (tmp_path / "out" / ".work" / "inputs").exists()


def test_a_killed_task_ends_the_command(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    pytest.importorskip("datatrove")
    out = tmp_path / "out"
    more = ["executor=local", "tasks=2", "workers=2", "piece_bytes=2000"]
    command = command_line(out, texts, *more)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path, env=ENV) as process:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert time.monotonic() < deadline
            assert process.poll() is None
            for at_work in out.glob(".work/datatrove/*/process-*"):
                os.kill(worker := int(at_work.stem.removeprefix("process-")), signal.SIGSTOP)
                while _state(worker) not in ("T", None):
                    time.sleep(0.001)
                if at_work.exists():
                    break  # it cannot end its task now
                os.kill(worker, signal.SIGCONT)
            else:
                time.sleep(0.01)
                continue
            break
        os.kill(worker, signal.SIGKILL)
        message = process.communicate(timeout=PATIENCE)[1].decode()
        assert process.returncode == 2
    error = message[message.index("xlm-prep: error: ") :]
    named = re.search(r"task \d of \w+ was killed \(SIGKILL; log: (.*/logs/task_0000\d\.log)\)", error)
    assert named, error
    assert Path(named[1]).exists()
    assert "run the same command again to go on" in error
    assert "Traceback" not in message
    assert run(out, texts, piece_bytes=2000)["lineage"] == run(tmp_path / "whole", texts)["lineage"]


def test_a_mistake_that_a_task_finds_is_told_in_one_line(
    tmp_path: Path, texts: dict[str, dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datatrove")
    with open(texts["train"]["de"][1], "ab") as file:
        file.write(b"sch\xf6n\n")
    with pytest.raises(UserError, match=r"train1\.de: line 301, byte .* 0xf6 is not UTF-8"):
        run(tmp_path / "out", texts, executor="local", tasks=2, workers=2, decode_errors="stop")
    assert "Traceback" not in capfd.readouterr().err


def test_slurm_must_be_told_where_and_how_long(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    pytest.importorskip("datatrove")
    found = problems(tmp_path / "out", texts, executor="slurm", slurm={"partition": "cpu"})
    assert "slurm.time: must be given with executor=slurm" in found
    found = problems(tmp_path / "out", texts, executor="slurm", slurm={"partition": "cpu", "time": "1:00", "timee": 1})
    assert "slurm.timee: is no argument of datatrove's (did you mean slurm.time?)" in found


def test_slurm_that_is_not_here_is_told_before_anything_starts(
    tmp_path: Path, texts: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datatrove")
    monkeypatch.setenv("PATH", str(tmp_path))
    changes = {"executor": "slurm", "slurm": {"partition": "cpu", "time": "1:00"}}
    assert "executor=slurm: there is no sbatch and no squeue here" in problems(tmp_path / "out", texts, **changes)
    assert not (tmp_path / "out").exists()
    for tool in ("sbatch", "squeue"):
        (tmp_path / tool).touch(mode=0o755)
    read_settings(request(tmp_path / "out", texts, **changes))


# ---- the command


def test_the_command_reports_mistakes_without_a_traceback(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    texts["train"]["en"] = str(tmp_path / "missing.txt")
    done = subprocess.run(command_line(tmp_path / "out", texts), capture_output=True, text=True, cwd=tmp_path, env=ENV)
    assert done.returncode == 2
    assert done.stderr.startswith("xlm-prep: error: ")
    assert "missing.txt: there is no such file" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    unnamed = subprocess.run([*COMMAND, "train.en=x"], capture_output=True, text=True, cwd=tmp_path, env=ENV)
    assert unnamed.returncode == 2
    assert "out has no value: give out=..." in unnamed.stderr
    assert "Traceback" not in unnamed.stderr


def test_the_command_prints_a_table_and_progress(tmp_path: Path, texts: dict[str, dict[str, Any]]) -> None:
    done = subprocess.run(command_line(tmp_path / "out", texts), capture_output=True, text=True, cwd=tmp_path, env=ENV)
    assert done.returncode == 0, done.stderr
    assert "train.de" in done.stdout
    assert "tokens/word" in done.stdout
    for stage in ("tokenise", "words", "cut", "cut again", "encode", "binarise"):
        assert f"\n{stage}" in f"\n{done.stderr}"
    assert "MB/s" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text"]


def test_a_killed_parent_leaves_no_noise() -> None:
    """Python's own helper process warns of semaphores left, after the prompt is back."""
    code = (
        "import os, signal\n"
        "from data_prep.work import Workers\n"
        "with Workers(2) as workers:\n"
        "    assert list(workers.map(abs, [-1, -2])) == [1, 2]\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode == -signal.SIGKILL
    assert ended.stderr == ""
