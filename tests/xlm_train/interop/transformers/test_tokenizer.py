"""The tokenizer of exported folders: the original's ids from tokenised text, ours from raw text."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import golden_tokens
from xlm_train.interop.transformers import tokenizer
from xlm_train.interop.transformers.folder import open_text
from xlm_train.text.bpe import BpeCodes
from xlm_train.text.vocabulary import SPECIALS, Vocabulary

transformers = pytest.importorskip("transformers")

GOLDEN_SETS = [("voice.valid", "valid"), ("novels.valid", "novels"), ("sutta.parvalid", "parvalid")]


def raw(shared: Path, name: str, language: str) -> list[str]:
    return gzip.decompress((shared / f"corpora/{name}.{language}.gz").read_bytes()).decode().splitlines()


@pytest.mark.parametrize("loader", ["XLMTokenizer", "AutoTokenizer"])
def test_the_tokenizer_knows_languages_and_special_words(exported: Path, loader: str) -> None:
    tokeniser = getattr(transformers, loader).from_pretrained(exported)
    assert isinstance(tokeniser, transformers.XLMTokenizer)
    assert tokeniser.lang2id == {"de": 0, "en": 1}
    assert tokeniser.id2lang is not None
    assert tokeniser.do_lowercase_and_remove_accent is False
    assert len(tokeniser) == tokeniser.vocab_size == 6142
    assert tokeniser.convert_tokens_to_ids(list(SPECIALS)) == list(range(14))
    assert (tokeniser.bos_token, tokeniser.sep_token, tokeniser.pad_token, tokeniser.mask_token) == (
        "<s>", "</s>", "<pad>", "<special1>",
    )  # fmt: skip
    assert tokeniser.model_max_length == 512
    assert "Ä" in tokeniser.decode(tokeniser.encode("Ärger und ÄPFEL"))


@pytest.mark.parametrize("language", ["de", "en"])
@pytest.mark.parametrize("golden", [golden for _, golden in GOLDEN_SETS])
def test_ids_of_tokenised_text_are_the_originals(
    shared: Path, tokeniser: Any, golden_ids: Callable[[str], list[list[int]]], golden: str, language: str
) -> None:
    lines = golden_tokens(shared, f"{golden}.{language}")
    found = [tokeniser.convert_tokens_to_ids(tokeniser._tokenize(line, bypass_tokenizer=True)) for line in lines]
    assert found == golden_ids(f"{golden}.{language}")


@pytest.mark.parametrize("language", ["de", "en"])
@pytest.mark.parametrize(("name", "golden"), GOLDEN_SETS)
def test_our_call_gives_the_originals_ids_for_raw_text(
    shared: Path, exported: Path, golden_ids: Callable[[str], list[list[int]]], name: str, golden: str, language: str
) -> None:
    encoded = open_text(exported).encode(raw(shared, name, language), language)
    assert [part[:-1].tolist() for part in np.split(encoded.ids, encoded.starts[1:])] == golden_ids(
        f"{golden}.{language}"
    )


def test_nasty_text_through_both(shared: Path, exported: Path, tokeniser: Any) -> None:
    """Controls, emoji, CJK and the like: what ours has tokenised means the same to transformers."""
    from xlm_train.text.tokenise import Tokeniser

    lines = (shared / "goldens/edge_cases/input.txt").read_bytes().decode().removesuffix("\n").split("\n")
    for language in ("de", "en"):
        encoded = open_text(exported).encode(lines, language)
        exact = [part[:-1].tolist() for part in np.split(encoded.ids, encoded.starts[1:])]
        text = Tokeniser(language).tokenise(lines)
        found = [tokeniser.convert_tokens_to_ids(tokeniser._tokenize(line, bypass_tokenizer=True)) for line in text]
        assert found == exact


def test_how_far_encode_differs_is_measured(exported: Path, shared: Path, tokeniser: Any) -> None:
    """The record's counts, counted again line by line: on German the stock tokenizer is often wrong, on English
    rarely.
    """
    measured = json.loads((exported / "export.json").read_text())["stock_encode"]
    for language in ("de", "en"):
        lines = raw(shared, "novels.valid", language)[:2000]
        encoded = open_text(exported).encode(lines, language)
        exact = [part[:-1].tolist() for part in np.split(encoded.ids, encoded.starts[1:])]
        differ = sum(tokeniser.encode(line)[1:-1] != ids for line, ids in zip(lines, exact, strict=True))
        assert measured[language] == {"lines": len(lines), "differ": differ}
    assert measured["de"]["differ"] == 380  # of 1,941: also what was counted with the original's perl scripts


def test_the_published_snippet_works(exported: Path) -> None:
    """The code of the model card, run as it stands there."""
    card = (exported / "README.md").read_text()
    blocks = [block.split("```")[0].replace("FOLDER", str(exported)) for block in card.split("```python\n")[1:]]
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["scores"].shape[-1] == 6142
    assert names["input_ids"][0, 0] == 1


def test_encode_knows_english_only_and_begins_with_s(tokeniser: Any) -> None:
    assert tokeniser.encode("Wort")[0] == 0  # <s>; training texts begin with </s>
    german = "z.B. im 19. Jahrhundert"  # German rules keep the ordinal's dot
    assert (
        tokeniser.tokenize(german) == tokeniser._tokenize(german, lang="en") != tokeniser._tokenize(german, lang="de")
    )


# -- spelling of pieces ------------------------------------------------------------------------------------------------


def test_pieces_are_spelled_as_word_ends() -> None:
    vocabulary = Vocabulary([("the", 9), ("x@@", 5), ("@@", 4), ("@@@", 3), ("a@@", 2)])
    codes = BpeCodes.from_text("@ @</w> 9\na@ @</w> 3\n")
    found = tokenizer.to_transformers(vocabulary, codes)
    assert dict(list(found.ids.items())[14:]) == {"the</w>": 14, "x": 15, "@@</w>": 16, "@": 17, "a@@</w>": 18, "a": 18}
    assert found.ambiguous == []
    assert tokenizer.from_transformers(found.ids, len(vocabulary)) == vocabulary.words


def test_pieces_that_cannot_be_told_apart_are_reported() -> None:
    """A word that holds the very mark of a word's end, or spells a special word."""
    vocabulary = Vocabulary([("x", 9), ("x</w>@@", 5), ("<s>@@", 3)])
    assert tokenizer.to_transformers(vocabulary, BpeCodes([])).ambiguous == ["x</w>@@", "<s>@@"]


def test_merges_with_white_space_are_reported() -> None:
    codes = BpeCodes([("a", "b</w>", 1), ("a\u00a0", "b</w>", 1), ("\r", "b</w>", 1)])
    assert tokenizer.unreadable_merges(codes) == ["a\u00a0 b</w>", "\r b</w>"]
