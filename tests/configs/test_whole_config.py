"""The training config as typed values: unknown keys, callbacks and loggers as entries, names of earlier versions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import yaml
from omegaconf import OmegaConf

from tests.conftest import REPOSITORY, command
from xlm_train.config import parts, renamed
from xlm_train.config.overrides import check_overrides, compose
from xlm_train.config.renamed import renamings, with_new_names
from xlm_train.config.train import TrainConfig, from_resolved, problems_of, read_train_config, steps_of
from xlm_train.model.transformer import ModelShape
from xlm_train.runtime.errors import ConfigError

EARLY = "+callbacks.x._target_=pytorch_lightning.callbacks"


class Picky(pl.Callback):
    """A callback with rules of its own."""

    def __init__(self, policy: str = "stop", every_n_steps: int = 1) -> None:
        if policy not in ("stop", "skip"):
            raise ConfigError([f"policy={policy}: must be one of stop, skip"])
        if every_n_steps < 1:
            raise ValueError("every_n_steps must be positive")


def words(corpus: Path, *overrides: str) -> list[str]:
    return ["experiment=smoke", f"data.path={corpus}", *overrides]


def problems(corpus: Path, *overrides: str) -> list[str]:
    return problems_of(compose("train", words(corpus, *overrides), None))


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Shipped callbacks with classes, to fill in from."""
    entries: dict[str, Any] = {
        "metrics": {"_target_": f"{__name__}.Picky", "every_n_steps": 10},
        "checkpointing": {"_target_": f"{__name__}.Picky", "every_n_steps": "${callbacks.metrics.every_n_steps}"},
        "preemption": {"_target_": f"{__name__}.Picky", "every_n_steps": 10},
    }
    monkeypatch.setattr(parts, "shipped_callbacks", lambda: copy.deepcopy(entries))
    monkeypatch.setitem(renamed.KEYS, "callbacks.interruption", "callbacks.preemption")
    return entries


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+optimzer.lr=3", "there is no 'optimzer' (did you mean optimizer"),
        ("+trainer.gradient_clip_val=0.1", "there is no 'trainer.gradient_clip_val'; here: trainer.clip_norm"),
        ("+ckpt_path=/nowhere", "ckpt_path=/nowhere: there is no 'ckpt_path'; here: the same run_name resumes"),
        ("+trainer.max_epochs=3", "here: trainer.max_steps or trainer.max_tokens"),
        ("+data.batch_size=3", "here: data.slots x data.slot_streams windows"),
        ("+model.foo=1", "model.foo=1: there is no 'model.foo'"),
        ("+model.drop_out=1", "there is no 'model.drop_out' (did you mean model.dropout"),
        ("+data.x=1", "data.x=1: there is no 'data.x'"),
        ("+paths.run=1", "paths.run=1: there is no 'paths.run' (did you mean paths.runs?)"),
        ("+debug.nan_step=1", "did you mean debug.nan_steps?"),
        ("+cluster.watt=1", "did you mean cluster.watts?"),
        ("+optimizer.foo=1", "optimizer.foo=1: torch.optim.AdamW takes no 'foo'"),
        ("+optimizer.weight_decai=1", "did you mean weight_decay?"),
        ("+schedule.total_updates=1", "takes no 'total_updates' (did you mean "),
        ("optimizer._target_=torch.optim.Adamm", "there is no such class (did you mean Adam"),
        ("schedule._target_=no.such.place", "schedule._target_=no.such.place: there is no such class"),
        ("model.ops=slow", "model.ops=slow: must be one of fast, plain"),
        ("data.lang_alpha=2", "data.lang_alpha=2: must be from 0"),
        ("debug.nan_steps=[a]", "must be a list of whole numbers"),
        ("init_optimizer=true", "give init_from=FILE"),
        ("run_name=5", "run_name=5: must be text; quote it: run_name='\"5\"'"),
        ("trainer.sharding=one", "trainer.sharding=one: must be null or one of zero, fsdp"),
        ("trainer.max_restarts=-1", "trainer.max_restarts=-1: must be at least 0"),
        ("trainer.devices=0", "trainer.devices=0: must be at least 1"),
        ("cluster.watts=-1", "cluster.watts=-1: must be positive"),
        ("paths.runs=${nowhere}", "paths.runs: Interpolation key 'nowhere' not found"),
        ("data.path=???", "data.path has no value: give data.path=..."),
        (f"{EARLY}.EarlyStoping", "there is no such class (did you mean EarlyStopping"),
        ("+callbacks.x._target_=torch.nn.Linear", "is no Callback of pytorch_lightning"),
        ("+callbacks.x._target_=a.b.C", "callbacks.x._target_=a.b.C: there is no such class"),
        ("+callbacks.x.every=1", "callbacks.x._target_ has no value"),
        ("+callbacks.x=1", "callbacks.x=1: must be a mapping or null"),
        ("callbacks.checkpointing.keep_last=2.5", "callbacks.checkpointing.keep_last=2.5: must be a whole number"),
        ("callbacks.checkpointing.every_n_steps=true", "every_n_steps=True: must be a whole number"),
        ("callbacks.metrics.every_n_steps=abc", "callbacks.metrics.every_n_steps=abc: must be a whole number"),
        ("callbacks.metrics.every_n_steps=null", "callbacks.metrics.every_n_steps=None: must be a whole number"),
        ("callbacks.metrics.peak_tflops=3", "callbacks.metrics.peak_tflops=3: must be a mapping"),
        ("callbacks.preemption.every_n_steps=${data.slot_streams}.5", "must be a whole number"),
        (f"{EARLY}.EarlyStopping", "callbacks.x: pytorch_lightning.callbacks.EarlyStopping: "),
        (f"{EARLY}.StochasticWeightAveraging", "use pytorch_lightning.callbacks.EMAWeightAveraging"),
        (f"{EARLY}.GradientAccumulationScheduler", "data.slots is the accumulation"),
        (f"{EARLY}.LearningRateFinder", "cannot work here"),
        (f"{EARLY}.BatchSizeFinder", "cannot work here"),
        (f"{EARLY}.BackboneFinetuning", "cannot work here"),
        (f"{EARLY}.ModelPruning", "cannot work here"),
        (f"{EARLY}.SpikeDetection", "cannot work here"),
        ("logger.console._target_=a.b.C", "logger.console._target_=a.b.C: there is no such class"),
        ("+logger.console.second=1", "loggers.ConsoleLogger takes no 'second' (did you mean seconds?)"),
        ("~logger.jsonl.path", "loggers.JsonLinesLogger: missing a required argument: 'path'"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_problem(corpus_folder: Path, override: str, message: str) -> None:
    found = problems(corpus_folder, override)
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["model.n_heads=3", "optimizer.lr=abc", "data.slots=0"], 3),
        (["model.dim=abc", "model.n_heads=3", "model.dropout=2"], 2),  # n_heads cannot be told without dim
        (["data.bptt=abc", "data.slots=0", "trainer.devices=0"], 3),
        (["trainer.max_steps=ten", "schedule=cosine", "+data.x=1"], 2),
        (["data.path=???", "seed=abc", "paths.runs=${nowhere}"], 3),
        (["debug.nan_steps=[a]", "init_optimizer=true", "+callbacks.x._target_=a.B", "+logger.y._target_=a.B"], 4),
    ],
)
def test_mistakes_do_not_hide_each_other(corpus_folder: Path, overrides: list[str], count: int) -> None:
    assert len(problems(corpus_folder, *overrides)) == count


