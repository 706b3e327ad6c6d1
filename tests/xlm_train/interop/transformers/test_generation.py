"""Continuing text from the exported folder by transformers, as the card says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY
from xlm_train.interop.card_kinds import CAUSAL_CLASS
from xlm_train.model.continuation import continue_texts
from xlm_train.model.pretrained import open_checkpoint

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def card(exported: Path) -> dict[str, Any]:
    """The names that the card's code defines; "printed" is what it prints."""
    blocks = (exported / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    names: dict[str, Any] = {"print": lambda text: names.update(printed=text)}
    for block in blocks:
        exec(block.split("```")[0].replace("FOLDER", str(exported)), names)
    return names


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize(("language", "prompt"), [("de", "Es war einmal"), ("en", "It was")])
def test_the_card_s_class_generates_as_we_do(
    card: dict[str, Any], imported: Path, language: str, prompt: str, ends: bool
) -> None:
    (ours,) = continue_texts(open_checkpoint(imported, "cpu"), [prompt], language, 20, stop_at_eos=ends)
    model = card["model"]
    model.config.lang_id = card["tokenizer"].lang2id[language]
    model.generation_config.eos_token_id = 1 if ends else None
    found = model.generate(torch.tensor([ours.ids]), max_new_tokens=20)
    assert found[0].tolist() == [*ours.ids, *ours.tokens]
    assert ours.finished == ends == (len(ours.tokens) < 20)


def test_the_card_s_example_prints_a_continuation(card: dict[str, Any]) -> None:
    assert card["printed"].startswith("Wikipedia was used to ")


def test_the_document_has_the_same_class() -> None:
    assert CAUSAL_CLASS in (REPOSITORY / "docs/interop.md").read_text(encoding="utf-8")
