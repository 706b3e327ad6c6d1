"""Bad numbers: what is found, by whom, and what each policy makes of it, in real runs."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from tests.conftest import train_here
from tests.end_to_end.worlds import SERVER, assert_same, last, train_on
from tests.xlm_train.conftest import CorpusMaker
from xlm_train.config.train import problems_of
from xlm_train.data.corpus import Corpus
from xlm_train.data.order import Order
from xlm_train.data.training_text import TrainingText
from xlm_train.training.anomaly import AnomalyDetector, BadStep, TrainingStopped, robust_z
from xlm_train.training.loggers import read_metrics
from xlm_train.training.loss_buffer import LossBuffer, SlotLoss, StepLosses, mean

Run = Callable[..., Path]
BAD = 7


@pytest.fixture
def run(compose: Callable[..., dict[str, Any]], corpus_folder: Path, tmp_path: Path) -> Run:
    def start(name: str, *words: str, corpus: Path = corpus_folder) -> Path:
        common = ["experiment=smoke", f"data.path={corpus}", f"paths.runs={tmp_path}", f"run_name={name}"]
        train_here(compose("train", *common, "callbacks.checkpointing.every_n_steps=5", *words))
        return tmp_path / name

    return start


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def state(folder: Path) -> dict[str, Any]:
    content = last(folder)
    return {part: content[part] for part in ("model", "optimizer", "progress", "metrics", "callbacks")}


def test_robust_z() -> None:
    history = [4.0 + 0.1 * math.sin(i) for i in range(100)]
    assert abs(robust_z(4.05, history)) < 2
    assert robust_z(5.0, history) > 9
    assert robust_z(3.0, history) < -9  # a fall is no spike
    assert robust_z(100.0, history[:19]) == 0.0  # too short to tell
    assert robust_z(5.0, [*history, *[1e6] * 20]) > 5  # earlier spikes do not hide this one
    assert robust_z(4.0004, [4.0] * 50) == pytest.approx(0.1)  # no spread: rounding is no spike


def test_a_loss_buffer_adds_up_by_stream() -> None:
    buffer = LossBuffer()
    for step in (5, 6):
        buffer.begin(step)
        for slot, language in ((0, 0), (1, 1), (2, 1)):
            buffer.add(slot, language, torch.tensor(float(10 * step + slot)))
        buffer.close(torch.tensor(0.5))
    rows = buffer.reduce()
    assert rows == [StepLosses(s, {0: (10.0 * s, 1), 1: (20.0 * s + 3, 2)}, 0.5) for s in (5, 6)]
    assert rows == [StepLosses.of_slots(s, [10.0 * s, 10.0 * s + 1, 10.0 * s + 2], [0, 1, 1], 0.5) for s in (5, 6)]
    assert rows[0].by_stream() == {0: 50.0, 1: 51.5}
    assert mean(rows) == pytest.approx((153 + 183) / 6)
    assert buffer.slots_of(6) == [(0, 0, 60.0), (1, 1, 61.0), (2, 1, 62.0)]
    buffer.drop(5)
    other = LossBuffer()
    other.restore(buffer.state())
    assert [row.step for row in other.take()] == [6]
    assert other.take() == []
    other.restore([(6, [60.0, 61.0, 62.0], [0, 1, 1], 0.5)])  # each slot for itself, as checkpoints once had it
    assert other.take() == rows[1:]


def of_two_processes(rank: int, folder: Path) -> None:
    """Write down what a process learns of two steps of which it has half of the slots."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    buffer = LossBuffer()
    for step, highest in ((3, 8.0), (4, math.nan)):
        buffer.begin(step)
        for slot, stream, loss in ((0, 0, 1.5), (1, 2, 2.0)) if rank == 0 else ((2, 2, 4.0), (3, 2, highest)):
            buffer.add(slot, stream, torch.tensor(loss))
        buffer.close(torch.tensor(0.25))
    rows = buffer.reduce(shared_streams=3)
    detector = AnomalyDetector()
    bad = [detector.check(row, functools.partial(buffer.slots_of, row.step, 2)) for row in rows]
    sums = [row.streams for row in rows]
    (folder / f"{rank}.json").write_text(json.dumps([sums[0], bad[0], astuple(bad[1] or BadStep(0, "none"))]))


