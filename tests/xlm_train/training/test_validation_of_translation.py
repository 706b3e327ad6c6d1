"""Translation models are validated in training: BLEU of each direction, samples, the monitor, on one process and on two."""

from __future__ import annotations

import json
import math
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.end_to_end.worlds import Death, last, reported, start, train_on
from xlm_train.config.train import read_train_config
from xlm_train.evaluation.bleu import tokenised_bleu
from xlm_train.runtime.errors import ConfigError

Config = Callable[..., dict[str, Any]]
WORDS = "".join(f"w{i} {100 - i}\n" for i in range(40))
MONITOR = "callbacks.validation.monitor=val/bleu_de-en"


@pytest.fixture(scope="module")
def corpora(make_corpus: Callable[..., Path], runs: Path) -> dict[str, Path]:
    """Twelve pairs that training and validation share, word for word, and an empty side; the same without validation."""
    random = np.random.default_rng(3)
    de = [random.choice(np.arange(14, 34), n, replace=False).tolist() for n in range(4, 16)]
    sides = {"de": [*de, [20]], "en": [*([word + 20 for word in reversed(ids)] for ids in de), []]}
    train = {"de": sides["de"][:-1], "en": sides["en"][:-1]}
    mono, training = {"train": train}, {"train": {"de-en": train}}
    return {
        "pairs": make_corpus(runs / "pairs", WORDS, "w 1</w> 1\n", mono, pairs={**training, "valid": {"de-en": sides}}),
        "bare": make_corpus(runs / "bare", WORDS, "w 1</w> 1\n", mono, pairs=training),
    }


@pytest.fixture(scope="module")
def config(compose: Config, corpora: dict[str, Path], runs: Path) -> Config:
    """config(run name, *overrides) of experiment=smoke: 2 slots of about 100 tokens."""

    def composed(name: str, *overrides: str, corpus: str = "pairs") -> dict[str, Any]:
        where = (f"data.path={corpora[corpus]}", f"paths.runs={runs}", f"run_name={name}")
        words = ("data.slots=2", "data.tokens_per_slot=100", "data.max_len=20", "model.max_positions=32")
        words += ("schedule=constant", "optimizer.lr=5e-3", "model.dropout=0")
        return compose("train", "experiment=smoke", *words, *where, *overrides)

    return composed


def often(steps: int, every: int) -> tuple[str, ...]:
    keys = ("callbacks.validation", "callbacks.checkpointing")
    return (f"trainer.max_steps={steps}", *(f"{key}.every_n_steps={every}" for key in keys))


@pytest.fixture(scope="module")
def learnt(config: Config) -> Path:
    """A run that learns its pairs by heart."""
    return train_on(1, config("learnt", "objective=mt", MONITOR, *often(120, 30)))


def samples_of(run: Path) -> list[tuple[int, list[dict[str, str]]]]:
    lines = (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["step"], line["samples"]) for line in map(json.loads, lines)]


def log_of(run: Path) -> str:
    return (run.with_name(f"{run.name}.watched") / "rank-0.log").read_text()


def test_each_direction_is_translated_and_scored(learnt: Path) -> None:
    found = {(step, name.removeprefix("val/")): value for step, name, value in reported(learnt, "val/")}
    for step in (30, 60, 90, 120):
        for kind in ("bleu", "ppl", "acc"):
            both = [found[step, f"{kind}_{name}"] for name in ("de-en", "en-de")]
            assert found[step, kind] == pytest.approx(sum(both) / 2)
        for name in ("de-en", "en-de"):
            assert math.log(found[step, f"ppl_{name}"]) == pytest.approx(found[step, f"loss_{name}"])
            assert found[step, f"constant_{name}"] == found[30, f"constant_{name}"] > 10
            assert found[step, f"copied_{name}"] == 0
    for name in ("de-en", "en-de"):
        assert found[120, f"bleu_{name}"] > found[120, f"constant_{name}"] > found[30, f"bleu_{name}"]
        assert found[120, f"chrf_{name}"] > found[30, f"chrf_{name}"]
    assert "validation of de-en: 12 pairs; BLEU without a model: 14.60 (constant) and 0.00 (copied)" in log_of(learnt)
    assert re.search(
        r"step 120: validation ppl .*, acc .* %, bleu \d+\.\d+ \(de-en \d+\.\d+, en-de \d+\.\d+\)", log_of(learnt)
    )


