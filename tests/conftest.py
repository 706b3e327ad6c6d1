"""Fixtures shared by all tests."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import json
import lzma
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import forked
from tests.forked import PATIENCE, REPOSITORY, process_environment
from xlm_train.text.numbered import NumberedText

pytest_plugins = ["tests.s3_server"]

# What a busy machine does slowly is not wrong. In CI the examples are the same each time.
CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much]
settings.register_profile("patient", deadline=None, suppress_health_check=CHECKS, derandomize="CI" in os.environ)
settings.load_profile("patient")

# A shell lets what it starts in the background ignore SIGINT, and all that this starts in turn (bash cannot even trap it).
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def free_port() -> int:
    """A port that nothing uses, below those that the system gives to whoever asks for any."""
    for port in random.sample(range(20_000, 30_000), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run side by side: several threads each would only wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """What a test leaves in the environment, which processes of later tests inherit, is taken back."""
    before, folder = dict(os.environ), Path.cwd()
    yield
    os.chdir(folder)
    for name in {*os.environ, *before} - {"PYTEST_CURRENT_TEST"}:
        if name not in before:
            del os.environ[name]
        elif os.environ.get(name) != before[name]:
            os.environ[name] = before[name]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of tests/goldens and tests/text, as `goldens` (its .xz files unpacked) and `corpora`."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(REPOSITORY / "tests/goldens", folder / "goldens")
    shutil.copytree(REPOSITORY / "tests/text", folder / "corpora")
    for packed in (folder / "goldens").rglob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    return folder


@pytest.fixture(scope="session")
def complete() -> Path:
    """The goldens that tests/goldens holds in part, whole: $XLM_SHARED, or `shared` beside the checkout. Slow tests."""
    folder = Path(os.environ.get("XLM_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "goldens").is_dir():
        message = f"{folder} is not there: it has the complete golden outputs (set XLM_SHARED)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


def read_lines(path: Path) -> list[str]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode().removesuffix("\n").split("\n")


def sha256_of(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each of the original's files, by name, where only that is kept of it."""
    pairs = (line.split("  ") for line in read_lines(folder / "SHA256SUMS"))
    return {name: sha256 for sha256, name in pairs}


@functools.cache
def golden_pieces(shared: Path, name: str, limited: bool = False) -> list[str]:
    """The lines of the original's BPE text, for example of "valid.de"; checked against its SHA-256.

    Of the training text only that is kept: its lines are made by our own chain, and are right if the SHA-256 is.
    `limited`: with the vocabulary limit, which changes few lines.
    """
    from xlm_train.text.bpe import BpeEncoder
    from xlm_train.text.bpe_codes import BpeCodes
    from xlm_train.text.tokenise import Tokeniser

    folder = shared / "goldens/bpe"
    if name.startswith("train."):
        tokens = Tokeniser(name[-2:]).tokenise(read_lines(shared / f"corpora/voice.{name}.gz"))
        encode = functools.cache(BpeEncoder(BpeCodes.from_file(folder / "codes")).encode_text)
        # fastBPE keeps all spaces, those at the ends of a line too
        lines = [" ".join(word and encode(word) for word in line.split(" ")) for line in tokens]
    else:
        lines = read_lines(folder / f"{name}.bpe.gz")
    if limited:
        for number, line in json.loads((folder / "vocab_limited.json").read_text(encoding="utf-8"))[name].items():
            lines[int(number)] = line
    file = f"{name}.bpe_vocab_limited" if limited else f"{name}.bpe"
    assert sha256_of(lines) == checksums(folder)[file], f"{file}: not as the original's"
    return lines


def golden_tokens(shared: Path, name: str) -> list[str]:
    """The same text as the original's tokeniser left it: its pieces joined."""
    return [line.replace("@@ ", "") for line in golden_pieces(shared, name)]


def count_words(lines: Iterable[str]) -> Counter[str]:
    """How often each word occurs, in the order of first occurrence."""
    return Counter(NumberedText.of(list(lines)).counts())


def text_files(shared: Path, folder: Path, lines: int) -> dict[str, Path]:
    """The first `lines` lines of real text in each language, as plain files."""
    paths = {}
    for language in ("de", "en"):
        with gzip.open(shared / f"corpora/voice.train.{language}.gz", "rb") as source:
            paths[language] = folder / f"text.{language}"
            paths[language].write_bytes(b"".join(next(source) for _ in range(lines)))
    return paths


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the runs of a test file."""
    return tmp_path_factory.mktemp("runs")


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


@pytest.fixture(scope="session")
def paired_corpus(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller one with pairs of German and English for training and validation."""
    folder = tmp_path_factory.mktemp("pairs")
    text = text_files(shared, folder, 500)
    pairs = {}
    for language in ("de", "en"):
        lines = read_lines(shared / f"corpora/sutta.parvalid.{language}.gz")
        for split, part in (("train", lines[:150]), ("valid", lines[150:190])):
            pairs.setdefault(split, []).append(path := folder / f"{split}.{language}")
            path.write_text("".join(f"{line}\n" for line in part), encoding="utf-8")
    command(
        "data_prep.prepare",
        f"out={folder / 'bin'}",
        *(f"train.{language}={path}" for language, path in text.items()),
        *(f"pairs.de-en.{split}=[{','.join(map(str, sides))}]" for split, sides in pairs.items()),
        "bpe.n_codes=300",
        "holdout.sentences=40",
        "workers=1",
    )
    return folder / "bin"


def command(
    module: str, *arguments: str, status: int = 0, cwd: Path | None = None, anew: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of this checkout in a process of its own; fails the test where its exit status is another.

    The project's commands are forked from a process that has imported everything. `anew`, and those that get an
    environment of their own: by a new interpreter, as what is imported, in which order and how, can matter to them.
    """
    words = [module, *arguments]
    name = next((name for name, of in forked.MODULES.items() if of == module), None)
    if name is None or anew or environment:
        result = subprocess.run(
            [sys.executable, "-m", *words],
            capture_output=True,
            text=True,
            cwd=cwd,
            env=process_environment(**environment),
            timeout=PATIENCE,
            check=False,
        )
    else:
        answer = forked.run(forked.Request([name, *arguments], str(cwd or Path.cwd())))
        result = subprocess.CompletedProcess(words, answer.status, answer.out, answer.err)
    assert result.returncode == status, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def train_here(config: dict[str, Any]) -> int:
    """Train in this process with a composed and resolved config; returns the exit status."""
    from xlm_train.config.train import from_resolved
    from xlm_train.runtime.processes import StopFlag
    from xlm_train.train import train

    return train(from_resolved(config), StopFlag())


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