def test_a_mistyped_key_does_not_hide_the_rest(corpus_folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        check_overrides("train", words(corpus_folder, "optimizer.lrr=3", "data.slots=0"), read_train_config)
    assert error.value.problems == [
        "optimizer.lrr=3: there is no 'optimizer.lrr' (did you mean optimizer.lr?)",
        "data.slots=0: must be at least 1",
    ]


def test_typed_values(corpus_folder: Path) -> None:
    config = read_train_config(compose("train", words(corpus_folder, "trainer.max_tokens=1000"), None))
    assert (config.data.slots, config.trainer.world_size) == (2, 1)
    assert steps_of(config.resolved["trainer"], 256) == 4  # 1,000 tokens in whole steps of 256
    assert config.model.shape(100, 2) == ModelShape(
        100, 2, dim=32, n_layers=2, n_heads=2, ffn_dim=128, max_positions=64, vocab_multiple=8
    )
    assert config.resolved["logger"]["jsonl"]["path"] == "runs/smoke/metrics.jsonl"
    assert from_resolved(config.resolved) == config


def test_a_frozen_config_of_an_earlier_version(corpus_folder: Path) -> None:
    values = read_train_config(compose("train", words(corpus_folder), None)).resolved
    old = copy.deepcopy(values)
    del old["model"]["ops"]
    old["optimizer"]["_target_"] = "xlm_train.optim.OriginalAdam"
    old["schedule"]["_target_"] = "xlm_train.schedule.inverse_sqrt"
    config = from_resolved(old)
    assert isinstance(config, TrainConfig)
    assert config.model.ops == "fast"
    assert config.optimizer["_target_"] == "xlm_train.training.optim.OriginalAdam"
    assert with_new_names(old)["schedule"] == values["schedule"]
    assert "ops" not in old["model"], "the old mapping was changed"


def test_what_is_new_stays_as_it_is(compose: Callable[..., dict[str, Any]], corpus_folder: Path) -> None:
    config = compose("train", f"data.path={corpus_folder}", "run_name=x")
    assert with_new_names(config) == config
    assert renamings(config) == []


def test_renamed_keys(shipped: dict[str, Any], corpus_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose("train", words(corpus_folder), None)
    config.callbacks = {"interruption": {"every_n_steps": 7}}
    config.optimizer._target_ = "xlm_train.optim.OriginalAdam"
    del config.optimizer.fused
    read = read_train_config(config)
    assert read.callbacks["preemption"] == {"_target_": f"{__name__}.Picky", "every_n_steps": 7}
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "warning: optimizer._target_=xlm_train.optim.OriginalAdam is now xlm_train.training.optim.OriginalAdam",
        "warning: callbacks.interruption is now callbacks.preemption",
    ]


def test_shipped_callbacks_are_filled_in(
    shipped: dict[str, Any], corpus_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose("train", words(corpus_folder), None)
    config.callbacks = {
        "metrics": {"every_n_steps": 3},
        "preemption": None,
        "mine": {"_target_": f"{__name__}.Picky"},
    }
    assert read_train_config(config).callbacks == {
        "metrics": {"_target_": f"{__name__}.Picky", "every_n_steps": 3},
        "checkpointing": {"_target_": f"{__name__}.Picky", "every_n_steps": 3},
        "preemption": None,
        "mine": {"_target_": f"{__name__}.Picky"},
    }
    assert capsys.readouterr().err.splitlines() == [
        "warning: callbacks: checkpointing: not given, so as shipped; callbacks.NAME=null leaves one out"
    ]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"policy": "perhaps"}, ["callbacks.mine.policy=perhaps: must be one of stop, skip"]),
        ({"every_n_steps": 0}, [f"callbacks.mine: {__name__}.Picky: every_n_steps must be positive"]),
        (
            {"polici": "stop"},
            [f"callbacks.mine.polici=stop: {__name__}.Picky takes no 'polici' (did you mean policy?)"],
        ),
        ({}, []),
    ],
)
def test_a_callback_s_own_rules(entry: dict[str, Any], expected: list[str]) -> None:
    assert parts.callback_problems({"mine": {"_target_": f"{__name__}.Picky", **entry}, "none": None}, {}) == expected


