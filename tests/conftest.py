"""Fixtures shared by all tests."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# A shell lets what it starts in the background ignore SIGINT, and all that this starts in turn (bash cannot even trap it).
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run side by side: several threads each would only wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the original's golden outputs and real text: $XLM_SHARED, or `shared` beside the checkout."""
    folder = Path(os.environ.get("XLM_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "goldens").is_dir():
        message = f"{folder} is not there: golden outputs of the original are needed (set XLM_SHARED)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


def text_files(shared: Path, folder: Path, lines: int) -> dict[str, Path]:
    """The first `lines` lines of real text in each language, as plain files."""
    paths = {}
    for language in ("de", "en"):
        with gzip.open(shared / f"corpora/voice.train.{language}.gz", "rb") as source:
            paths[language] = folder / f"text.{language}"
            paths[language].write_bytes(b"".join(next(source) for _ in range(lines)))
    return paths


@pytest.fixture(scope="session")
def corpus_folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small binarised corpus of real text, made by xlm-prep. Read only: copy it before changing it."""
    folder = tmp_path_factory.mktemp("corpus")
    text = text_files(shared, folder, 2500)
    command(
        "data_prep.prepare",
        f"out={folder / 'bin'}",
        *(f"train.{language}={path}" for language, path in text.items()),
        "bpe.n_codes=600",
        "holdout.sentences=100",
        "workers=1",
    )
    return folder / "bin"


def command(
    module: str, *arguments: str, status: int = 0, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of this checkout in a process of its own; fails the test where its exit status is another."""
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=process_environment(**environment),
        timeout=300,
        check=False,
    )
    assert result.returncode == status, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def train_here(config: dict[str, Any]) -> int:
    """Train in this process with a composed and resolved config; returns the exit status."""
    from xlm_train.config.train import from_resolved
    from xlm_train.runtime.processes import StopFlag
    from xlm_train.train import train

    return train(from_resolved(config), StopFlag())


def process_environment(**more: str) -> dict[str, str]:
    """Environment for a process of this checkout, one thread a process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **more}


@pytest.fixture(scope="session")
def compose() -> Callable[..., dict[str, Any]]:
    """Compose and resolve a config of the checkout: compose("train", "experiment=smoke", ...)."""

    def composed(name: str, *overrides: str) -> dict[str, Any]:
        import hydra
        from omegaconf import OmegaConf

        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(REPOSITORY / "configs")):
            config = OmegaConf.to_container(hydra.compose(name, overrides=list(overrides)), resolve=True)
        assert isinstance(config, dict)
        return {str(key): value for key, value in config.items()}

    return composed
