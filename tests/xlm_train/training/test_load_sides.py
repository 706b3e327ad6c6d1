"""Encoder and decoder started from checkpoints of every kind: what is loaded, what stays random, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from xlm_train.interop.import_ import open_model
from xlm_train.interop.original.names import TIED, to_original
from xlm_train.interop.transformers import folder as transformers_folder
from xlm_train.model.seq2seq import Seq2Seq
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import ConfigError, UserError
from xlm_train.text.vocabulary import Vocabulary
from xlm_train.training.init_from import load_sides

LANGUAGES = {"de": 0, "en": 1}


@pytest.fixture(scope="module")
def pth(shared: Path) -> Path:
    return shared / "goldens/model/best-valid_clm_ppl.pth"


@pytest.fixture(scope="module")
def words(golden_text: tuple[str, str]) -> list[str]:
    return Vocabulary.from_text(golden_text[0], name="vocab").words


def fresh(content: dict[str, Any], vocab_multiple: int = 8, **options: Any) -> Seq2Seq:
    torch.manual_seed(0)
    return Seq2Seq(ModelShape(**{**content["shape"], "vocab_multiple": vocab_multiple}), **options)


@pytest.mark.parametrize("case", ["both", "encoder_only", "decoder_only"])
def test_names_are_those_of_the_original(shared: Path, pth: Path, words: list[str], case: str) -> None:
    golden = json.loads((shared / "goldens/mt/reload.json").read_text())[case]
    content = open_model(pth, vocab_multiple=8)
    model, untouched = fresh(content), fresh(content)
    given = [side for side in ("encoder", "decoder") if case in ("both", f"{side}_only")]
    starts = load_sides(model, {side: (str(pth), content) for side in given}, LANGUAGES, words)
    assert [*starts] == given
    for side in ("encoder", "decoder"):
        own, before = getattr(model, side).state_dict(), getattr(untouched, side).state_dict()
        equal = {name for name, value in own.items() if torch.equal(value, before[name])}
        random = set(starts[side].random) if side in starts else set(own)
        assert equal >= random
        loaded = set(starts[side].loaded) if side in starts else set()
        assert loaded | random == set(own)
        assert all(torch.equal(own[name], content["model"][name]) for name in loaded)

        def original(names: set[str], own: Any = own, decoder: bool = side == "decoder") -> set[str]:
            return {*to_original({name: own[name] for name in names}, model.shape, tied=False, reads_source=decoder)}

        assert original(loaded) == {*golden[side]["loaded"]} - {TIED}
        assert original(random) == {*golden[side]["left_at_initialisation"]} - {TIED}


def test_every_format_gives_the_same_weights(
    pth: Path, words: list[str], tmp_path: Path, golden_text: tuple[str, str]
) -> None:
    content = {**open_model(pth, 1)}
    content["text"] = {**content["text"], "codes": golden_text[1]}
    (tmp_path / "hf").mkdir()
    transformers_folder.write(tmp_path / "hf", content)
    checkpoint_file.save(tmp_path / "ours.pt", content)
    found = []
    for path in (pth, tmp_path / "hf", tmp_path / "ours.pt"):
        opened = open_model(path, vocab_multiple=1)
        model = fresh(opened)
        starts = load_sides(model, {"encoder": (str(path), opened), "decoder": (str(path), opened)}, LANGUAGES, words)
        assert len(starts["encoder"].parents) >= 1
        assert str(starts["encoder"]).startswith(f"{path}: ")
        assert "random: blocks.0.source_attention.q.weight" in str(starts["decoder"])
        found.append(model.state_dict())
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
        assert torch.equal(value, found[2][name]), name
    assert found[0]["decoder.embeddings.weight"].shape[0] == 6144
    assert not found[0]["decoder.embeddings.weight"][6142:].any()


def test_a_translation_model_serves_each_side_with_its_own(
    words: list[str], tmp_path: Path, pth: Path, golden_seq2seq: Callable[..., Seq2Seq]
) -> None:
    trained = golden_seq2seq()
    content = {**open_model(pth, 1), "model": trained.state_dict()}
    checkpoint_file.save(tmp_path / "mt.pt", content)
    opened = open_model(tmp_path / "mt.pt", 8)
    model = fresh(content, vocab_multiple=1)
    starts = load_sides(model, dict.fromkeys(("encoder", "decoder"), ("mt.pt", opened)), LANGUAGES, words)
    assert starts["decoder"].random == []
    assert starts["decoder"].parents[-1] == opened["sha256"]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in trained.state_dict().items())


def test_what_does_not_fit_is_refused_naming_both(pth: Path, words: list[str]) -> None:
    content = open_model(pth, 1)
    model = Seq2Seq(ModelShape(**{**content["shape"], "dim": 32, "n_layers": 3}))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = [*words[:20], "x", *words[21:]]
    with pytest.raises(UserError) as refused:
        load_sides(model, {"encoder": ("a.pth", content), "decoder": ("b.pth", content)}, {"en": 0, "fr": 1}, other)
    for side, path in (("encoder", "a.pth"), ("decoder", "b.pth")):
        for part in (
            f"init_{side}={path}: its model has dim=64, this run 32; set model.dim=64",
            f"init_{side}={path}: its model has n_layers=2, this run 3",
            f"init_{side}={path}: its languages are {LANGUAGES}, the corpus has {{'en': 0, 'fr': 1}}",
            f"init_{side}={path}: its vocabulary has 6,142 words, the corpus 6,142, and they differ from id 20 on",
        ):
            assert part in str(refused.value)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_shared_embeddings_must_agree(pth: Path, words: list[str]) -> None:
    content = open_model(pth, 1)
    other = {**content, "model": XLM(ModelShape(**content["shape"])).state_dict()}
    model = fresh(content, share="embeddings")
    with pytest.raises(UserError, match=r"set model\.share=none"):
        load_sides(model, {"encoder": ("a", content), "decoder": ("b", other)}, LANGUAGES, words)
    load_sides(model, {"encoder": ("a", content), "decoder": ("a", content)}, LANGUAGES, words)
    assert model.decoder.embeddings.weight is model.encoder.embeddings.weight


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"none\.pth: there is no such file"):
        open_model("none.pth", 8)