def test_the_monitor_decides_which_checkpoint_is_the_best(learnt: Path) -> None:
    """BLEU of one direction: higher is better, and not strictly better is a failure."""
    state = last(learnt)["train_state"]
    values = [(value, -step) for step, _, value in reported(learnt, "val/bleu_de-en")]
    assert state["monitor"] == "val/bleu_de-en"
    assert (state["best_metric"], -state["best_step"]) == max(values)
    assert (learnt / "checkpoints/best.pt").resolve().name == f"step-{state['best_step']:08d}.pt"


def test_ten_samples_are_kept_of_each_validation(learnt: Path, corpora: dict[str, Path]) -> None:
    """The same pairs each time, of both directions, from short to long; the empty pair is never among them."""
    found = samples_of(learnt)
    assert [(step, len(samples)) for step, samples in found] == [(30, 10), (60, 10), (90, 10), (120, 10)]
    pairs = [[(s["direction"], s["source"], s["reference"]) for s in samples] for _, samples in found]
    assert pairs == [pairs[0]] * 4
    for name in ("de-en", "en-de"):
        mine = [sample for sample in found[-1][1] if sample["direction"] == name]
        assert len(mine) == 5
        lengths = [len(sample["source"].split()) for sample in mine]
        assert lengths == sorted(set(lengths))
        assert all(sample["reference"] for sample in mine)
        # what the run knows by heart it shows so
        assert tokenised_bleu([s["translation"] for s in mine], [s["reference"] for s in mine]) > 10


def test_a_resumed_run_shows_no_step_twice(config: Config) -> None:
    """The last validation before the kill has no checkpoint behind it, and comes again."""
    words = ("objective=umt", MONITOR, *often(4, 2), "callbacks.checkpointing.every_n_steps=3")
    whole = train_on(1, config("whole", *words))
    assert {name for _, name, _ in reported(whole, "val/bleu")} == {"val/bleu", "val/bleu_de-en", "val/bleu_en-de"}
    assert -signal.SIGKILL in start(config("killed", *words), 1, Death(step=2, slot=0))
    killed = whole.with_name("killed")
    assert [step for step, _ in samples_of(killed)] == [2]
    assert samples_of(train_on(1, config("killed", *words))) == samples_of(whole)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(config: Config, learnt: Path) -> None:
    """The weights that know their pairs by heart, after a step so small that it changes no word."""
    words = ("objective=mt", f"init_from={learnt / 'checkpoints/step-00000120.pt'}", "optimizer.lr=1e-7", *often(1, 1))
    one, two = (train_on(n, config(f"on_{n}", *words)) for n in (1, 2))
    found, same = ({name: value for _, name, value in reported(run, "val/")} for run in (one, two))
    assert found["val/bleu"] > 20
    for name, value in found.items():
        exactly = "bleu" in name or "chrf" in name
        assert same[name] == (value if exactly else pytest.approx(value, rel=1e-5)), name
    assert samples_of(one) == samples_of(two)
    states = [last(run)["train_state"] for run in (one, two)]
    assert states[0]["best_metric"] == pytest.approx(states[1]["best_metric"], rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "corpus", "line"),
    [
        ("ae", "pairs", "no validation: the objective learns no direction of translation"),
        ("mt", "bare", "no validation of de-en: the corpus has no such pairs (xlm-prep pairs.de-en.valid=)"),
    ],
)
def test_where_nothing_can_be_translated_the_log_says_so(
    config: Config, objective: str, corpus: str, line: str
) -> None:
    run = train_on(1, config(f"{objective}_alone", f"objective={objective}", *often(2, 1), corpus=corpus))
    assert log_of(run).count(line) == 1
    assert not reported(run, "val/")
    assert not (run / "samples.jsonl").exists()


def test_what_cannot_be_monitored_is_refused_before_the_run(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = OmegaConf.create(config("x", "objective=umt", "callbacks.validation.monitor=val/bleu_de"))
    with pytest.raises(
        ConfigError, match=r"monitor=val/bleu_de: must be one of val/bleu, .*val/bleu_de-en.*val/chrf_de-en"
    ):
        read_train_config(wrong)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ConfigError, match=r"sacrebleu: pip install 'xlm_train\[translation\]'"):
        read_train_config(OmegaConf.create(config("x", "objective=umt")))
    read_train_config(OmegaConf.create(config("x", "objective=umt", "callbacks.validation=null")))
