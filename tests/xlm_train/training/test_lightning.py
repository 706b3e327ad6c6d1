"""What a Lightning user knows works: stock and own callbacks added by config act in real runs, or are refused."""

from __future__ import annotations

import cProfile
import json
import pstats
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BaseFinetuning

from tests.conftest import command, train_here
from tests.end_to_end.worlds import assert_same, assert_same_run, largest_difference, last, reported, train_on
from xlm_train.config.overrides import compose as compose_config
from xlm_train.config.parts import REFUSED
from xlm_train.config.train import problems_of, read_train_config
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import CheckpointError
from xlm_train.runtime.processes import StopFlag
from xlm_train.train import train
from xlm_train.training.callbacks import Metrics
from xlm_train.training.loggers import read_metrics
from xlm_train.training.precision import LossScale

STOCK = "pytorch_lightning.callbacks"
OWN = __name__
STOPPED = {"status": "stopped", "reason": "a callback set trainer.should_stop"}

Run = Callable[..., Path]


def added(target: str, name: str = "x", **arguments: Any) -> list[str]:
    """Overrides that add a callback."""
    return [f"+callbacks.{name}._target_={target}", *(f"+callbacks.{name}.{k}={v}" for k, v in arguments.items())]


@pytest.fixture
def config(
    compose: Callable[..., dict[str, Any]], corpus_folder: Path, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """config(run name, *overrides) of experiment=smoke: 20 steps, reports each 5, validations and checkpoints each 10."""

    def composed(name: str, *overrides: str) -> dict[str, Any]:
        where = (f"data.path={corpus_folder}", f"paths.runs={tmp_path}", f"run_name={name}")
        return compose("train", "experiment=smoke", *where, *overrides)

    return composed


@pytest.fixture
def run(config: Callable[..., dict[str, Any]]) -> Run:
    """run(run name, *overrides) trains in this process; returns the run's folder."""

    def start(name: str, *overrides: str) -> Path:
        settings = config(name, *overrides)
        assert train_here(settings) == 0
        return Path(settings["paths"]["runs"]) / name

    return start


def status(folder: Path) -> dict[str, Any]:
    """How a run stands, and why."""
    found = json.loads((folder / "status.json").read_text())
    return {key: found[key] for key in ("status", "reason")}


def steps_with(folder: Path, key: str) -> list[int]:
    return [line["step"] for line in read_metrics(folder / "metrics.jsonl") if key in line]


# -- stock callbacks ------------------------------------------------------------------------------------------------------


def test_learning_rate_monitor(run: Run) -> None:
    words = [*added(f"{STOCK}.LearningRateMonitor", logging_interval="step"), "callbacks.metrics.every_n_steps=1"]
    folder = run("whole", *words)
    ours, theirs = reported(folder, "optim/lr"), reported(folder, "lr-AdamW")
    # it counts the steps before, as Lightning does: the rate is that of the step after
    assert [(step + 1, value) for step, _, value in theirs] == [(step, value) for step, _, value in ours]
    run("parts", *words, "trainer.max_steps=10")
    assert reported(run("parts", *words), "lr-AdamW") == theirs


def test_model_summary(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run("summary", *added(f"{STOCK}.ModelSummary", max_depth=2), "trainer.max_steps=1")
    assert "Trainable params" in caplog.text
    assert "model.blocks" in caplog.text


def test_timer_stops_the_run_and_starting_again_stops_at_once_until_it_has_more_time(run: Run) -> None:
    timer = f"+callbacks.x={{_target_: {STOCK}.Timer, duration: {{milliseconds: 1}}}}"
    folder = run("timed", timer)
    assert status(folder) == STOPPED
    stopped = checkpoint_file.step_of(checkpoint_file.in_folder(folder / "checkpoints")[0])
    assert stopped == 1
    run("timed", timer)
    assert status(folder) == STOPPED
    assert json.loads((folder / "status.json").read_text())["step"] == stopped
    run("timed", timer.replace("milliseconds", "hours"))
    assert status(folder)["status"] == "finished"


def test_early_stopping_checks_at_validations_and_starting_again_stops_at_the_next_one(run: Run) -> None:
    early = added(f"{STOCK}.EarlyStopping", monitor="val/ppl", min_delta=1e9, patience=2)
    words = [*early, "callbacks.validation.every_n_steps=4", "callbacks.checkpointing.every_n_steps=100"]
    folder = run("early", *words)
    assert status(folder) == STOPPED
    assert steps_with(folder, "val/ppl") == [4, 8, 12]
    saved = last(folder)
    assert saved["progress"]["step"] == 12
    (kept,) = [value for key, value in saved["callbacks"].items() if key.startswith("EarlyStopping")]
    assert (kept["wait_count"], kept["patience"]) == (2, 2)
    run("early", *words)
    assert status(folder) == STOPPED
    assert steps_with(folder, "val/ppl") == [4, 8, 12, 16]
    run("early", "callbacks.validation.every_n_steps=4")
    assert status(folder)["status"] == "finished"


def test_ema_is_validated_and_saved_and_resumes_bit_for_bit(run: Run) -> None:
    ema = added(f"{STOCK}.EMAWeightAveraging", decay=0.5)
    whole, parts, plain = run("whole", *ema), run("parts", *ema, "trainer.max_steps=10"), run("plain")
    run("parts", *ema)
    assert_same_run(whole, parts)
    averaged, trained = last(whole), last(plain)
    assert_same({k.removeprefix("model."): v for k, v in averaged["current_model_state"].items()}, trained["model"])
    assert not torch.equal(averaged["model"]["embeddings.weight"], trained["model"]["embeddings.weight"])
    assert reported(whole, "train/") == reported(plain, "train/")
    assert reported(whole, "val/ppl") != reported(plain, "val/ppl")


def test_device_stats_monitor(run: Run) -> None:
    folder = run("stats", *added(f"{STOCK}.DeviceStatsMonitor"))
    assert steps_with(folder, "DeviceStatsMonitor.on_train_batch_end/cpu_percent") == [4, 9, 14, 19]


@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_progress_bars(run: Run, capfd: pytest.CaptureFixture[str], bar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if bar == "RichProgressBar":
        pytest.importorskip("rich")
    run(bar, *added(f"{STOCK}.{bar}"))
    shown = "".join(capfd.readouterr())
    assert "Epoch 0" in shown
    assert "train/loss" in shown
    assert "val/ppl" in shown


def test_model_checkpoint(run: Run, tmp_path: Path) -> None:
    """In the format of ours: checked when it is read, to start a new run from, never taken for one of ours."""
    best = added(
        f"{STOCK}.ModelCheckpoint", "best", monitor="val/ppl", dirpath=tmp_path / "kept/best", save_last="true"
    )
    name = "'{step}-{val/ppl:.1f}'"
    often = added(f"{STOCK}.ModelCheckpoint", "often", every_n_train_steps=8, save_top_k=-1, filename=name)
    folder = run("kept", *best, *often)
    assert {path.name for path in (tmp_path / "kept/best").iterdir()} == {"epoch=0-step=20.ckpt", "last.ckpt"}
    found = checkpoint_file.load(tmp_path / "kept/best/last.ckpt")
    assert found["progress"]["step"] == 20
    assert_same(found["model"], last(folder)["model"])
    files = sorted(folder.rglob("checkpoints/**/*.ckpt"))
    assert [checkpoint_file.load(file)["progress"]["step"] for file in files] == [16, 8]
    new = run("new", f"init_from={tmp_path}/kept/best/last.ckpt", "trainer.max_steps=1")
    assert last(new)["lineage"]["parents"] == [found["sha256"]]


# -- own callbacks --------------------------------------------------------------------------------------------------------


class Recorder(pl.Callback):
    """Notes which hook fires, at which update and step, and what callbacks can then see."""

    events: ClassVar[list[tuple[str, int, int]]] = []
    seen: ClassVar[dict[tuple[str, int], dict[str, float]]] = {}

    def note(self, hook: str, trainer: Any, module: Any) -> None:
        self.events.append((hook, trainer.global_step, module.state.step))
        self.seen[hook, module.state.step] = {k: float(v) for k, v in trainer.callback_metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"events": len(self.events), "words": ["plain", 1.5, None], "tensor": torch.ones(2)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.events.append(("load_state_dict", state_dict["events"], int(state_dict["tensor"].sum())))


HOOKS = [
    "setup", "teardown", "on_fit_start", "on_fit_end", "on_train_start", "on_train_end", "on_train_epoch_start", "on_train_epoch_end",
    "on_train_batch_start", "on_train_batch_end", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
    "on_before_zero_grad", "on_save_checkpoint", "on_load_checkpoint", "on_validation_start", "on_validation_epoch_start",
    "on_validation_epoch_end", "on_validation_end", "on_exception",
]  # fmt: skip
for hook in HOOKS:
    setattr(Recorder, hook, lambda self, t, m, *_, hook=hook, **__: self.note(hook, t, m))


@pytest.fixture
def recorded() -> type[Recorder]:
    Recorder.events.clear()
    Recorder.seen.clear()
    return Recorder


def test_every_hook_fires(run: Run, recorded: type[Recorder]) -> None:
    words = [*added(f"{OWN}.Recorder"), "callbacks.metrics.every_n_steps=1", "callbacks.validation.every_n_steps=2"]
    run("hooks", *words, "trainer.max_steps=2")
    slot = ["on_before_backward", "on_after_backward"]
    update = ["on_before_optimizer_step", "on_before_zero_grad"]
    step = ["on_train_batch_start", *slot, *slot, *update, "on_train_batch_end"]
    validation = [f"on_validation_{x}" for x in ("start", "epoch_start", "epoch_end", "end")]
    assert [hook for hook, _, _ in recorded.events] == [
        "setup", "on_fit_start", "on_train_start", "on_train_epoch_start",
        *step, *step, *validation, "on_save_checkpoint",
        "on_train_epoch_end", "on_train_end", "on_fit_end", "teardown",
    ]  # fmt: skip
    assert ("on_train_batch_end", 2, 2) in recorded.events
    figures = recorded.seen["on_validation_end", 2]
    assert {
        "train/loss",
        "train/loss_de",
        "train/loss_en",
        "val/ppl",
        "val/ppl_de",
        "val/acc",
        "val/loss_en",
        "optim/lr",
    } <= figures.keys()
    assert (
        recorded.seen["on_train_batch_end", 2]["train/loss"] == recorded.seen["on_train_batch_start", 1]["train/loss"]
    )

    recorded.events.clear()
    run("hooks", *words, "trainer.max_steps=3")
    hooks = [hook for hook, _, _ in recorded.events]
    assert [hook for hook in hooks if hook in ("setup", "on_load_checkpoint", "load_state_dict", "on_fit_start")] == [
        "setup", "on_load_checkpoint", "load_state_dict", "on_fit_start",
    ]  # fmt: skip
    assert ("on_train_batch_start", 2, 2) in recorded.events


class CountedMetrics(Metrics):
    """Counts the function calls of each report."""

    calls: ClassVar[list[int]] = []

    def on_step_end(self, trainer: Any, module: Any) -> None:
        profile = cProfile.Profile()
        profile.runcall(super().on_step_end, trainer, module)
        self.calls.append(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def test_a_report_costs_little(run: Run) -> None:
    """`module.log` took half a millisecond for each of 17 figures: 4,000 calls and more in a report."""
    CountedMetrics.calls.clear()
    run("counted", f"callbacks.metrics._target_={OWN}.CountedMetrics", "trainer.max_steps=10")
    assert len(CountedMetrics.calls) == 10
    assert max(CountedMetrics.calls) < 2000, CountedMetrics.calls


class Logs(pl.Callback):
    """Logs figures of its own in the hooks in which Lightning lets callbacks do that."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        module.log("mine/step", float(batch.step))

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        module.log("mine/validation", float(module.state.step))


def test_a_callback_s_own_figures_reach_the_loggers_and_other_callbacks(run: Run) -> None:
    early = added(f"{STOCK}.EarlyStopping", monitor="mine/validation", patience=1)
    folder = run("logs", *early, *added(f"{OWN}.Logs", "logs"), "callbacks.validation.every_n_steps=4")
    assert status(folder) == STOPPED
    assert reported(folder, "mine/validation") == [(4, "mine/validation", 4.0), (8, "mine/validation", 8.0)]
    assert [value for _, _, value in reported(folder, "mine/step")][:1] == [4.0]


class Freezes(BaseFinetuning):
    """Leaves the positions as they were initialised."""

    def freeze_before_training(self, module: Any) -> None:
        self.freeze(module.model.position_embeddings)

    def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
        pass


def test_a_finetuning_callback_freezes_and_resumes_bit_for_bit(run: Run) -> None:
    words = added(f"{OWN}.Freezes")
    first = last(run("first", *words, "trainer.max_steps=1"))["model"]
    run("parts", *words, "trainer.max_steps=10")
    whole = run("whole", *words)
    assert_same_run(run("parts", *words), whole)
    weights = last(whole)["model"]
    moved = {name for name, weight in weights.items() if not torch.equal(weight, first[name])}
    assert weights.keys() - moved == {"position_embeddings.weight"}


def stop_early(trainer: Any, module: Any, *_: Any) -> None:
    """Stop after 3 steps, for LambdaCallback."""
    trainer.should_stop = module.state.step == 3


def test_lambda_callback_and_any_other_stop_is_no_preemption(run: Run) -> None:
    function = f"{{_target_: hydra.utils.get_method, path: {OWN}.stop_early}}"
    folder = run("lambda", *added(f"{STOCK}.LambdaCallback", on_train_batch_end=function))
    assert status(folder) == STOPPED
    assert last(folder)["progress"]["step"] == 3


class Overflows(pl.Callback):
    """Begins with a loss scale that is far too large, and grows again soon."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if module.state.step == 0:
            module.state.loss_scale = LossScale(scale=2.0**26, growth_interval=3)


def test_global_step_counts_updates(run: Run, recorded: type[Recorder]) -> None:
    words = [*added(f"{OWN}.Overflows"), *added(f"{OWN}.Recorder", "recorder")]
    words += ["trainer.precision=16-mixed", "debug.cpu_fp16=true"]
    run("updates", *words, "trainer.max_steps=12")
    folder = run("updates", *words)
    progress = last(folder)["progress"]
    skipped = progress["skipped"]
    assert 2 < len(skipped) < 15
    assert max(skipped) > 12
    ends = [event[1:] for event in recorded.events if event[0] == "on_train_batch_end"]
    assert ends == [(step - sum(other < step for other in skipped), step) for step in range(1, 21)]
    assert last(folder)["global_step"] == progress["updates"] == 20 - len(skipped)


# -- the mapping of callbacks ---------------------------------------------------------------------------------------------


def test_ours_can_be_left_out(run: Run) -> None:
    """Without reports no loss is kept for them, and nothing else changes."""
    whole = run("whole")
    folder = run("bare", "callbacks.metrics=null", "callbacks.stragglers=null", "callbacks.energy=null")
    assert_same(last(whole)["model"], last(folder)["model"])
    assert last(folder)["progress"]["losses"] == []
    assert {key for line in read_metrics(folder / "metrics.jsonl") for key in line if key.startswith("train/")} == set()


def test_another_metric_may_decide_from_a_later_start_on(run: Run) -> None:
    folder = run("run", "trainer.max_steps=10")
    assert last(folder)["progress"]["best_metric"] > 100  # a perplexity
    run("run", "callbacks.validation.monitor=val/acc")
    progress = last(folder)["progress"]
    assert (progress["monitor"], progress["best_step"], progress["failures"]) == ("val/acc", 20, 0)
    assert progress["best_metric"] == last(folder)["metrics"]["val/acc"]


def test_a_run_goes_on_without_its_weight_averaging(run: Run) -> None:
    """From the weights that were averaged, not from the averages: those have no moments."""
    averaged = added(f"{STOCK}.EMAWeightAveraging", decay=0.9)
    folder = run("averaged", *averaged, "trainer.max_steps=10")
    current = last(folder)["current_model_state"]
    run("averaged", "trainer.max_steps=11", "optimizer.lr=1e-3")
    plain = run("plain", "trainer.max_steps=10")
    assert_same({k.removeprefix("model."): v for k, v in current.items()}, last(plain)["model"])
    run("plain", "trainer.max_steps=11")
    assert_same(last(folder)["model"], last(plain)["model"])


def test_the_order_of_entries_does_not_matter(config: Callable[..., dict[str, Any]]) -> None:
    words = [
        *added(f"{STOCK}.EarlyStopping", "early", monitor="val/ppl", min_delta=1e9, patience=3),
        *added(f"{STOCK}.EMAWeightAveraging", "ema", decay=0.9), *added(f"{STOCK}.LearningRateMonitor", "rate"),
        *added(f"{STOCK}.ModelCheckpoint", "best", monitor="val/ppl"), *added(f"{OWN}.Logs", "logs"),
        "callbacks.validation.every_n_steps=4",
    ]  # fmt: skip
    folders = []
    for name, turn in (("forwards", list), ("backwards", reversed)):
        settings = config(name, *words)
        settings["callbacks"] = dict(turn(list(settings["callbacks"].items())))
        assert train_here(settings) == 0
        folders.append(Path(settings["paths"]["runs"]) / name)
    a, b = folders
    names = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in folders]
    assert names[0] == names[1]
    for name in names[0]:
        contents = [checkpoint_file.read(folder / "checkpoints" / name) for folder in folders]
        for content in contents:
            del content["config"], content["sha256"]
            for key, kept in content["callbacks"].items():
                if key.startswith("ModelCheckpoint"):  # knows its folder
                    content["callbacks"][key] = str(kept).replace("backwards", "forwards")
        assert_same(*contents)
    timed = ("speed/", "memory/", "energy/", "progress/seconds_left", "time")
    lines = [
        [{k: v for k, v in line.items() if not k.startswith(timed)} for line in read_metrics(folder / "metrics.jsonl")]
        for folder in folders
    ]
    assert lines[0] == lines[1]
    assert status(a) == status(b) == STOPPED


@pytest.fixture
def mine(tmp_path: Path) -> Callable[[str], list[str]]:
    """mine(text) writes callbacks/mine.yaml; returns the words that use it."""

    def write(text: str) -> list[str]:
        (tmp_path / "own/callbacks").mkdir(parents=True, exist_ok=True)
        (tmp_path / "own/callbacks/mine.yaml").write_text(text)
        return ["--config-dir", str(tmp_path / "own"), "experiment=smoke", "callbacks=mine"]

    return write


EARLY = f"early: {{_target_: {STOCK}.EarlyStopping, monitor: val/ppl, min_delta: 1000000, patience: 1}}\n"


def test_callbacks_of_one_s_own_folder(mine: Callable[[str], list[str]], corpus_folder: Path, tmp_path: Path) -> None:
    """Beside the shipped ones; null leaves one out; the exit status is 0, not that of a preempted run."""
    text = f"defaults: [default]\n{EARLY}summary: {{_target_: {STOCK}.ModelSummary}}\nstragglers: null\nenergy: null\n"
    where = [f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "run_name=own"]
    words = [*mine(text), *where, "callbacks.validation.every_n_steps=3"]
    shown = command("xlm_train.commands.train", *words, anew=True).stderr  # Lightning's logger is as its import made it
    assert "Trainable params" in shown
    assert "stopped after 6 steps" in shown
    assert status(tmp_path / "own") == STOPPED
    assert last(tmp_path / "own")["progress"]["step"] == 6
    assert steps_with(tmp_path / "own", "train/loss") == [5]
    assert not (tmp_path / "own/energy.json").exists()


def test_callbacks_of_one_s_own_folder_without_the_shipped_ones(
    mine: Callable[[str], list[str]], corpus_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is shipped and not named is there all the same, and said to be."""
    _, folder, *words = mine(f"{EARLY}energy: null\n")
    words += [f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "callbacks.validation.every_n_steps=3"]
    config = read_train_config(compose_config("train", words, folder))
    assert train(config, StopFlag()) == 0
    assert "callbacks: stragglers, preemption, guard: not given, so as shipped" in capfd.readouterr().err
    assert status(tmp_path / "smoke") == STOPPED
    assert last(tmp_path / "smoke")["progress"]["step"] == 6
    assert not (tmp_path / "smoke/energy.json").exists()


def test_a_target_that_does_not_exist_is_named(mine: Callable[[str], list[str]], corpus_folder: Path) -> None:
    _, folder, *words = mine("wrong: {_target_: my_package.Missing}\n")
    assert problems_of(compose_config("train", [*words, f"data.path={corpus_folder}"], folder)) == [
        "callbacks.wrong._target_=my_package.Missing: there is no such class"
    ]


class Averages(pl.callbacks.StochasticWeightAveraging):
    """A subclass of one that cannot work."""


def problems(corpus: Path, *overrides: str) -> list[str]:
    return problems_of(compose_config("train", ["experiment=smoke", f"data.path={corpus}", *overrides], None))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_with_the_reason(corpus_folder: Path, name: str) -> None:
    target = f"{STOCK}.{name}"
    assert problems(corpus_folder, *added(target)) == [
        f"callbacks.x._target_={target}: cannot work here: {REFUSED[name]}"
    ]


def test_more_refusals(corpus_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (subclass,) = problems(corpus_folder, *added(f"{OWN}.Averages", swa_lrs=0.1))
    assert REFUSED["StochasticWeightAveraging"] in subclass
    (option,) = problems(corpus_folder, *added(f"{STOCK}.ModelCheckpoint", save_on_exception="true"))
    assert option.startswith("callbacks.x.save_on_exception=True: cannot work here: a step that fails half-way")
    for name, argument, value in (
        ("Timer", "interval", "epoch"),
        ("EarlyStopping", "check_on_train_epoch_end", "true"),
        ("ModelCheckpoint", "every_n_epochs", "2"),
        ("ModelCheckpoint", "train_time_interval", "{_target_: datetime.timedelta, hours: 1}"),
    ):
        more = {"monitor": "val/ppl"} if name == "EarlyStopping" else {}
        (idle,) = problems(corpus_folder, *added(f"{STOCK}.{name}", **{argument: value}, **more))
        assert idle.startswith(f"callbacks.x.{argument}=")
        assert "would never act here: " in idle
    twice = [*added(f"{STOCK}.ModelCheckpoint"), *added(f"{STOCK}.ModelCheckpoint", "y", dirpath="/tmp/y")]
    (double,) = problems(corpus_folder, *twice)
    assert double.startswith("callbacks.y: checkpoints cannot hold its state beside that of callbacks.x")
    assert problems(corpus_folder, *twice, "+callbacks.y.monitor=val/ppl") == []
    monkeypatch.setattr("pytorch_lightning.callbacks.progress.rich_progress._RICH_AVAILABLE", False)
    (missing,) = problems(corpus_folder, *added(f"{STOCK}.RichProgressBar"))
    assert "callbacks.x: pytorch_lightning.callbacks.RichProgressBar: " in missing
    assert "rich" in missing


# -- what goes wrong ------------------------------------------------------------------------------------------------------


class Fails(pl.Callback):
    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if module.state.step == 15:
            raise ValueError("this callback has failed")


class Unsafe(pl.Callback):
    """Its state comes to hold what only a pickle could."""

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        self.step = module.state.step

    def state_dict(self) -> dict[str, Any]:
        return {"best": {"loss": np.float64(1.0) if self.step > 10 else 1.0}}


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("Fails", ValueError, "this callback has failed"),
        ("Unsafe", CheckpointError, "callbacks.Unsafe.best.loss: a float64 in a checkpoint could not be loaded safely"),
    ],
)
def test_a_callback_that_fails_leaves_the_checkpoints_before(
    run: Run, tmp_path: Path, name: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run("failed", *added(f"{OWN}.{name}"))
    left = json.loads((tmp_path / "failed/status.json").read_text())
    assert left["status"] == "failed"
    assert message in left["error"]
    assert [path.name for path in checkpoint_file.in_folder(tmp_path / "failed/checkpoints")] == ["step-00000010.pt"]
    repaired, undisturbed = last(run("failed")), last(run("whole"))
    assert_same(repaired["model"], undisturbed["model"])
    assert_same(repaired["optimizer"], undisturbed["optimizer"])


def test_weights_that_do_not_fit_are_named(run: Run) -> None:
    folder = run("changed", "trainer.max_steps=10")
    path = folder / "checkpoints/step-00000010.pt"
    content = checkpoint_file.read(path)
    content["state_dict"]["model.more"] = content["state_dict"].pop("model.embeddings.weight")
    checkpoint_file.write(path, content)
    before = path.read_bytes()
    with pytest.raises(
        CheckpointError, match=r"step-00000010.pt: does not fit .*: model.embeddings.weight, model.more$"
    ):
        run("changed")
    assert json.loads((folder / "status.json").read_text())["status"] == "failed"
    assert path.read_bytes() == before


# -- several processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_do_the_same(config: Callable[..., dict[str, Any]], run: Run) -> None:
    words = [
        *added(f"{STOCK}.EarlyStopping", "early", monitor="val/ppl", min_delta=1e9, patience=2),
        *added(f"{STOCK}.LearningRateMonitor", "rate"), *added(f"{STOCK}.ModelCheckpoint", "best", monitor="val/ppl"),
        *added(f"{STOCK}.EMAWeightAveraging", "ema", decay=0.9), *added(f"{OWN}.Logs", "logs"),
        "callbacks.validation.every_n_steps=4",
    ]  # fmt: skip
    one, two = run("one", *words), train_on(2, config("two", *words))
    assert status(one) == status(two) == STOPPED
    files = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (one, two)]
    assert files[0] == files[1]
    assert {"epoch=0-step=12.ckpt", "step-00000012.pt"} <= set(files[0])
    assert largest_difference(one, two) < 1e-5
    assert reported(one, "lr-AdamW", "mine") == reported(two, "lr-AdamW", "mine")
