"""Runs to damage: small ones in this process, on folders that can become full or read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import process_environment, train_here

# Checkpoints at steps 5, 10, 15 and 20, reports between them.
SMALL = (
    "experiment=smoke",
    "callbacks.checkpointing.every_n_steps=5",
    "callbacks.metrics.every_n_steps=2",
    "data.slots=3",
)


@pytest.fixture(scope="session")
def train_small(compose: Callable[..., dict[str, Any]], corpus_folder: Path) -> Callable[..., None]:
    """Train a run to its end in this process: train_small(run folder, *overrides)."""

    def run(folder: Path, *overrides: str) -> None:
        words = [f"data.path={corpus_folder}", f"paths.runs={folder.parent}", f"run_name={folder.name}"]
        assert train_here(compose("train", *SMALL, *words, *overrides)) == 0

    return run


@pytest.fixture(scope="session")
def undisturbed(train_small: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 steps, with all its checkpoints. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    train_small(folder, "callbacks.checkpointing.keep_last=9")
    return folder


@pytest.fixture
def damaged(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run, to be damaged."""
    return shutil.copytree(undisturbed, tmp_path / "damaged", symlinks=True)


@dataclass
class PrivateMounts:
    """Commands that see mounts which nobody else sees; this process reaches the files under `root`."""

    pid: int

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.pid}/root")

    def wrap(self, *words: str) -> list[str]:
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self.pid}", *user, "--mount", f"--wd={Path.cwd()}", *words]

    def run(self, *words: str) -> None:
        subprocess.run(self.wrap(*words), check=True, capture_output=True)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start xlm-train there."""
        return subprocess.Popen(
            self.wrap(sys.executable, "-m", "xlm_train.commands.train", *words),
            env=process_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def private_mounts() -> Iterator[PrivateMounts]:
    """A mount namespace of its own, as root or in a user namespace. Skips where the kernel grants neither."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    words = ["unshare", *user, "--mount", "sh", "-c", "mount -t tmpfs none /mnt && echo ready && exec sleep 600"]
    keeper = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert keeper.stdout is not None
    assert keeper.stderr is not None
    if keeper.stdout.readline() != "ready\n":
        why = f"no mount namespace here: {keeper.stderr.read().strip()}"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    yield PrivateMounts(keeper.pid)
    keeper.kill()
    keeper.wait()
