"""Models of objective=mlm and tlm go to the original and to transformers, and come back as masked ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from xlm_train.interop.export import export_original
from xlm_train.interop.original import unpickle
from xlm_train.interop.original.checkpoint import import_checkpoint
from xlm_train.interop.original.params import UNSET
from xlm_train.interop.transformers import folder as transformers_folder
from xlm_train.interop.transformers.folder import open_text
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime import checkpoint_file

Run = Callable[..., tuple[int, str, str]]
MASKED = "xlm_train.objectives.masked.MaskedLM"
TLM = "xlm_train.objectives.tlm.TranslationLM"
SETTINGS = {"mask_share": 0.2, "sample_alpha": 0.5, "replacements": [0.6, 0.3, 0.1]}
DATA = {"bptt": 64, "slots": 4, "slot_streams": 2, "tokens_per_slot": 500, "max_len": 60, "lang_alpha": 0.0}
LANGUAGES = [("de", None), ("en", None)]
OBJECTIVES: dict[str, tuple[dict[str, Any], list[Any], str]] = {
    "mlm": ({"_target_": MASKED, **SETTINGS}, LANGUAGES, "valid_mlm_ppl"),
    "tlm": ({"_target_": TLM, "pairs": ["en-de"], **SETTINGS}, [("en", "de")], "valid_en_de_mlm_ppl"),
    "mlm_tlm": (
        {"parts": {"mlm": {"_target_": MASKED, **SETTINGS}, "tlm": {"_target_": TLM, "pairs": None, **SETTINGS}}},
        [*LANGUAGES, ("de", "en")],
        "valid_mlm_ppl",
    ),
}


@pytest.fixture(scope="module")
def masked(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """masked("tlm") -> a checkpoint as a run of that objective writes it, with the goldens' weights and moments."""

    def write(name: str) -> Path:
        content = checkpoint_file.load(imported)
        del content["sha256"]
        content["config"] = {"run_name": "gaps", "objective": OBJECTIVES[name][0], "data": DATA}
        content["evaluation"] = "masked"
        content["progress"] |= {"monitor": "val/ppl", "best_metric": 7.5}
        path = tmp_path_factory.mktemp(name) / "step-00000200.pt"
        checkpoint_file.save(path, content)
        return path

    return write


# -- the original ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_original_reads_what_was_learned(masked: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    _, steps, metric = OBJECTIVES[name]
    content = checkpoint_file.load(masked(name))
    export_original(content, tmp_path / "out", with_optimizer=True)
    raw = unpickle.load(tmp_path / "out/checkpoint.pth")
    params = raw["params"]
    assert UNSET.keys() <= params.keys()
    assert (params["clm_steps"], params["mlm_steps"]) == ([], steps)
    assert {key: float(value) for key, value in raw["best_metrics"].items()} == {metric: 7.5}
    assert params["validation_metrics"] == f"_{metric}"
    assert (params["word_pred"], params["sample_alpha"]) == (0.2, 0.5)
    assert params["word_mask_keep_rand"] == "0.6,0.3,0.1"
    assert (params["word_mask"], params["word_keep"], params["word_rand"]) == (0.6, 0.3, 0.1)
    assert params["pred_probs"].tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert params["mask_scores"][14] == pytest.approx(raw["dico_counts"][raw["dico_id2word"][14]] ** -0.5)
    paired = any(second for _, second in steps)
    assert (params["max_len"], params["tokens_per_batch"]) == ((60, 2000) if paired else (100, -1))
    assert list(params["para_dataset"]) == ([("de", "en")] if paired else [])

    back = import_checkpoint(tmp_path / "out/checkpoint.pth", content["text"]["codes"]).content
    assert back["evaluation"] == "masked"
    assert back["text"] == content["text"]
    ours = ModelShape(**content["shape"])
    again = import_checkpoint(tmp_path / "out/checkpoint.pth", vocab_multiple=ours.vocab_multiple).content
    assert all(torch.equal(again["model"][key], value) for key, value in content["model"].items())
    for number, state in content["optimizer"]["state"].items():
        assert torch.equal(again["optimizer"]["state"][number]["exp_avg_sq"], state["exp_avg_sq"])
    export_original(again | {"sha256": "0"}, tmp_path / "twice", with_optimizer=True)
    twice = unpickle.load(tmp_path / "twice/checkpoint.pth")
    assert all(torch.equal(twice["model"][key], raw["model"][key]) for key in raw["model"])
    kept = {key: value for key, value in params.items() if key not in ("pred_probs", "mask_scores")}
    assert {key: twice["params"][key] for key in kept} == kept
    assert twice["best_metrics"] == raw["best_metrics"]


# -- transformers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(run_command: Run, masked: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("exported") / "hf"
    status, said, err = run_command("export", f"checkpoint={masked('mlm')}", f"out={out}", "card.license=mit")
    assert (status, err) == (0, "")
    assert "loaded with transformers; largest difference" in said
    return out


def best_words(checkpoint: Path, language: str, before: str, after: str) -> tuple[list[int], list[float]]:
    """Our model's five best words between two texts, and their probabilities."""
    content = checkpoint_file.load(checkpoint)
    model = XLM(ModelShape(**content["shape"])).eval()
    model.load_state_dict(content["model"])
    from xlm_train.text.reader import TextReader

    reader = TextReader(content["text"], name="text")
    left, right = (reader.encode([text], language).ids.tolist() for text in (before, after))
    tokens = torch.tensor([[1, *left[:-1], 5, *right]])
    with torch.no_grad():
        hidden = model(tokens, content["text"]["languages"][language], causal=False)
        best = model.logits(hidden)[0, len(left)].softmax(0).topk(5)
    return best.indices.tolist(), best.values.tolist()


