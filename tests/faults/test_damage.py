"""Files that are cut short, changed, exchanged, or cannot be written."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.faults.conftest import SMALL, PrivateMounts
from tests.faults.harness import compare, random_corpus, wait_until
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import CheckpointError

TrainSmall = Callable[..., None]
TRAILER = checkpoint_file.TRAILER.size


def refused(path: Path) -> bool:
    """Whether a checkpoint is refused with an error that names it."""
    try:
        checkpoint_file.load(path)
    except CheckpointError as error:
        return str(path) in str(error)
    return False


def test_a_checkpoint_cut_anywhere_is_refused(damaged: Path) -> None:
    path = checkpoint_file.in_folder(damaged / "checkpoints")[0]
    whole = path.read_bytes()
    draw = random.Random(0)
    lengths = [*range(2 * TRAILER), *(len(whole) - cut for cut in range(1, 2 * TRAILER))]
    lengths += [draw.randrange(len(whole)) for _ in range(200)]
    for length in sorted(lengths, reverse=True):
        os.truncate(path, length)
        assert refused(path), f"cut to {length} of {len(whole)} bytes"
    path.write_bytes(whole)
    assert not refused(path)


def test_a_checkpoint_with_one_bit_flipped_anywhere_is_refused(damaged: Path) -> None:
    path = checkpoint_file.in_folder(damaged / "checkpoints")[0]
    whole = path.read_bytes()
    draw = random.Random(0)
    positions = [*range(64), *range(len(whole) - TRAILER, len(whole))]  # the archive's header, all of the trailer
    positions += [draw.randrange(len(whole)) for _ in range(1000)]
    with open(path, "r+b", buffering=0) as file:
        for position in positions:
            os.pwrite(file.fileno(), bytes([whole[position] ^ 1 << draw.randrange(8)]), position)
            assert refused(path), f"byte {position} of {len(whole)}"
            os.pwrite(file.fileno(), whole[position : position + 1], position)
    assert not refused(path)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def lose_a_page(content: bytes) -> bytes:
    """What a power cut can leave: the length is right, a page never reached the disk."""
    return content[:4096] + bytes(4096) + content[8192:]


def lengthen(content: bytes) -> bytes:
    return content + b"x"


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, flip, lose_a_page, lengthen, empty])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[bytes], bytes],
    train_small: TrainSmall,
    undisturbed: Path,
    damaged: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    newest = damaged / "checkpoints/step-00000020.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    train_small(damaged, "callbacks.checkpointing.keep_last=9")
    said = capfd.readouterr().err
    assert f"warning: {newest} is skipped" in said
    assert "from step 15 of 20" in said
    aside = newest.with_name(f"{newest.name}.damaged")
    assert aside.is_file()  # never deleted: it may still be worth something
    aside.unlink()
    compare(undisturbed, damaged)


def another_runs(tmp_path: Path, train_small: TrainSmall) -> Path:
    train_small(tmp_path / "other", "optimizer.lr=3e-4")
    return tmp_path / "other/checkpoints/step-00000020.pt"


def another_corpus(tmp_path: Path, train_small: TrainSmall) -> Path:
    (tmp_path / "made").mkdir()
    train_small(tmp_path / "other", f"data.path={random_corpus(tmp_path / 'made', lines=1000)}")
    return tmp_path / "other/checkpoints/step-00000020.pt"


def another_step(tmp_path: Path, train_small: TrainSmall) -> Path:
    return tmp_path / "damaged/checkpoints/step-00000005.pt"


@pytest.mark.parametrize("source", [another_runs, another_corpus, another_step])
def test_a_checkpoint_that_is_not_this_runs_is_passed_over(
    source: Callable[[Path, TrainSmall], Path],
    train_small: TrainSmall,
    undisturbed: Path,
    damaged: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    newest = damaged / "checkpoints/step-00000020.pt"
    shutil.copy(source(tmp_path, train_small), newest)
    capfd.readouterr()
    train_small(damaged, "callbacks.checkpointing.keep_last=9")
    said = capfd.readouterr().err
    assert f"warning: {newest} is skipped" in said
    assert "from step 15 of 20" in said
    newest.with_name(f"{newest.name}.damaged").unlink()
    compare(undisturbed, damaged)


def go_back_to(run: Path, step: int) -> None:
    """Leave a run as if it had been killed after the checkpoint of a step, with later reports written."""
    for path in checkpoint_file.in_folder(run / "checkpoints"):
        if path.name > checkpoint_file.name_of(step):
            path.unlink()


def test_reports_cut_in_mid_line_are_written_again(
    train_small: TrainSmall, undisturbed: Path, damaged: Path, tmp_path: Path
) -> None:
    go_back_to(damaged, 10)
    metrics = (damaged / "metrics.jsonl").read_bytes()
    later = metrics.index(b'{"step": 12')  # the first line after the checkpoint
    draw = random.Random(0)
    for length in (
        later,
        later + 1,
        metrics.index(b"\n", later),
        *(draw.randrange(later, len(metrics)) for _ in range(3)),
    ):
        run = shutil.copytree(damaged, tmp_path / f"cut-{length}", symlinks=True)
        os.truncate(run / "metrics.jsonl", length)
        train_small(run, "callbacks.checkpointing.keep_last=9")
        compare(undisturbed, run)


def test_an_event_cut_in_mid_line_spoils_no_other(train_small: TrainSmall, damaged: Path) -> None:
    go_back_to(damaged, 10)
    events = damaged / "events.jsonl"
    before = events.read_text().splitlines()
    os.truncate(events, events.stat().st_size - 5)
    train_small(damaged, "callbacks.checkpointing.keep_last=9")
    after = events.read_text().splitlines()
    assert after[: len(before) - 1] == before[:-1]
    started = json.loads(after[len(before)])  # the line that was cut stays as it is, the next is a new one
    assert (started["event"], started["step"]) == ("start", 10)


def test_left_over_temporary_files_are_removed(train_small: TrainSmall, undisturbed: Path, damaged: Path) -> None:
    go_back_to(damaged, 10)
    left_over = [
        damaged / "checkpoints/.step-00000015.pt.4194304-0123abcd.tmp",
        damaged / "checkpoints/.best.pt.4194304-0123abcd.tmp",
        damaged / ".metrics.jsonl.4194304-0123abcd.tmp",
        damaged / ".status.json.4194304-0123abcd.tmp",
    ]
    for path in left_over:
        path.write_bytes(b"half a file")
    train_small(damaged, "callbacks.checkpointing.keep_last=9")
    assert [path for path in left_over if path.exists()] == []
    compare(undisturbed, damaged)


def test_the_folder_for_temporary_files_may_be_on_another_filesystem(
    train_small: TrainSmall, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if Path(elsewhere).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm is the filesystem of the tests' own folder")
        monkeypatch.setenv("TMPDIR", elsewhere)
        monkeypatch.setattr(tempfile, "tempdir", None)
        train_small(tmp_path / "other", "callbacks.checkpointing.keep_last=9")
        compare(undisturbed, tmp_path / "other")
        train_small(Path(elsewhere) / "run", "callbacks.checkpointing.keep_last=9")  # and the run itself there
        compare(undisturbed, Path(elsewhere) / "run")


MANY = [
    "trainer.max_steps=400",
    "callbacks.validation.every_n_steps=1000",
    "callbacks.checkpointing.every_n_steps=20",
    "callbacks.checkpointing.keep_last=99",
]


def whole_ones(folder: Path) -> list[str]:
    """Names of the checkpoints of a folder; fails where one of them is damaged."""
    return [path.name for path in checkpoint_file.in_folder(folder) if checkpoint_file.load(path)]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_stops_the_run_and_spoils_nothing(
    processes: int, corpus_folder: Path, tmp_path: Path, private_mounts: PrivateMounts
) -> None:
    """In the middle of a checkpoint. With room made the same command goes on, to the result of a run nobody disturbed."""
    common = [*SMALL, *MANY, f"data.path={corpus_folder}", f"trainer.devices={processes}", "trainer.threads=1"]
    reference = private_mounts.start(*common, f"paths.runs={tmp_path}", "run_name=undisturbed")
    assert reference.wait(PATIENCE) == 0
    size = (tmp_path / "undisturbed/checkpoints/step-00000400.pt").stat().st_size

    place = tmp_path / "small disk"
    place.mkdir()
    private_mounts.run("mount", "-t", "tmpfs", "-o", f"size={int(40 * size)}", "none", str(place))
    seen = private_mounts.root / place.relative_to("/")
    ballast = seen / "ballast"
    ballast.write_bytes(bytes(int(33.5 * size)))  # room for six checkpoints
    words = [*common, f"paths.runs={place}", "run_name=filled"]
    process = private_mounts.start(*words)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, said
    assert "No space left on device" in said
    assert f"{place}/filled/checkpoints/step-" in said
    assert "Traceback" not in said
    kept = whole_ones(seen / "filled/checkpoints")
    assert 3 <= len(kept) <= 6
    assert not list((seen / "filled/checkpoints").glob(".*"))  # half a file takes no room
    assert json.loads((seen / "filled/status.json").read_text())["status"] in ("failed", "running")

    ballast.unlink()
    process = private_mounts.start(*words)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    compare(tmp_path / "undisturbed", shutil.copytree(seen / "filled", tmp_path / "filled", symlinks=True))


@pytest.mark.slow
def test_a_checkpoint_folder_that_becomes_read_only(
    corpus_folder: Path, tmp_path: Path, private_mounts: PrivateMounts
) -> None:
    """Before the start or in the middle of it: the error names the folder, and nothing that was there is lost."""
    run = tmp_path / "run"
    words = [*SMALL, *MANY, f"data.path={corpus_folder}", "trainer.threads=1", f"paths.runs={tmp_path}"]
    reference = private_mounts.start(*words, "run_name=undisturbed")
    assert reference.wait(PATIENCE) == 0

    (run / "checkpoints").mkdir(parents=True)
    private_mounts.run("mount", "--bind", str(run / "checkpoints"), str(run / "checkpoints"))
    process = private_mounts.start(*words, "run_name=run")
    wait_until(lambda: len(checkpoint_file.in_folder(run / "checkpoints")) >= 3, process)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            private_mounts.run("mount", "-o", "remount,bind,ro", str(run / "checkpoints"))
            break
        except subprocess.CalledProcessError:  # a checkpoint is being written
            assert time.monotonic() < deadline
    kept = whole_ones(run / "checkpoints")
    for _ in range(2):  # the second start finds it read-only from the beginning
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2, said
        assert "Read-only file system" in said
        assert str(run / "checkpoints") in said
        assert "Traceback" not in said
        assert whole_ones(run / "checkpoints")[-len(kept) :] == kept
        process = private_mounts.start(*words, "run_name=run")
    process.wait(PATIENCE)
    private_mounts.run("mount", "-o", "remount,bind,rw", str(run / "checkpoints"))
    process = private_mounts.start(*words, "run_name=run")
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    compare(tmp_path / "undisturbed", run)