def test_every_group_s_options_are_right(corpus_folder: Path) -> None:
    for group in ("model", "optimizer", "schedule", "logger", "cluster"):
        for file in sorted((REPOSITORY / "configs" / group).glob("*.yaml")):
            wrong = problems(corpus_folder, f"{group}={file.stem}")
            assert [problem for problem in wrong if "is not installed" not in problem] == [], file


def test_keys_of_an_option_that_is_not_chosen(corpus_folder: Path) -> None:
    overrides = words(corpus_folder, "optimizer=original_adam", "optimizer.fused=true")
    config = compose("train", check_overrides("train", overrides), None)
    with pytest.raises(ConfigError, match="OriginalAdam takes no 'fused'"):
        read_train_config(config)


@pytest.fixture
def my_configs(tmp_path: Path) -> Path:
    """A folder of a user's own configs."""
    folder = tmp_path / "my configs, mine"
    (folder / "experiment").mkdir(parents=True)
    (folder / "callbacks").mkdir()
    (folder / "experiment/short.yaml").write_text(
        "# @package _global_\ndefaults:\n  - smoke\n\nrun_name: short\ntrainer:\n  max_steps: 2\n"
    )
    (folder / "callbacks/mine.yaml").write_text(
        yaml.safe_dump({"timer": {"_target_": "pytorch_lightning.callbacks.Timer", "duration": "00:01:00:00"}})
    )
    return folder


