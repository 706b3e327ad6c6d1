"""Runs on parallel text, objective=tlm and mlm_tlm, keep every promise of the others: resume, processes, coverage, refusals."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.conftest import command, read_lines, text_files, train_here
from tests.end_to_end.worlds import (
    Death,
    assert_same_run,
    largest_difference,
    last,
    reported,
    slots_trained,
    start,
    train_on,
)
from xlm_train.config.train import read_train_config
from xlm_train.data.corpus import Corpus
from xlm_train.data.order import Order
from xlm_train.data.training_text import TrainingText
from xlm_train.evaluation.corpus import evaluate
from xlm_train.model.pretrained import open_checkpoint
from xlm_train.objectives.tlm import TranslationLM
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import EOS
from xlm_train.training.module import LanguageModel

Config = Callable[..., dict[str, Any]]
SKIPPED = ("callbacks.guard.policy=skip", "debug.nan_steps=[2]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def corpus(shared: Path, folder: Path) -> Path:
    """A corpus of real text with 400 pairs, made by xlm-prep."""
    text = text_files(shared, folder, 600)
    for split, first, end in (("train", 0, 400), ("valid", 400, 460)):
        for lang in ("de", "en"):
            lines = read_lines(shared / f"corpora/sutta.parvalid.{lang}.gz")[first:end]
            (folder / f"{split}.{lang}").write_text("".join(f"{line}\n" for line in lines))
    command(
        "data_prep.prepare",
        f"out={folder / 'bin'}",
        *(f"train.{lang}={path}" for lang, path in text.items()),
        *(f"pairs.de-en.{s}=[{folder / f'{s}.de'},{folder / f'{s}.en'}]" for s in ("train", "valid")),
        "bpe.n_codes=300",
        "holdout.sentences=40",
        "workers=1",
    )
    return folder / "bin"


@pytest.fixture(scope="module")
def config(compose: Config, corpus: Path, folder: Path) -> Config:
    """config(run name, *overrides) of experiment=smoke: 6 steps of 3 slots of about 300 tokens, with dropout."""

    def composed(name: str, *overrides: str) -> dict[str, Any]:
        where = (f"data.path={corpus}", f"paths.runs={folder / 'runs'}", f"run_name={name}")
        words = ("data.slots=3", "data.tokens_per_slot=300", "data.max_len=60", "trainer.max_steps=6")
        words += ("model.max_positions=64", "callbacks.checkpointing.every_n_steps=3")
        words += ("callbacks.metrics.every_n_steps=1", "callbacks.validation.every_n_steps=3")
        return compose("train", "experiment=smoke", *words, *where, *overrides)

    return composed


@pytest.mark.parametrize("objective", [pytest.param("tlm", marks=pytest.mark.slow), "mlm_tlm"])
def test_a_killed_run_and_one_of_two_processes_are_the_undisturbed_one(
    objective: str, config: Config, corpus: Path
) -> None:
    whole = train_on(1, config(f"whole_{objective}", f"objective={objective}"))
    names = {name for _, name, _ in reported(whole, "train/loss_", "val/ppl_")}
    languages = {"de", "en"} if objective == "mlm_tlm" else set()
    assert names == {f"{kind}_{name}" for kind in ("train/loss", "val/ppl") for name in {"de-en", *languages}}
    settings = config(f"killed_{objective}", f"objective={objective}")
    assert -signal.SIGKILL in start(settings, 1, Death(step=4, slot=2))
    assert_same_run(whole, train_on(1, settings))
    two = train_on(2, config(f"two_{objective}", f"objective={objective}"))
    read = [[(slot.step, slot.slot, slot.tokens) for slot in slots_trained(run)] for run in (whole, two)]
    assert read[0] == read[1]
    assert largest_difference(whole, two) < 1e-5
    trained = open_checkpoint(whole / "checkpoints/step-00000006.pt", "cpu")
    result, validation = evaluate(trained, Corpus(corpus), "valid"), last(whole)["metrics"]
    assert result["languages"]["de-en"]["perplexity"] == pytest.approx(validation["val/ppl_de-en"], rel=1e-6)
    if objective == "mlm_tlm":
        assert result["mean"]["perplexity"] == pytest.approx(validation["val/ppl"], rel=1e-6)


def test_a_run_reads_every_pair_once_a_pass(
    config: Config, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two passes, in which one step is read but not applied: its pairs do not come again."""
    settings = config("passes", "objective=tlm", "callbacks.validation=null", *SKIPPED)
    text = TrainingText(Corpus(corpus), tokens_per_slot=300, max_len=60, max_positions=64)
    order = Order(TranslationLM(text).streams, 3, settings["seed"])
    units = order.streams["de-en"].n_units
    settings["trainer"]["max_steps"] = steps = -(-2 * units // 3)
    trained: list[Counter[tuple[int, ...]]] = []
    training_step = LanguageModel.training_step

    def watched(module: LanguageModel, batch: Any, batch_idx: int) -> None:
        for slot in batch.slots:
            tokens = slot.inputs.tokens_BT.flatten().clone()
            tokens[slot.inputs.chosen_N] = slot.inputs.targets_N
            rows = tokens.view(slot.inputs.tokens_BT.shape)
            lengths = slot.inputs.lengths_B.tolist()
            trained.append(Counter(tuple(row[:n].tolist()) for row, n in zip(rows, lengths, strict=True)))
        training_step(module, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", watched)
    assert train_here(settings) == 0
    assert len(trained) == 3 * steps
    assert last(Path(settings["paths"]["runs"]) / "passes")["progress"]["skipped"] == [2]
    pairs = text.corpus.pairs("train", "de-en")
    found = [
        (EOS, *a.tolist(), EOS, EOS, *b.tolist(), EOS)
        for a, b in pairs.read(np.arange(pairs.n))
        if max(len(a), len(b)) <= 60
    ]
    assert 200 < len(found) < pairs.n
    assert sum(trained[:units], Counter()) == sum(trained[units : 2 * units], Counter()) == Counter(found)
    assert f"de-en: {units} batches a pass, " in capsys.readouterr().err


def test_mistakes_are_told_early(compose: Config, corpus: Path, corpus_folder: Path, folder: Path) -> None:
    def problems(path: Path, *overrides: str) -> list[str]:
        where = (f"data.path={path}", f"paths.runs={folder / 'runs'}", "run_name=wrong")
        with pytest.raises(ConfigError) as error:
            read_train_config(OmegaConf.create(compose("train", "experiment=smoke", *where, *overrides)))
        return error.value.problems

    for objective in ("tlm", "mlm_tlm"):
        (line,) = problems(corpus_folder, f"objective={objective}")
        assert "has no parallel text train.de-en (it has none)" in line
        assert "xlm-prep ... 'pairs.de-en.train=[FILE.de,FILE.en]'" in line
    assert problems(corpus, "objective=tlm", "objective.pairs=[english]") == [
        "objective.pairs: english does not name two languages, as de-en does"
    ]
    assert problems(corpus, "objective=mlm_tlm", "data.tokens_per_slot=20", "data.max_len=60")[0].startswith(
        "data.tokens_per_slot=20: must be more than"
    )
    assert problems(corpus, "objective=tlm", "data.max_len=600")[0].startswith("data.max_len=600 with eos on both ends")
    assert problems(corpus, "objective=tlm", "data.max_len=60", "callbacks.validation.monitor=val/ppl_de") == [
        "callbacks.validation.monitor=val/ppl_de: must be one of val/ppl, val/acc, val/loss_de-en, val/ppl_de-en, val/acc_de-en"
    ]
