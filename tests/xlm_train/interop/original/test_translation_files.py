"""The original's encoder-decoder files: read and written, equal both ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xlm_train.interop.original import unpickle
from xlm_train.interop.original.checkpoint import export_checkpoint, import_checkpoint
from xlm_train.interop.original.names import to_original
from xlm_train.interop.transformers import folder as transformers_folder
from xlm_train.model.pretrained import open_checkpoint
from xlm_train.model.seq2seq import Seq2Seq
from xlm_train.model.transformer import ModelShape
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def original(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the original writes it: encoder and decoder of goldens/mt, all else from its causal checkpoint."""
    raw = unpickle.load(shared / "goldens/model/best-valid_clm_ppl.pth")
    del raw["model"]
    for side in ("encoder", "decoder"):
        with np.load(shared / f"goldens/mt/init_{side}.npz") as arrays:
            raw[side] = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        raw[side]["pred_layer.proj.weight"] = raw[side]["embeddings.weight"]
    raw["params"]["encoder_only"] = False
    path = tmp_path_factory.mktemp("original") / "best-valid_de-en_mt_bleu.pth"
    torch.save(raw, path)
    return path


@pytest.mark.parametrize("vocab_multiple", [1, 8])
def test_there_and_back_is_identical(original: Path, tmp_path: Path, vocab_multiple: int) -> None:
    imported = import_checkpoint(original, vocab_multiple=vocab_multiple)
    checkpoint_file.save(tmp_path / "ours.pt", imported.content)
    export_checkpoint(tmp_path / "back.pth", checkpoint_file.load(tmp_path / "ours.pt"))
    before, after = unpickle.load(original), unpickle.load(tmp_path / "back.pth")
    assert before.keys() == after.keys()
    for side in ("encoder", "decoder"):
        assert before[side].keys() == after[side].keys()
        assert all(torch.equal(before[side][name], after[side][name]) for name in before[side])
    assert after["params"]["encoder_only"] is False
    assert after["dico_word2id"] == before["dico_word2id"]


def test_the_imported_model_is_the_goldens(original: Path, golden_seq2seq: Callable[..., Seq2Seq]) -> None:
    content = import_checkpoint(original).content
    model = Seq2Seq(ModelShape(**content["shape"]))
    model.load_state_dict(content["model"])
    expected = golden_seq2seq().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_our_own_model_reads_back(tmp_path: Path, golden_text: tuple[str, str]) -> None:
    torch.manual_seed(0)
    shape = ModelShape(n_words=6142, dim=8, n_layers=2, n_heads=2, ffn_dim=16, max_positions=16, vocab_multiple=8)
    model = Seq2Seq(shape, share="embeddings")
    content = content_of(model, golden_text)
    export_checkpoint(tmp_path / "mt.pth", content)
    again = import_checkpoint(tmp_path / "mt.pth", golden_text[1], vocab_multiple=8).content
    assert again["shape"] == content["shape"]
    assert again["model"].keys() == content["model"].keys()
    assert all(torch.equal(value, content["model"][name]) for name, value in again["model"].items())


def content_of(model: Seq2Seq, golden_text: tuple[str, str]) -> dict[str, Any]:
    return {
        "shape": model.shape.to_dict(),
        "model": model.state_dict(),
        "optimizer": None,
        "progress": {"step": 3, "updates": 3},
        "text": {"languages": {"de": 0, "en": 1}, "vocab": golden_text[0], "codes": golden_text[1]}
        | {"lowercase": False, "remove_accents": False},
        "lineage": {"corpus": None, "parents": []},
        "metrics": {},
        "config": {},
    }


def test_a_translation_model_is_not_taken_for_a_language_model(tmp_path: Path, golden_text: tuple[str, str]) -> None:
    content = content_of(Seq2Seq(ModelShape(n_words=6142, dim=8, n_layers=1, n_heads=2, ffn_dim=32)), golden_text)
    with pytest.raises(CheckpointError, match=r"transformers has no class: xlm-export format=xlm"):
        transformers_folder.write(tmp_path, content)
    checkpoint_file.save(tmp_path / "mt.pt", content)
    with pytest.raises(ConfigError, match=r"mt\.pt: is a translation model"):
        open_checkpoint(tmp_path / "mt.pt", "cpu")


def test_what_is_wrong_is_said(original: Path, tmp_path: Path) -> None:
    raw = unpickle.load(original)
    del raw["decoder"]["layer_norm15.1.bias"]
    raw["model_optimizer"] = {"state": {}}
    torch.save(raw, tmp_path / "changed.pth")
    with pytest.raises(CheckpointError, match=r"changed\.pth: decoder: lacks layer_norm15\.1\.bias"):
        import_checkpoint(tmp_path / "changed.pth")
    raw = {**unpickle.load(original), "model_optimizer": {"state": {}}}
    torch.save(raw, tmp_path / "changed.pth")
    (warning,) = import_checkpoint(tmp_path / "changed.pth").warnings
    assert "optimizer state is left out" in warning
    assert import_checkpoint(tmp_path / "changed.pth", with_optimizer=False).warnings == []


def test_names_of_a_decoder_in_the_originals_order(original: Path) -> None:
    model = Seq2Seq(ModelShape(**import_checkpoint(original).content["shape"]))
    theirs = to_original(model.decoder.state_dict(), model.shape, reads_source=True)
    assert {*theirs} == {*unpickle.load(original)["decoder"]}
    assert list(theirs)[-4:-2] == ["encoder_attn.1.out_lin.weight", "encoder_attn.1.out_lin.bias"]
