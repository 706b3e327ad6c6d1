"""Checkpoints: whole or not there, verified before use, safe to load."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import process_environment
from xlm_train.runtime import checkpoint_content, checkpoint_file
from xlm_train.runtime.errors import CheckpointError, UnreadableError, UserError


def content(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"w": torch.randn(50, 40, generator=generator)},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"params": [0]}]},
        "progress": {"step": step, "updates": step},
        "lineage": {"corpus": None, "parents": []},
        "shape": {"n_words": 50, "n_langs": 2},
        "text": {"languages": {}, "vocab": "", "codes": "", "lowercase": False, "remove_accents": False},
        "config": {},
    }


def test_round_trip(tmp_path: Path) -> None:
    digest = checkpoint_file.save(tmp_path / checkpoint_file.name_of(7), content(7))
    loaded = checkpoint_file.load(tmp_path / "step-00000007.pt")
    assert loaded["sha256"] == digest
    assert torch.equal(loaded["model"]["w"], content(7)["model"]["w"])
    assert loaded["progress"] == {"step": 7, "updates": 7}
    assert loaded["optimizer"] == content(7)["optimizer"]
    assert os.listdir(tmp_path) == ["step-00000007.pt"]


IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import OutOfMemory
import torch
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 100_000_000, -1))
try:
    checkpoint_file.newest(sys.argv[1])
except OutOfMemory as error:
    print(error)
"""


def test_a_file_too_large_for_memory_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / checkpoint_file.name_of(1)
    checkpoint_file.save(path, {**content(1), "shape": {"dim": 40}, "model": {"w": torch.zeros(50_000_000)}})
    told = subprocess.run(
        [sys.executable, "-c", IN_LITTLE_MEMORY, str(tmp_path)],
        capture_output=True,
        text=True,
        env=process_environment(),
    )
    assert told.stdout.startswith(f"{path}: out of memory while its 0.2 GB were read: free some"), told
    assert checkpoint_file.shape_of(path) == {"dim": 40}


def test_torch_itself_can_read_it(tmp_path: Path) -> None:
    checkpoint_file.save(tmp_path / "a.pt", content(1))
    inside = torch.load(tmp_path / "a.pt", weights_only=True)
    assert inside["train_state"] == {"step": 1, "updates": 1}
    assert inside["global_step"] == 1
    assert list(inside["state_dict"]) == ["model.w"]  # as Lightning names the weights of its module


def test_version_2_without_losses_is_read(tmp_path: Path) -> None:
    """As xlm-import wrote it: nothing of a run in it."""
    old = {**content(3), "format": checkpoint_content.FORMAT, "version": 2}
    checkpoint_file.write(tmp_path / "old.pt", old)
    loaded = checkpoint_file.load(tmp_path / "old.pt")
    assert loaded["progress"] == {"step": 3, "updates": 3, "losses": []}
    assert torch.equal(loaded["model"]["w"], old["model"]["w"])


@pytest.mark.parametrize("lacking", ["model", "progress", "shape", "text", "lineage", "config"])
@pytest.mark.parametrize("version", [2, checkpoint_content.VERSION])
def test_a_whole_file_that_lacks_something_is_refused_and_skipped(tmp_path: Path, lacking: str, version: int) -> None:
    checkpoint_file.save(tmp_path / checkpoint_file.name_of(1), content(1))
    path = tmp_path / checkpoint_file.name_of(2)
    inside = content(2) if version == 2 else checkpoint_content.from_view(content(2))
    name = lacking if version == 2 else {"model": "state_dict", "progress": "train_state"}.get(lacking, lacking)
    inside[name] = {} if lacking in ("shape", "progress", "text", "lineage") else None
    checkpoint_file.write(path, inside | {"version": version})
    with pytest.raises(CheckpointError, match=rf"00000002\.pt: holds no whole {name}"):
        checkpoint_file.load(path)
    found = checkpoint_file.newest(tmp_path)
    assert found.path == tmp_path / checkpoint_file.name_of(1)
    assert [skipped for skipped, _ in found.skipped] == [path]


