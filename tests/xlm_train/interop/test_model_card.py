"""The model card: everything that was recorded is in it, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from xlm_train.config.train import window_tokens
from xlm_train.interop.facts import CardFields, gather
from xlm_train.interop.model_card import UNKNOWN, model_card
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.run_folder import environment

CONFIG: dict[str, Any] = {
    "run_name": "first",
    "seed": 7,
    "data": {"bptt": 64, "slots": 4, "slot_streams": 8, "lang_alpha": 0.0},
    "model": {"dim": 64, "dropout": 0.1},
    "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3},
    "schedule": {"_target_": "xlm_train.training.schedule.constant", "_partial_": True, "peak": 1e-3},
    "trainer": {"devices": 2, "nodes": 1, "precision": "32-true", "max_tokens": None},
    "paths": {"runs": "/somewhere/private"},
}


@pytest.fixture
def run(tmp_path: Path, imported: Path, golden_corpus: Path) -> Path:
    """A run folder with everything that a run can leave; returns its checkpoint."""
    lineage = json.loads((golden_corpus / "manifest.json").read_text())["lineage"]
    content = checkpoint_file.load(imported)
    del content["sha256"]
    content["config"] = {**CONFIG, "data": {**CONFIG["data"], "path": str(golden_corpus)}}
    content["lineage"] = {"corpus": lineage, "parents": []}
    file = tmp_path / "runs/first/checkpoints/step-00000200.pt"
    file.parent.mkdir(parents=True)
    checkpoint_file.save(file, content)
    folder = file.parent.parent
    (folder / "config.yaml").write_text("run_name: first\n")
    (folder / "environment.json").write_text(json.dumps(environment()))
    lines = [{"step": step, "time": 0.0, "speed/seconds_per_step": 36.0} for step in (50, 100, 200, 300)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "energy.json").write_text(
        json.dumps({"energy_kwh": 1.5, "co2_kg": 0.6, "method": "estimated", "region": "Ruritania"})
    )
    write_evaluation(file.parent / "step-00000200.test.json", checkpoint_file.load(file)["sha256"])
    write_evaluation(file.parent / "step-00000100.test.json", "of another checkpoint", perplexity=666.0)
    return file


def write_evaluation(path: Path, sha256: str, perplexity: float = 123.456) -> None:
    measured = {"perplexity": perplexity, "accuracy": 20.5, "perplexity_per_word": 999.5, "bits_per_character": None}
    result = {"checkpoint": {"sha256": sha256}, "split": "test", "languages": {"de": measured, "en": measured}}
    path.write_text(json.dumps({**result, "mean": measured}))


def card_of(file: Path, evaluation: Path | None = None, **fields: str) -> tuple[str, dict[str, Any]]:
    content = checkpoint_file.load(file)
    card = model_card(gather(file, content, evaluation, CardFields(**fields), n_parameters=532_222))
    head, body = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", card, re.DOTALL).groups()  # type: ignore[union-attr]
    return body, yaml.safe_load(head)


def test_everything_recorded_is_in_it(run: Path, golden_corpus: Path) -> None:
    fields = {"license": "mit", "authors": "Ann Example", "contact": "ann@example.org"}
    body, head = card_of(run, **fields)
    manifest = json.loads((golden_corpus / "manifest.json").read_text())
    counts = manifest["splits"]["train"]["de"]
    assert head["language"] == ["de", "en"]
    assert head["license"] == "mit"
    assert head["library_name"] == "transformers"
    assert head["co2_eq_emissions"]["emissions"] == pytest.approx(600)  # grams, as the hub wants
    (result,) = head["model-index"]
    assert [entry["dataset"]["name"] for entry in result["results"]] == ["de, test split", "en, test split"]
    assert {metric["type"]: metric["value"] for metric in result["results"][0]["metrics"]} == {
        "perplexity": 123.456,
        "accuracy": 20.5,
        "perplexity_per_word": 999.5,
    }
    for text in (
        "# first\n",
        "Ann Example",
        "ann@example.org",
        "532,222 parameters",
        "German (de) and English (en)",
        "trained from scratch",
        f"| train | de | {counts['sentences']:,} | {counts['words']:,} | {counts['tokens']:,} |",
        manifest["lineage"],
        "200 steps, 200 updates, 409,600 tokens read",  # 200 x 4 x 8 x 64
        "| `optimizer.lr` | 0.001 |",
        "| `seed` | 7 |",
        "| test split | de | 123.456 | 20.500 | 999.500 | not recorded |",
        "**Hours used:** 2 (training steps",  # 200 steps of 36 s; what came after the checkpoint is not counted
        "2 processes",
        "**Region:** Ruritania",
        "1.500 kWh (estimated)",
        "0.600 kg (estimated; average of Ruritania)",
        f"torch {environment()['packages']['torch']}",
        checkpoint_file.load(run)["sha256"],
        "6,000 merges",
        "@inproceedings{lample2019cross",
    ):
        assert text in body, text
    scores = [line.split(" | ")[1:3] for line in body.splitlines() if line.startswith("| test split")]
    assert scores == [["de", "123.456"], ["en", "123.456"], ["mean", "123.456"]]  # of this checkpoint's results alone
    assert "More information needed" not in body


def test_no_path_of_the_machine_is_told(run: Path, tmp_path: Path) -> None:
    body, head = card_of(run)
    assert "/somewhere" not in body
    assert str(tmp_path) not in body + str(head)


def test_what_is_not_known_is_said(imported: Path) -> None:
    body, head = card_of(imported)
    assert head.keys() == {"language", "library_name", "tags"}  # no pipeline: that of causal models generates wrongly
    assert "imported from `checkpoint.pth`, not trained by this project" in body
    for what in (
        "Developed by",
        "License",
        "Hardware type",
        "Hours used",
        "Region",
        "Energy",
        "Carbon dioxide emitted",
    ):
        assert f"**{what}:** {UNKNOWN}" in body, what
    assert f"Text, sizes and hashes: {UNKNOWN}" in body
    assert f"Results: {UNKNOWN}" in body
    assert body.count("not measured") == 2


def test_another_corpus_is_not_passed_off(run: Path, golden_corpus: Path) -> None:
    content = checkpoint_file.load(run)
    content["lineage"]["corpus"] = "another"
    del content["sha256"]
    checkpoint_file.save(run, content)
    body, _ = card_of(run)
    assert f"Text, sizes and hashes: {UNKNOWN}. Lineage of the corpus: `another`." in body


def test_a_given_evaluation_must_be_of_this_checkpoint(run: Path) -> None:
    other = run.parent / "step-00000100.test.json"
    with pytest.raises(UserError, match=r"step-00000100\.test\.json: is not a result of xlm-eval for this checkpoint"):
        card_of(run, evaluation=other)
    body, _ = card_of(run, evaluation=run.parent / "step-00000200.test.json")
    assert "123.456" in body


def test_the_user_has_the_last_word(run: Path) -> None:
    body, _ = card_of(run, name="my-model", region="Elsewhere")
    assert body.startswith("# my-model\n")
    assert "**Region:** Elsewhere" in body


def test_the_exported_card(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "mit"
    assert "# small\n" in card
    assert "- de: 380 of 1,941 lines (19.6 %)" in card
    assert "pipeline_tag" not in head


def test_stated_figures_stand_above_estimates_and_name_their_source(run: Path) -> None:
    """energy.json: 1.5 kWh, estimated, 0.6 kg by Ruritania's average."""
    body, head = card_of(run, region="Elsewhere")
    assert "- **Region:** Elsewhere" in body
    assert "0.600 kg (estimated; average of Ruritania)" in body
    assert head["co2_eq_emissions"]["geographical_location"] == "Ruritania"  # whose average it is
    body, head = card_of(run, region="Elsewhere", grams_co2_per_kwh=100.0)  # type: ignore[arg-type]
    assert "0.150 kg (estimated; 100 g CO2 per kWh as stated by the author)" in body
    assert head["co2_eq_emissions"]["geographical_location"] == "Elsewhere"
    assert "W as stated by the author" in card_of(run, watts=2000.0)[0]  # type: ignore[arg-type]
    measured = {"energy_kwh": 1.5, "co2_kg": 0.6, "method": "measured by codecarbon", "region": "Ruritania"}
    (run.parent.parent / "energy.json").write_text(json.dumps(measured))
    assert "1.500 kWh (measured by codecarbon)" in card_of(run, watts=2000.0)[0]  # type: ignore[arg-type]


