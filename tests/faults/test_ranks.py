"""A process of several that dies or hangs: the others leave within bounded time, and the run comes back by itself."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.faults.harness import Started, campaign, compare, wait_for_step, words_of

pytestmark = pytest.mark.slow

STEPS = 40
TORCHRUN = (
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node=2",
    "--max-restarts=3",
    "-m",
    "xlm_train.commands.train",
)


@pytest.fixture(scope="module")
def undisturbed(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, nobody disturbs them."""
    return campaign(corpus_folder, tmp_path_factory.mktemp("undisturbed") / "run", 2, 0, "", STEPS).run


@pytest.fixture
def words(corpus_folder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The same run as `undisturbed`, in tmp_path/run, with overrides."""
    return lambda *overrides: [*words_of(corpus_folder, tmp_path / "run", 2, STEPS), *overrides]


def starts(run: Path) -> int:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return sum(event["event"] == "start" for event in events)


@pytest.mark.parametrize("rank", ["rank 0", "rank 1"])
def test_a_killed_rank_takes_the_others_down(rank: str, words: Callable[..., list[str]], tmp_path: Path) -> None:
    with Started(words()) as start:
        wait_for_step(tmp_path / "run", 4, start)
        assert start.kill(rank) == rank
        start.wait_until_gone()
        assert start.process.returncode not in (0, 2, 75), start.text()
        assert "Traceback" not in start.text()


@pytest.mark.parametrize("rank", ["rank 0", "rank 1"])
def test_a_hanging_rank_takes_the_others_down(rank: str, words: Callable[..., list[str]], tmp_path: Path) -> None:
    """It answers nothing for trainer.timeout_seconds. The agent then gives it 30 s to leave before it kills it."""
    with Started(words("trainer.timeout_seconds=30")) as start:
        wait_for_step(tmp_path / "run", 4, start)
        os.kill(start.members()[rank], signal.SIGSTOP)
        start.wait_until_gone()
        assert start.process.returncode not in (0, 2, 75), start.text()
        assert "has ended or does not answer" in start.text()


def test_the_run_comes_back_by_itself(words: Callable[..., list[str]], tmp_path: Path, undisturbed: Path) -> None:
    run = tmp_path / "run"
    with Started(words("trainer.max_restarts=2")) as start:
        for step, rank in ((5, "rank 1"), (20, "rank 0")):
            wait_for_step(run, step, start)
            assert start.kill(rank) == rank
        assert start.process.wait(PATIENCE) == 0, start.text()
        assert starts(run) == 3
    compare(undisturbed, run)


def test_a_mistake_is_not_tried_again(words: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "rubbish.pt").write_bytes(b"rubbish")
    with Started(words("trainer.max_restarts=2", f"init_from={tmp_path / 'rubbish.pt'}")) as start:
        assert start.process.wait(PATIENCE) == 2
        assert 1 <= start.text().count("rubbish.pt: 7 bytes: not a checkpoint") <= 2  # once a process at most
        assert "start again" not in start.text()


def test_torchruns_own_restart_brings_the_run_back(
    words: Callable[..., list[str]], tmp_path: Path, undisturbed: Path
) -> None:
    """The environment variable gives each attempt a store of its own: else one may read addresses of the dead one's."""
    run = tmp_path / "run"
    with Started(words(), TORCHRUN, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1") as start:
        for step, rank in ((5, "rank 0"), (20, "rank 1")):
            wait_for_step(run, step, start)
            assert start.kill(rank) == rank
        assert start.process.wait(PATIENCE) == 0, start.text()
        assert starts(run) == 3
    compare(undisturbed, run)


@pytest.mark.parametrize("part", ["command", "agent"])
def test_workers_do_not_outlive_what_started_them(
    part: str, words: Callable[..., list[str]], tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    with Started(words("trainer.max_steps=100000")) as start:  # they would not end by themselves
        wait_for_step(run, 4, start)
        assert start.kill(part) == part
        start.wait_until_gone(60)
        assert start.process.returncode != 0
    with Started(words()) as start:
        assert start.process.wait(PATIENCE) == 0, start.text()
    compare(undisturbed, run)