def test_what_cannot_be_read_now_is_neither_skipped_nor_taken_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoint_file.save(tmp_path / checkpoint_file.name_of(step), content(step))
    open_ = open

    def fails(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith("2.pt"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return open_(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", fails)
        with pytest.raises(
            UnreadableError, match=r"00000002\.pt: cannot be read: Input/output error: make it readable"
        ):
            checkpoint_file.newest(tmp_path)

    def denied(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", denied)
    for look in (checkpoint_file.newest, checkpoint_file.any_in):
        with pytest.raises(UserError, match="cannot be read: Permission denied"):
            look(tmp_path)


def test_pipes_and_folders_are_no_checkpoints(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / checkpoint_file.name_of(1))
    (tmp_path / checkpoint_file.name_of(2)).mkdir()
    assert checkpoint_file.in_folder(tmp_path) == []
    whole = tmp_path / checkpoint_file.name_of(3)
    whole.touch()
    for name, target in (("through", f"{whole.name}/x"), ("loop", "loop"), ("nowhere", "none")):
        (tmp_path / name).symlink_to(target)
    assert checkpoint_file.in_folder(tmp_path) == [whole]


@pytest.mark.parametrize("where", [0, 0.1, 0.5, 0.9, 1.0])
def test_a_flipped_bit_is_found(tmp_path: Path, where: float) -> None:
    path = tmp_path / "step-00000001.pt"
    checkpoint_file.save(path, content(1))
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"step-00000001\.pt"):
        checkpoint_file.load(path)


def test_any_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    checkpoint_file.save(path, content(1))
    data = path.read_bytes()
    for length in [0, 1, 47, 48, 49, len(data) // 2, len(data) - 48, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            checkpoint_file.load(path)
    path.write_bytes(data + b"x")
    with pytest.raises(CheckpointError):
        checkpoint_file.load(path)


def test_newest_skips_damaged_ones_and_names_them(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint_file.save(tmp_path / checkpoint_file.name_of(step), content(step))
    newest = tmp_path / checkpoint_file.name_of(30)
    newest.write_bytes(newest.read_bytes()[:-100])
    (tmp_path / ".step-00000040.pt.123.tmp").write_bytes(b"half")
    (tmp_path / "step-00000050.pt.bak").write_bytes(b"not ours")
    found = checkpoint_file.newest(tmp_path)
    assert found.path == tmp_path / checkpoint_file.name_of(20)
    assert [path for path, _ in found.skipped] == [newest]
    assert newest.exists()
    assert checkpoint_file.newest(tmp_path / "nothing").path is None


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.target),))


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    """Even with a valid checksum around it."""
    target = tmp_path / "executed"
    checkpoint_file.write(tmp_path / "evil.pt", {"state_dict": Malicious(target)})
    with pytest.raises(CheckpointError, match="safely"):
        checkpoint_file.load(tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(CheckpointError, match=r"plain\.pt"):
        checkpoint_file.load(tmp_path / "plain.pt")
    assert not target.exists()


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing\.pt"):
        checkpoint_file.load(tmp_path / "missing.pt")
    checkpoint_file.write(tmp_path / "other.pt", {"format": "something else"})
    with pytest.raises(CheckpointError, match="not a checkpoint of xlm_train"):
        checkpoint_file.load(tmp_path / "other.pt")
    with pytest.raises(UserError, match="no-folder"):
        checkpoint_file.save(tmp_path / "no-folder" / "a.pt", content(1))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the write fail half-way, as a full disk does."""
    path = tmp_path / "step-00000001.pt"
    checkpoint_file.save(path, content(1))
    before = path.read_bytes()
    script = f"""
import resource, signal, torch
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    checkpoint_file.write({str(path)!r}, {{"state_dict": torch.zeros(1_000_000)}})
except UserError as error:
    print(error)
"""
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=process_environment(), check=True
    )
    assert "step-00000001.pt: cannot be written" in out.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["step-00000001.pt"]


def test_sigkill_in_the_middle_of_writes(tmp_path: Path) -> None:
    """A process that does nothing but save is killed at 8 moments: whatever stands under a final name is whole."""
    script = f"""
import torch
from tests.xlm_train.runtime.test_checkpoint_file import content
from xlm_train.runtime import checkpoint_file
step = 0
while True:
    step += 1
    view = {{**content(step), "model": {{"w": torch.full((500_000,), float(step))}}}}
    checkpoint_file.save({str(tmp_path)!r} + "/" + checkpoint_file.name_of(step % 5), view)
    print(step, flush=True)
"""
    killed_in_write = 0
    for trial in range(8):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=process_environment())
        assert process.stdout is not None
        for _ in range(2 + trial):
            process.stdout.readline()
        time.sleep(0.003 * trial)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        killed_in_write += any(tmp_path.glob(".*.tmp"))
        for left_over in tmp_path.glob(".*.tmp"):
            left_over.unlink()
        files = checkpoint_file.in_folder(tmp_path)
        assert files
        for path in files:
            loaded = checkpoint_file.load(path)
            assert (loaded["model"]["w"] == float(loaded["progress"]["step"])).all()
    assert killed_in_write > 0  # else the test proves nothing