def test_processes_share_sums_and_name_each_others_slots(tmp_path: Path) -> None:
    """One slot of the second process is not finite: both blame it."""
    processes = [SERVER.Process(target=of_two_processes, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == [
        {"0": [1.5, 1], "2": [14.0, 3]},
        None,
        [4, "the loss of slot 3 is not finite", [3]],
    ]
    assert found[1] == found[0]


def test_the_detector_tells_languages_apart() -> None:
    detector = AnomalyDetector(spike_z=10.0)

    def check(step: int, losses: list[float], norm: float, float16: bool = False) -> BadStep | None:
        slots = [SlotLoss(number, number, loss) for number, loss in enumerate(losses)]
        return detector.check(StepLosses.of_slots(step, losses, [0, 1], norm), lambda: slots, float16)

    noise = np.random.default_rng(0)
    for step in range(
        60
    ):  # German is harder by far: no English step looks like a spike for it, nor the other way round
        losses = [5.0 + 0.05 * noise.normal(), 2.0 + 0.05 * noise.normal()]
        assert check(step, losses, 1.0) is None
    bad = check(60, [5.0, 4.0], 1.0)
    assert bad is not None
    assert bad.slots == (1,)
    assert "loss spike: 4 where the last 60 good steps have a median of 2" in bad.reason
    assert len(detector.history[1]) == 60  # a spike does not join what it was measured against
    nan = check(61, [5.0, math.nan], math.nan)
    assert nan is not None
    assert nan.slots == (1,)
    assert check(62, [5.0, 2.0], math.inf) is not None
    assert check(62, [5.0, 2.0], math.inf, float16=True) is None  # an overflow: the scale's part


def test_stop_names_the_step_and_shows_its_text(run: Run, corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match=rf"step {BAD}: the loss of slot 0 is not finite") as error:
        run("stop", f"debug.nan_steps=[{BAD}]")
    folder = tmp_path / "stop"
    file = folder / f"bad_batches/step-{BAD:08d}.txt"
    assert str(file) in str(error.value)
    assert last(folder)["progress"]["step"] == 5
    assert json.loads((folder / "status.json").read_text())["status"] == "failed"
    found = events(folder, "bad_batch")
    assert [(e["step"], e["slots"], e["action"]) for e in found] == [(BAD, [0], "stop")]
    text = file.read_text()
    corpus = Corpus(corpus_folder)
    slot = Order(TrainingText(corpus, bptt=32, slot_streams=4).language_streams(), slots=2, seed=0).step(BAD)[0]
    assert "## slot 0: de" in text
    assert "slot 1" not in text
    assert [f"### window {w} of pass 0" in text for w in slot.units] == [True] * 4


def test_skip_and_rollback_are_the_run_that_never_read_the_step(run: Run, tmp_path: Path) -> None:
    skipped = run("skip", f"debug.nan_steps=[{BAD}]", "callbacks.guard.policy=skip")
    rolled = run("rollback", f"debug.nan_steps=[{BAD}]", "callbacks.guard.policy=rollback")
    (tmp_path / "never").mkdir()
    (tmp_path / "never/excluded.json").write_text(f"[{BAD}]")
    never = run("never")
    progress = last(never)["progress"]
    assert (progress["step"], progress["updates"], progress["skipped"]) == (20, 19, [BAD])
    assert_same(state(skipped), state(never))
    assert_same(state(rolled), state(never))
    assert [e["step"] for e in events(rolled, "start")] == [0, 5]
    assert json.loads((rolled / "excluded.json").read_text()) == [BAD]

    def losses(folder: Path) -> list[Any]:
        return [(m["step"], m["train/loss"]) for m in read_metrics(folder / "metrics.jsonl") if "train/loss" in m]

    assert losses(skipped) == losses(rolled) == losses(never)


class SlowDisk(pl.Callback):
    """Lets the first process take a second for each checkpoint."""

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        write = trainer.checkpoint_io._write

        def slowly(*arguments: Any) -> None:
            time.sleep(1.0)
            write(*arguments)

        trainer.checkpoint_io._write = slowly


def test_two_processes_roll_back_alike(
    compose: Callable[..., dict[str, Any]], corpus_folder: Path, tmp_path: Path
) -> None:
    """The step right after a checkpoint, which is still being written, is bad: no restart is needed."""
    bad = 5
    common = ["experiment=smoke", f"data.path={corpus_folder}", f"paths.runs={tmp_path}"]
    common += ["callbacks.checkpointing.every_n_steps=5", "callbacks.guard.policy=rollback"]
    slow = f"+callbacks.slow._target_={__name__}.SlowDisk"
    train_on(2, compose("train", *common, "run_name=two", f"debug.nan_steps=[{bad}]", slow))
    assert [e["step"] for e in events(tmp_path / "two", "start")] == [0, 5]
    (tmp_path / "never").mkdir()
    (tmp_path / "never/excluded.json").write_text(f"[{bad}]")
    train_on(2, compose("train", *common, "run_name=never"))
    assert last(tmp_path / "two")["progress"]["skipped"] == [bad]
    assert_same(state(tmp_path / "two"), state(tmp_path / "never"))


def test_too_many_rollbacks_stop_the_run(run: Run, tmp_path: Path) -> None:
    """Those since the last checkpoint count: here one before step 5 and three after it, of which two are allowed."""
    with pytest.raises(TrainingStopped, match=r"callbacks\.guard\.max_in_a_row=2 rollbacks since step 5"):
        run("many", "debug.nan_steps=[2,6,7,8]", "callbacks.guard.policy=rollback", "callbacks.guard.max_in_a_row=2")
    actions = [(e["step"], e["action"]) for e in events(tmp_path / "many", "bad_batch")]
    assert actions == [(2, "rollback"), (6, "rollback"), (7, "rollback"), (8, "stop")]


def test_another_config_in_a_folder_without_a_checkpoint_forgets_what_was_left_out(run: Run) -> None:
    with pytest.raises(TrainingStopped):
        run("other", "debug.nan_steps=[1,2]", "callbacks.guard.policy=rollback", "callbacks.guard.max_in_a_row=1")
    folder = run("other", "seed=5")
    assert last(folder)["progress"]["skipped"] == []


def test_mistakes_in_the_guard_are_found_early(compose: Callable[..., Any], corpus_folder: Path) -> None:
    words = ["callbacks.guard.spike_z=10", "callbacks.guard.window=19", "debug.nan_steps=[a]", "init_optimizer=true"]
    problems = problems_of(OmegaConf.create(compose("train", f"data.path={corpus_folder}", "run_name=x", *words)))
    assert len(problems) == 3  # of types and of combinations alike
    words = ["callbacks.guard.spike_z=10", "callbacks.guard.window=19", "callbacks.guard.policy=perhaps"]
    problems = problems_of(OmegaConf.create(compose("train", f"data.path={corpus_folder}", "run_name=x", *words)))
    assert len(problems) == 2


@pytest.fixture(scope="module")
def corpus_with_rubbish(tmp_path_factory: pytest.TempPathFactory, make_corpus: CorpusMaker) -> Path:
    """Eight words over and over, soon learned; in the middle of the German text 150 words of which none ever came before."""
    song = [list(range(14, 22))] * 2000
    rubbish = [[*range(30, 180)]]
    text = {"de": [*song[:1000], *rubbish, *song[1000:]], "en": song}
    vocab = "".join(f"word{i} {1000 - i}\n" for i in range(200))
    return make_corpus(
        tmp_path_factory.mktemp("rubbish") / "corpus", vocab, "", {"train": text, "valid": {"de": song[:9]}}
    )


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_loss_spike_is_found_shown_and_left_out(policy: str, run: Run, corpus_with_rubbish: Path) -> None:
    words = ["callbacks.guard.spike_z=12", f"callbacks.guard.policy={policy}", "trainer.max_steps=140"]
    words += ["optimizer.lr=1e-2", "callbacks.guard.window=32", "callbacks.validation.every_n_steps=1000"]
    folder = run("spike", *words, corpus=corpus_with_rubbish)
    found = events(folder, "bad_batch")
    texts = [(folder / f"bad_batches/step-{event['step']:08d}.txt").read_text() for event in found]
    assert all("loss spike" in event["reason"] for event in found)
    shown = [any(f"word{i} " in text for i in range(16, 166)) for text in texts]
    assert any(
        shown
    )  # one pass is 142 steps; five windows hold the rubbish, some of them read before anything was learned
    assert last(folder)["progress"]["skipped"] == sorted(e["step"] for e in found)