def test_a_user_s_own_configs(my_configs: Path, corpus_folder: Path) -> None:
    own = ["--config-dir", str(my_configs)]
    overrides = ["experiment=short", "callbacks=mine", f"data.path={corpus_folder}"]
    assert check_overrides("train", [*own, *overrides]) == [*own, *overrides]
    config = compose("train", overrides, str(my_configs))
    assert problems_of(config) == []
    assert OmegaConf.select(config, "callbacks.timer.duration") == "00:01:00:00"
    read = read_train_config(config)
    assert {"timer", "checkpointing", "validation"} <= read.callbacks.keys()
    with pytest.raises(ConfigError, match=r"experiment has no option 'shrot' \(did you mean short"):
        check_overrides("train", [*own, "experiment=shrot"])


def test_a_sweep_finds_a_user_s_own_configs(my_configs: Path, corpus_folder: Path, tmp_path: Path) -> None:
    command(
        "xlm_train.commands.train", "-m", "--config-dir", str(my_configs), "experiment=short", "seed=1,2",
        f"data.path={corpus_folder}", f"paths.runs={tmp_path / 'runs'}",
    )  # fmt: skip
    assert {path.name for path in (tmp_path / "runs").glob("short,*")} == {"short,seed=1", "short,seed=2"}
    assert (tmp_path / "runs/sweeps/short/table.md").is_file()


def test_everything_is_told_by_the_command(corpus_folder: Path, tmp_path: Path) -> None:
    result = command(
        "xlm_train.commands.train", *words(corpus_folder, "model.n_heads=3", "optimizer.lr=abc", "data.slots=0"),
        status=2, cwd=tmp_path,
    )  # fmt: skip
    assert "error: 3 problems:" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_value_that_comes_from_elsewhere_is_told(corpus_folder: Path) -> None:
    """The source is right where it stands: the place that cannot use it must be told."""
    words = ["callbacks.guard.spike_z=10", "callbacks.guard.window=${data.slots}"]
    config = compose("train", [f"data.path={corpus_folder}", "run_name=x", "experiment=smoke", *words], None)
    (problem,) = problems_of(config)
    assert problem.startswith("callbacks.guard.window=2: must be at least 20")


def test_a_metric_that_no_validation_gives_is_told_before_the_run(corpus_folder: Path) -> None:
    words = ["callbacks.validation.monitor=val/ppl_fr", "data.bptt=1", "model.share=embeddings"]
    config = compose("train", [f"data.path={corpus_folder}", "run_name=x", "experiment=smoke", *words], None)
    with pytest.raises(ConfigError) as error:
        read_train_config(config)
    assert len(error.value.problems) == 3
    assert "callbacks.validation.monitor=val/ppl_fr: must be one of val/ppl, val/acc, val/loss_de" in str(error.value)
