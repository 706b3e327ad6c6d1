"""Folders that transformers loads: the same scores and ids there, and back again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from xlm_train.interop.transformers import folder as transformers_folder
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import CheckpointError, UserError
from xlm_train.text.vocabulary import SPECIALS, Vocabulary

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def content(imported: Path) -> dict[str, Any]:
    return checkpoint_file.load(imported)


@pytest.fixture(scope="module")
def ours(content: dict[str, Any]) -> XLM:
    model = XLM(ModelShape(**content["shape"]))
    model.load_state_dict(content["model"])
    return model.eval()


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", ["XLMWithLMHeadModel", "AutoModelForCausalLM"])
def test_scores_are_ours_in_each_language(exported: Path, ours: XLM, loader: str) -> None:
    model = getattr(transformers, loader).from_pretrained(exported).eval()
    tokens = torch.randint(14, 6142, (3, 64), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([64, 40, 1])
    tokens[torch.arange(64) >= lengths[:, None]] = 2
    keep = torch.arange(64) < lengths[:, None]
    with torch.no_grad():
        for number in (0, 1):
            found = model(tokens, langs=torch.full_like(tokens, number)).logits
            expected = ours.logits(ours(tokens, number, lengths))
            torch.testing.assert_close(found[keep], expected[keep], rtol=0, atol=1e-5)
        assert model.dtype == torch.float32
        assert sum(p.numel() for p in model.parameters()) == 532_222


def test_the_model_there_is_causal(exported: Path) -> None:
    model = transformers.XLMWithLMHeadModel.from_pretrained(exported).eval()
    tokens = torch.arange(20, 40)[None]
    other = tokens.clone()
    other[0, 10] = 99
    with torch.no_grad():
        before, after = (model(x, langs=torch.zeros_like(x)).logits for x in (tokens, other))
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10:], after[:, 10:])


@pytest.mark.parametrize(
    "changes",
    [
        {"sinusoidal_positions": True},
        {"language_embeddings": False},
        {"n_langs": 1},
        {"n_langs": 3},
        {"vocab_multiple": 8},
    ],
)
def test_other_models_there_and_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    content = small(**changes)
    model = XLM(ModelShape(**content["shape"])).eval()
    model.load_state_dict(content["model"])
    assert transformers_folder.write(tmp_path, content) == []
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(4, model.shape.n_words, (2, 12))
    number = model.shape.n_langs - 1
    with torch.no_grad():
        found = theirs(tokens, langs=torch.full_like(tokens, number)).logits
        expected = model.logits(model(tokens, number if model.shape.uses_languages else None))
    assert found.shape[-1] == model.shape.n_words
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    back = transformers_folder.read(tmp_path, vocab_multiple=model.shape.vocab_multiple).content
    assert back["shape"] == content["shape"]
    assert all(torch.equal(back["model"][name], content["model"][name]) for name in content["model"])


def small(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    shape = ModelShape(
        **{"n_words": 20, "dim": 8, "n_layers": 2, "n_heads": 2, "ffn_dim": 32, "max_positions": 16, **changes}
    )
    languages = {code: number for number, code in enumerate(("de", "en", "fr")) if number < shape.n_langs}
    return {
        "shape": shape.to_dict(),
        "model": XLM(shape).state_dict(),
        "optimizer": None,
        "progress": {"step": 1, "updates": 1},
        "text": {
            "languages": languages,
            "vocab": "ab 9\na 8\nb@@ 7\nAb 5\nc 5\nd 4\n",
            "codes": "a b</w> 9\nA b</w> 5\n",
            "lowercase": False,
            "remove_accents": False,
        },
        "lineage": {"corpus": None, "parents": []},
        "metrics": {},
        "config": {"data": {"bptt": 8}},
        "sha256": "0" * 64,
    }


def test_tied_weights_are_stored_once(exported: Path) -> None:
    import safetensors

    with safetensors.safe_open(exported / "model.safetensors", "pt") as file:
        names = {*file.keys()}
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor("transformer.embeddings.weight").shape == (6142, 64)
    assert "pred_layer.proj.bias" in names
    assert "pred_layer.proj.weight" not in names


def test_what_the_config_says(exported: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(exported)
    assert config.causal is True
    assert config.is_encoder is True
    assert config.asm is False
    assert config.use_lang_emb is True
    assert config.tie_word_embeddings is True
    assert config.vocab_size == config.n_words == 6142
    assert (config.emb_dim, config.n_layers, config.n_heads, config.max_position_embeddings) == (64, 2, 4, 512)
    assert (config.bos_index, config.eos_index, config.pad_index, config.unk_index, config.mask_index) == (
        0,
        1,
        2,
        3,
        5,
    )
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id, config.mask_token_id) == (0, 1, 2, 5)
    assert config.n_langs == 2
    assert config.lang2id == {"de": 0, "en": 1}
    assert config.id2lang == {"0": "de", "1": "en"}
    assert (config.dropout, config.attention_dropout, config.gelu_activation) == (0.0, 0.0, True)
    generation = transformers.GenerationConfig.from_pretrained(exported)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (0, 1, 2)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_ours_comes_back_whole(exported: Path, content: dict[str, Any]) -> None:
    back = transformers_folder.read(exported, vocab_multiple=content["shape"]["vocab_multiple"])
    assert back.warnings == []
    assert back.content["shape"] == content["shape"]
    assert back.content["text"] == content["text"]
    assert back.content["progress"] == {"step": 200, "updates": 200}
    assert back.content["lineage"]["parents"] == [*content["lineage"]["parents"], content["sha256"]]
    assert back.content["config"]["data"] == {"bptt": 64}
    assert back.content["model"].keys() == content["model"].keys()
    assert all(torch.equal(back.content["model"][name], content["model"][name]) for name in content["model"])


@pytest.mark.parametrize(("name", "offset"), [("model.safetensors", -3), ("vocab", 0), ("codes", 0)])
def test_an_export_that_changed_is_refused(exported: Path, tmp_path: Path, name: str, offset: int) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    damaged = bytearray((folder / name).read_bytes())
    damaged[offset] ^= 2  # of a weight: another finite number
    (folder / name).write_bytes(damaged)
    with pytest.raises(CheckpointError, match=rf"{name}: is not what was exported .* delete export\.json"):
        transformers_folder.read(folder)


@pytest.fixture
def published(exported: Path, tmp_path: Path) -> Path:
    """A folder as the one on the hub: no `causal`, lower-casing by default, pickled weights, merges with a
    version line.
    """
    folder = tmp_path / "published"
    model = transformers.XLMWithLMHeadModel.from_pretrained(exported)
    folder.mkdir()
    state = dict(model.state_dict())
    state["transformer.position_ids"] = torch.arange(512)[None]
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    config = json.loads((exported / "config.json").read_text())
    for key in ("causal", "bptt", "vocab_size", "model_type", "mask_token_id", "lang_id"):
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(exported / name, folder)
    return folder


def test_the_published_folder_is_read_with_warnings(published: Path, content: dict[str, Any]) -> None:
    found = transformers_folder.read(published, vocab_multiple=content["shape"]["vocab_multiple"])
    said = "\n".join(found.warnings)
    assert "does not say `causal`" in said
    assert "lower-cases text (by default), but the vocabulary has capitals" in said
    assert "bptt=N" in said
    assert "vocab=FILE" in said
    assert all(torch.equal(found.content["model"][name], content["model"][name]) for name in content["model"])
    text, expected = found.content["text"], content["text"]
    assert (text["lowercase"], text["remove_accents"]) == (False, False)
    assert (text["languages"], text["codes"]) == (expected["languages"], expected["codes"])
    assert Vocabulary.from_text(text["vocab"]).words == Vocabulary.from_text(expected["vocab"]).words


def test_codes_vocabulary_and_window_can_be_given(published: Path, content: dict[str, Any]) -> None:
    text = content["text"]
    found = transformers_folder.read(published, codes=text["codes"], vocab=text["vocab"], bptt=64)
    assert found.content["text"] == text
    assert found.content["config"]["data"] == {"bptt": 64}
    assert len(found.content["lineage"]["parents"]) == 1
    assert len(found.warnings) == 2  # causal and lower-casing remain
    lines = text["vocab"].splitlines(keepends=True)
    with pytest.raises(CheckpointError, match="not those of the vocabulary given"):
        transformers_folder.read(published, vocab="".join([lines[1], lines[2], lines[0].replace("71765", "1")]))


def test_what_our_text_does_not_need_is_kept_out(published: Path) -> None:
    """A lower-cased model stays one; merges may lack counts."""
    vocab = {word: number for number, word in enumerate([*SPECIALS, "ab</w>", "a", "b</w>"])}
    small_model(published, vocab)
    (published / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    text = transformers_folder.read(published).content["text"]
    assert (text["lowercase"], text["remove_accents"]) == (True, True)
    assert text["codes"] == "a b</w> 0\n"
    assert text["vocab"] == "ab 0\na@@ 0\nb 0\n"


def small_model(folder: Path, vocab: dict[str, int]) -> None:
    config = transformers.XLMConfig(
        vocab_size=max(vocab.values()) + 1, emb_dim=8, n_layers=1, n_heads=2, n_langs=2, causal=True
    )
    model = transformers.XLMWithLMHeadModel(config)
    (folder / "pytorch_model.bin").unlink()
    model.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "lang2id": {"de": 0, "en": 1}}))
    (folder / "vocab.json").write_text(json.dumps(vocab))


def test_ids_without_a_word_are_told(published: Path) -> None:
    vocab = {word: number for number, word in enumerate([*SPECIALS, "ab</w>", "a"])}
    small_model(published, {**vocab, "z</w>": 17})
    found = transformers_folder.read(published)
    assert any("no word has 1 of the ids" in warning for warning in found.warnings)
    assert Vocabulary.from_text(found.content["text"]["vocab"]).words[14:] == ["ab", "a@@", "<unused16>", "z"]


def edit(folder: Path, name: str, **changes: Any) -> None:
    value = json.loads((folder / name).read_text())
    value |= changes
    (folder / name).write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "another model": (lambda f: edit(f, "config.json", model_type="bert"), "not the config of an XLM model"),
    "ReLU": (lambda f: edit(f, "config.json", gelu_activation=False), "gelu_activation=False"),
    "heads in words": (lambda f: edit(f, "config.json", n_heads="four"), "n_heads is not int"),
    "no languages": (lambda f: edit(f, "config.json", lang2id=None), "lang2id"),
    "other languages": (lambda f: edit(f, "config.json", n_langs=3), "names 3"),
    "no weights": (lambda f: (f / "pytorch_model.bin").unlink(), "neither model.safetensors nor pytorch_model.bin"),
    "damaged weights": (
        lambda f: (f / "model.safetensors").write_bytes(b"x" * 100),
        "model.safetensors: cannot be read",
    ),
    "no vocabulary": (lambda f: (f / "vocab.json").unlink(), "vocab.json"),
    "vocabulary of another model": (lambda f: edit(f, "vocab.json", **{"new</w>": 6142}), "the model has 6142 words"),
    "no special words": (lambda f: edit(f, "vocab.json", **{"<s>": None}), "special words"),
    "merges that are none": (lambda f: (f / "merges.txt").write_text("a b c d\n"), "merges.txt:1"),
    "no merges": (lambda f: (f / "merges.txt").unlink(), "merges.txt"),
}


@pytest.mark.parametrize(("breaks", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_is_said(published: Path, breaks: Callable[[Path], Any], message: str) -> None:
    breaks(published)
    with pytest.raises(UserError, match=message) as caught:
        transformers_folder.read(published)
    assert str(published) in str(caught.value)


def test_causal_false_is_warned_of(published: Path) -> None:
    edit(published, "config.json", causal=False)
    assert any("says causal=false" in warning for warning in transformers_folder.read(published).warnings)


# -- models that transformers cannot hold ------------------------------------------------------------------------------


def test_what_transformers_cannot_be_is_refused(tmp_path: Path) -> None:
    content = small(ffn_dim=48)
    content["text"]["codes"] = ""
    with pytest.raises(CheckpointError) as caught:
        transformers_folder.write(tmp_path, content)
    assert len(caught.value.problems) == 2
    assert "model.ffn_dim=48" in str(caught.value)
    assert "codes=FILE" in str(caught.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("lowercase", "accents", "flag", "warnings"), [
    (True, True, True, 0), (False, False, False, 0), (True, False, False, 1), (False, True, False, 1),
])  # fmt: skip
def test_lower_casing(tmp_path: Path, lowercase: bool, accents: bool, flag: bool, warnings: int) -> None:
    content = small()
    content["text"] |= {"lowercase": lowercase, "remove_accents": accents}
    assert len(transformers_folder.write(tmp_path, content)) == warnings
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).do_lowercase_and_remove_accent is flag


# -- traps that docs/interop.md and the card warn of: when one of these fails, transformers has fixed it ---------------


def test_generate_predicts_what_follows_a_mask(exported: Path, tokeniser: Any) -> None:
    model = transformers.XLMWithLMHeadModel.from_pretrained(exported).eval()
    with torch.no_grad():
        for text in ("Es war einmal", "Once upon a time", "The", "Der Mann"):
            ids = torch.tensor([[1, *tokeniser.encode(text, add_special_tokens=False)]])
            found = model.generate(ids, max_new_tokens=1, do_sample=False, use_cache=False)[0, -1]
            masked = torch.cat([ids, torch.tensor([[5]])], dim=1)
            scores = model(masked, langs=torch.zeros_like(masked)).logits[0, -1]
            scores[[0, *range(2, 14)]] = float("-inf")  # by generation_config.json
            assert found == scores.argmax()


def test_a_loss_from_labels_is_not_shifted(exported: Path) -> None:
    model = transformers.XLMWithLMHeadModel.from_pretrained(exported).eval()
    tokens = torch.arange(20, 40)[None]
    with torch.no_grad():
        found = model(tokens, langs=torch.zeros_like(tokens), labels=tokens)
    unshifted = torch.nn.functional.cross_entropy(found.logits[0], tokens[0])
    assert found.loss.item() == pytest.approx(unshifted.item(), rel=1e-6)


def test_scores_without_languages_are_others(exported: Path) -> None:
    model = transformers.XLMWithLMHeadModel.from_pretrained(exported).eval()
    tokens = torch.arange(20, 40)[None]
    with torch.no_grad():
        without = model(tokens).logits
        assert all(not torch.allclose(without, model(tokens, langs=torch.full_like(tokens, n)).logits) for n in (0, 1))
