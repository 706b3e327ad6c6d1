"""Options of masked objectives: what is refused, and that one objective may start from another's checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import train_here
from tests.end_to_end.worlds import last
from xlm_train.config.overrides import check_overrides
from xlm_train.config.overrides import compose as composed
from xlm_train.config.train import read_train_config
from xlm_train.report.reading import read_run
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import ConfigError

Config = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def config(compose: Config, paired_corpus: Path, runs: Path) -> Config:
    """config(run name, objective, *overrides): 2 steps of 3 slots."""

    def composed(name: str, objective: str, *overrides: str) -> dict[str, Any]:
        where = (f"data.path={paired_corpus}", f"paths.runs={runs}", f"run_name={name}", f"objective={objective}")
        words = (
            "data.slots=3",
            "data.tokens_per_slot=200",
            "data.max_len=30",
            "callbacks.checkpointing.every_n_steps=3",
        )
        return compose("train", "experiment=smoke", "trainer.max_steps=2", *words, *where, *overrides)

    return composed


@pytest.fixture(scope="module")
def whole(config: Config, runs: Path) -> Path:
    train_here(config("whole", "mlm_tlm"))
    return runs / "whole"


def test_pairs_alone_have_a_mean_too(config: Config, runs: Path) -> None:
    train_here(config("pairs", "tlm"))
    validation = last(runs / "pairs")["metrics"]
    assert validation["val/ppl"] == validation["val/ppl_de-en"]
    run = read_run(runs / "pairs")
    assert (run.languages, run.reads_pairs) == (["de-en"], True)


def test_another_objective_may_start_from_it_and_names_its_parent(config: Config, whole: Path, runs: Path) -> None:
    parent = whole / "checkpoints/step-00000002.pt"
    train_here(config("causal", "clm", f"init_from={parent}", "trainer.max_steps=1"))
    content = checkpoint_file.load(runs / "causal/checkpoints/step-00000001.pt")
    assert content["lineage"]["parents"] == [checkpoint_file.load(parent)["sha256"]]
    assert content["evaluation"] == "causal"
    with pytest.raises(ConfigError, match=r"objective\._target_: was .*Mixture, now .*MaskedLM"):
        train_here(config("whole", "mlm"))


@pytest.mark.parametrize(
    ("objective", "override", "message"),
    [
        ("mlmm", "", "objective has no option 'mlmm' (did you mean mlm or mlm_tlm?); there are ae, bt, clm, mlm, mlm_tlm, mt"),
        ("mlm", "+objective.mask_shares=1", "takes no 'mask_shares' (did you mean mask_share?)"),
        ("mlm", "objective.mask_share=1.5", "objective.mask_share=1.5: must be above 0 and below 1"),
        ("mlm", "objective.mask_share=x", "objective.mask_share=x: must be a number"),
        ("mlm", "objective.sample_alpha=-1", "objective.sample_alpha=-1: must be from 0 to 10"),
        ("mlm", "objective.replacements=[0.5,0.5]", "must be three shares that add up to 1: mask, keep, random word"),
        ("tlm", "objective.replacement=[1]", "did you mean objective.replacements?"),
        ("tlm", "objective.pairs=[de-fr]", "has no parallel text train.de-fr (it has train.de-en, valid.de-en, test.de-en)"),
        ("tlm", "objective.pairs=[german]", "objective.pairs: german does not name two languages, as de-en does"),
        ("tlm", "data.tokens_per_slot=0", "data.tokens_per_slot=0: must be at least 1"),
        ("tlm", "data.tokens_per_slot=20", "data.tokens_per_slot=20: must be more than the"),
        ("tlm", "data.tokens_per_slots=20", "there is no 'data.tokens_per_slots' (did you mean data.tokens_per_slot?)"),
        ("tlm", "data.max_len=0", "data.max_len=0: must be at least 1"),
        ("tlm", "data.max_len=600", "data.max_len=62 is the longest"),
        ("tlm", "data.max_length=60", "did you mean data.max_len?"),
        ("mlm_tlm", "objective.shares.mlm=0", "objective.shares.mlm=0: must be above 0"),
        ("mlm_tlm", "objective.parts.tlm.mask_share=2", "objective.parts.tlm.mask_share=2: must be above 0 and below 1"),
        ("mlm", "trainer.precision=bf16", "must be one of 32-true, 16-mixed, bf16-mixed, auto"),
        ("mlm", "callbacks.validation.monitor=val/ppl_de-en", "must be one of val/ppl, val/acc, val/loss_de"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line(paired_corpus: Path, objective: str, override: str, message: str) -> None:
    words = [
        "experiment=smoke",
        f"data.path={paired_corpus}",
        "run_name=x",
        f"objective={objective}",
        "data.max_len=30",
    ]
    words += [override] if override else []

    def read() -> None:
        read_train_config(composed("train", check_overrides("train", words, read_train_config), None))

    with pytest.raises(ConfigError) as error:
        read()
    assert len(error.value.problems) == 1, error.value.problems
    assert message in error.value.problems[0]