def test_energy_is_estimated_from_stated_power_and_says_so(run: Path) -> None:
    (run.parent.parent / "energy.json").unlink()
    body, _ = card_of(run)
    assert "**Energy:** not recorded" in body
    body, _ = card_of(run, watts=2000.0, grams_co2_per_kwh=400.0)  # type: ignore[arg-type]
    hours = float(re.search(r"Hours used:\*\* ([\d.,]+)", body)[1])  # type: ignore[index]
    found = re.search(r"\*\*Energy:\*\* ([\d.,]+) kWh \((estimated, not measured.*)\)", body)
    assert found is not None
    assert float(found[1]) == pytest.approx(2 * hours, rel=0.02)
    assert "2000 W" in found[2]
    co2 = float(re.search(r"dioxide emitted:\*\* ([\d.,]+) kg", body)[1])  # type: ignore[index]
    assert co2 == pytest.approx(0.8 * hours, rel=0.02)


def test_tokens_that_a_config_alone_does_not_tell_are_left_out() -> None:
    assert window_tokens(CONFIG) == 4 * 8 * 64
    assert window_tokens({"data": {"bptt": 64}}) is None  # as an imported checkpoint has it
    pairs = {"_target_": "xlm_train.objectives.tlm.TranslationLM", "_partial_": True}
    assert window_tokens({**CONFIG, "objective": pairs}) is None
    assert window_tokens({**CONFIG, "objective": {"_target_": "x.Mixture", "parts": {"tlm": pairs}}}) is None