@pytest.mark.parametrize("language", ["en", "de"])
def test_the_pipeline_fills_gaps_as_we_do(
    run_command: Run, masked: Callable[[str], Path], folder: Path, tmp_path: Path, language: str
) -> None:
    transformers = pytest.importorskip("transformers")
    checkpoint = masked("mlm")
    if language != "en":
        folder = tmp_path / "hf"
        assert run_command("export", f"checkpoint={checkpoint}", f"out={folder}", f"lang={language}")[0] == 0
    found = transformers.pipeline("fill-mask", model=str(folder))("The man was <special1> in the house .")
    words, probabilities = best_words(checkpoint, language, "The man was", "in the house .")
    assert [entry["token"] for entry in found] == words
    assert [entry["score"] for entry in found] == pytest.approx(probabilities, rel=1e-4)
    assert "<special1>" not in found[0]["sequence"]


def test_the_two_languages_fill_otherwise(masked: Callable[[str], Path]) -> None:
    """Else the tests above would not see which language the pipeline reads."""
    one, two = (best_words(masked("mlm"), language, "The man was", "in the house .") for language in ("en", "de"))
    assert one[1] != pytest.approx(two[1], rel=1e-2)


@pytest.mark.parametrize("loader", ["XLMWithLMHeadModel", "AutoModelForMaskedLM"])
def test_scores_with_languages_are_ours(masked: Callable[[str], Path], folder: Path, loader: str) -> None:
    transformers = pytest.importorskip("transformers")
    content = checkpoint_file.load(masked("mlm"))
    ours = XLM(ModelShape(**content["shape"])).eval()
    ours.load_state_dict(content["model"])
    theirs = getattr(transformers, loader).from_pretrained(folder).eval()
    tokens = torch.randint(14, 6142, (3, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for number in (0, 1):
            found = theirs(tokens, langs=torch.full_like(tokens, number)).logits
            expected = ours.logits(ours(tokens, number, causal=False))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_folder_comes_back_as_a_masked_model(masked: Callable[[str], Path], folder: Path, tmp_path: Path) -> None:
    content = checkpoint_file.load(masked("mlm"))
    back = transformers_folder.read(folder, vocab_multiple=content["shape"]["vocab_multiple"])
    assert back.warnings == []
    assert back.content["evaluation"] == "masked"
    assert back.content["text"] == content["text"]
    for key, value in content["model"].items():  # the languages lie in the positions: sums are the same
        if "position" not in key and "lang" not in key:
            assert torch.equal(back.content["model"][key], value), key
    before, after = (
        model["position_embeddings.weight"] + model["lang_embeddings.weight"][0]
        for model in (content["model"], back.content["model"])
    )
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)

    other = tmp_path / "of-elsewhere"
    shutil.copytree(folder, other)
    (other / "export.json").unlink()
    assert "evaluation=masked" in "".join(transformers_folder.read(other).warnings)
    assert transformers_folder.read(other).content["evaluation"] == "causal"
    said = transformers_folder.read(other, evaluation="masked")
    assert said.content["evaluation"] == "masked"
    assert not any("causal" in warning for warning in said.warnings)


def test_the_card_says_masked(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["pipeline_tag"], head["tags"]) == ("fill-mask", ["xlm", "masked-lm", "cross-lingual"])
    assert "text-generation" not in card
    assert "causal language model" not in card
    assert 'pipeline("fill-mask", model="FOLDER")("It was <special1> of them .")' in card
    assert "A pipeline cannot name a language: here it reads en" in card
    assert "| `objective.mask_share` | 0.2 |" in card
    config = json.loads((folder / "config.json").read_text())
    assert (config["causal"], config["lang_id"]) == (False, 1)


def test_the_cards_code_runs(folder: Path) -> None:
    pytest.importorskip("transformers")
    blocks = (folder / "README.md").read_text().split("```python\n")[1:4]
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.split("```")[0].replace("FOLDER", str(folder)), names)
    assert names["scores"].shape[-1] == 6142
    assert names["input_ids"][0, [0, -1]].tolist() == [1, 1]


def test_a_language_of_pipelines_is_checked(
    run_command: Run, masked: Callable[[str], Path], imported: Path, tmp_path: Path
) -> None:
    for checkpoint, more, message in (
        (imported, "lang=en", "lang=en: only folders of masked models have a language of their own"),
        (masked("mlm"), "lang=fr", "lang=fr: the checkpoint knows the languages de, en"),
    ):
        status, _, err = run_command("export", f"checkpoint={checkpoint}", f"out={tmp_path / 'x'}", more)
        assert (status, message in err) == (2, True), err
    status, _, err = run_command("export", f"checkpoint={imported}", f"out={tmp_path / 'x'}", "lang=en", "format=xlm")
    assert (status, "lang=en: of folders for transformers (format=hf)" in err) == (2, True)


def test_open_text_ends_as_training(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = open_text(folder).encode(["The man was in the house ."], "en").ids.tolist()
    assert tokenizer.encode("The man was in the house .") == [1, *ids]
    assert tokenizer.mask_token_id == 5
