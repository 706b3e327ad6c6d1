"""What the parts of the GPU benchmark share: the settings that are run, a corpus, and xlm-train in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_machine import Failed, runs
from benchmarks.start import make_corpus

REPOSITORY = Path(__file__).resolve().parent.parent
TOKENS = 1_000_000  # of a language's train split
VALID_TOKENS = 8_192
SENTENCE = 25  # tokens
REPORT_EVERY = 5  # steps


@dataclass(frozen=True)
class Trial:
    """A setting of the step."""

    precision: str
    slots: int
    streams: int

    def __str__(self) -> str:
        return f"{self.precision}, {self.slots} slots of {self.streams} streams"

    @property
    def words(self) -> list[str]:
        """As overrides."""
        return [f"trainer.precision={self.precision}", f"data.slots={self.slots}", f"data.slot_streams={self.streams}"]


@dataclass(frozen=True)
class Scale:
    """What is run. overrides: of xlm-train. n_words: vocabulary of the corpus. long: steps of the longest run."""

    overrides: tuple[str, ...]
    n_words: int
    long: int
    trial: Trial
    others: tuple[Trial, ...]
    bptt: int


ONE_GPU = ("experiment=clm_ende_1024", "trainer.devices=1", "trainer.nodes=1")
REAL = Scale(
    ONE_GPU, 64_699, 200, Trial("16-mixed", 1, 64), (Trial("bf16-mixed", 1, 64), Trial("16-mixed", 4, 16)), 256
)
SMALL = Scale(("experiment=smoke",), 500, 120, Trial("32-true", 4, 4), (Trial("32-true", 1, 16),), 32)


@dataclass(frozen=True)
class Work:
    """gpu: whether there is one. folder: of corpus and runs. seen: results of the parts before."""

    gpu: bool
    folder: Path
    seen: Mapping[str, Any]

    @property
    def scale(self) -> Scale:
        """The real one on a GPU."""
        return REAL if self.gpu else SMALL

    @property
    def unscaled(self) -> Trial:
        """The main setting without a loss scale."""
        return replace(self.scale.trial, precision="bf16-mixed" if self.gpu and runs("bf16-mixed") else "32-true")

    def corpus(self) -> Path:
        """The corpus, made when it is first asked for."""
        folder = self.folder / "corpus"
        if not (folder / "manifest.json").exists():
            make_text(folder, self.scale.n_words)
        return folder

    def start(self, name: str, *more: str) -> subprocess.Popen[str]:
        """Start xlm-train in a process of its own; its output goes to the run's .log."""
        words = [
            *self.scale.overrides, f"data.path={self.corpus()}", f"paths.runs={self.folder}", f"run_name={name}",
            f"callbacks.metrics.every_n_steps={REPORT_EVERY}",
            "callbacks.validation.every_n_steps=100000", *more,
        ]  # fmt: skip
        with open(self.log(name), "a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "xlm_train.commands.train", *words],
                cwd=REPOSITORY, env=environment(), stdout=log, stderr=log, text=True,
            )  # fmt: skip

    def log(self, name: str) -> Path:
        """Where a run's output goes."""
        return self.folder / f"{name}.log"

    def train(self, name: str, *more: str) -> Path:
        """The folder of a finished run, trained where it is not there yet.

        Raises:
            Failed: it did not finish; with the end of its output.
        """
        if status := self.start(name, *more).wait():
            raise Failed(f"xlm-train ended with status {status} ({name}):\n{self.log(name).read_text()[-3000:]}")
        return self.folder / name

    def long_run(self) -> Path:
        """The long run in the main setting, which several parts look at."""
        steps = self.scale.long
        return self.train(
            "long", *self.scale.trial.words, f"trainer.max_steps={steps}", f"callbacks.checkpointing.every_n_steps={steps // 4}",
            "callbacks.checkpointing.keep_last=4",
        )  # fmt: skip


def environment() -> dict[str, str]:
    """The processes' environment: this checkout before whatever else is on the path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))}


def call(module: str, *words: str) -> str:
    """What a command prints.

    Raises:
        Failed: its exit status is not 0.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=REPOSITORY, env=environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise Failed(f"{module} {' '.join(words)}: status {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def make_text(corpus: Path, n_words: int) -> None:
    """A corpus of random words as frequent as Zipf's law has them, in sentences, with a split to validate on."""
    make_corpus(corpus, TOKENS)
    manifest = json.loads((corpus / "manifest.json").read_text())
    words = range(n_words - 14)
    for name, content in (
        ("vocab", "".join(f"w{word} {10**9 // (word + 1)}\n" for word in words)),
        ("codes", "a b</w> 2\n"),
    ):
        (corpus / name).write_text(content)
        manifest["vocabulary" if name == "vocab" else "codes"]["sha256"] = hashlib.sha256(content.encode()).hexdigest()
    manifest["vocabulary"]["entries"] = n_words
    manifest["codes"]["merges"] = 1
    manifest["text"] = {"lowercase": False, "remove_accents": False}
    frequency = 1 / np.arange(1, len(words) + 1)
    generator = np.random.default_rng(0)
    manifest["splits"]["valid"] = {}
    for language in manifest["languages"]:
        for split, tokens in (("train", TOKENS), ("valid", VALID_TOKENS)):
            ids = 14 + generator.choice(len(words), tokens, p=frequency / frequency.sum())
            ids[SENTENCE - 1 :: SENTENCE] = ids[-1] = 1
            sentences = -(-tokens // SENTENCE)
            np.save(corpus / f"{split}.{language}.npy", ids.astype(np.uint16))
            np.save(corpus / f"{split}.{language}.idx.npy", SENTENCE * np.arange(sentences))
            shard = {
                "file": f"{split}.{language}.npy", "tokens": tokens, "sha256": "",
                "index": f"{split}.{language}.idx.npy", "sentences": sentences, "index_sha256": "",
            }  # fmt: skip
            manifest["splits"][split][language] = {
                "shards": [shard], "sentences": sentences, "tokens": tokens, "unknown": 0,
                "words": tokens, "characters": 6 * tokens,
            }  # fmt: skip
    (corpus / "manifest.json").write_text(json.dumps(manifest))
