"""Starting and reading: from command to first step, fresh and resumed, whatever the corpus; reading; --help.

    python -m benchmarks.start --json start.json

The large corpora are sparse files: their length is real, their pages are made when read, so the page cache is not measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import report, table
from xlm_train.data.corpus import Corpus
from xlm_train.data.datamodule import StepBatches
from xlm_train.data.manifest import FORMAT, VERSION
from xlm_train.data.order import Order
from xlm_train.data.training_text import TrainingText
from xlm_train.objectives.clm import CausalLM
from xlm_train.runtime import checkpoint_file

LANGUAGES = {"de": 0, "en": 1}
N_WORDS = 2478
BPTT, SLOTS, SLOT_STREAMS = 64, 2, 8  # configs/experiment/demo.yaml


def make_corpus(folder: Path, tokens: int) -> Path:
    """A corpus folder whose train split has `tokens` tokens a language, all zero bytes on disk."""
    folder.mkdir()
    for name in ("vocab", "codes"):
        (folder / name).write_bytes(b"")
    checksum = hashlib.sha256(b"").hexdigest()
    split: dict[str, Any] = {}
    for language in LANGUAGES:
        for name, dtype, length in (
            (f"train.{language}", np.uint16, tokens),
            (f"train.{language}.idx", np.int64, tokens // 20),
        ):
            np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(length,)).flush()
        shard = {
            "file": f"train.{language}.npy", "tokens": tokens, "sha256": "",
            "index": f"train.{language}.idx.npy", "sentences": tokens // 20, "index_sha256": "",
        }  # fmt: skip
        split[language] = {"shards": [shard], "sentences": tokens // 20, "tokens": tokens}
    manifest = {
        "format": FORMAT, "version": VERSION, "languages": LANGUAGES, "dtype": "uint16", "lineage": "none",
        "vocabulary": {"file": "vocab", "sha256": checksum, "entries": N_WORDS},
        "codes": {"file": "codes", "sha256": checksum, "merges": 0},
        "splits": {"train": split}, "text": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def loader(folder: Path) -> StepBatches:
    """Opens a corpus for one process at the demo's shape."""
    corpus = Corpus(folder)
    objective = CausalLM(TrainingText(corpus, BPTT, SLOT_STREAMS))
    return StepBatches(Order(objective.streams, SLOTS, seed=0), objective.batch, range(SLOTS))


def reading(reader: StepBatches) -> Callable[[], Any]:
    """Reads the next step at every call."""
    steps = iter(range(10**6))
    return lambda: reader.read(next(steps))


def timed(work: Any, repeat: int) -> float:
    """Median seconds."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def first_step(corpus: Path, runs: Path, name: str, *words: str) -> float:
    """Seconds from the command until the first step of `xlm-train experiment=demo` stands in metrics.jsonl."""
    metrics = runs / name / "metrics.jsonl"
    before = metrics.read_bytes() if metrics.exists() else b""
    steps = 2 + before.count(b"\n")
    command = [
        sys.executable, "-m", "xlm_train.commands.train", "experiment=demo", f"data.path={corpus}", f"paths.runs={runs}",
        f"run_name={name}", f"trainer.max_steps={steps}", "callbacks.metrics.every_n_steps=1",
        "schedule.total_updates=1800", *words,
    ]  # fmt: skip
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not metrics.exists() or metrics.stat().st_size <= len(before):
        if process.poll() is not None:
            sys.exit(f"{' '.join(command)}: ended with status {process.returncode} before its first step")
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    if process.wait() != 0:
        sys.exit(f"{' '.join(command)}: status {process.returncode}")
    return seconds


def starts(small: Path, large: Path, runs: Path, repeat: int = 2) -> dict[str, float]:
    """Medians of `first_step`, in turn."""
    two = ("trainer.devices=2",)
    cases: dict[str, tuple[Path, str, tuple[str, ...]]] = {
        "first step, one process, s": (small, "one", ()),
        "first step, one process, 1,000 times the text, s": (large, "large", ()),
        "first step, two processes, s": (small, "two", two),
    }
    found: dict[str, list[float]] = {}
    for turn in range(repeat):
        for name, (corpus, run, words) in cases.items():
            fresh = first_step(corpus, runs, f"{run}{turn}", *words)
            resumed = first_step(corpus, runs, f"{run}{turn}", *words)
            found.setdefault(name, []).append(fresh)
            found.setdefault(name.replace("first step", "first step after a resume"), []).append(resumed)
    file = next((runs / "one0" / "checkpoints").glob("step-*.pt"))
    found["reading that checkpoint, s"] = [timed(lambda: checkpoint_file.load(file), 5)]
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for tokens in (10**6, 10**8, 10**9):
            folder = make_corpus(Path(temporary) / str(tokens), tokens)

            def first(folder: Path = folder) -> None:
                loader(folder).read(0)

            results[f"open and read step 0, {tokens:.0e} tokens a language, ms"] = 1000 * timed(first, 15)
            results[f"read a step, {tokens:.0e} tokens a language, ms"] = 1000 * timed(reading(loader(folder)), 200)
        results |= starts(Path(temporary) / "1000000", Path(temporary) / "1000000000", Path(temporary) / "runs")
    for name in ("train", "evaluate", "generate", "export", "import_"):
        words = [sys.executable, "-m", f"xlm_train.commands.{name}", "--help"]
        results[f"python -m xlm_train.commands.{name} --help, s"] = timed(
            lambda words=words: subprocess.run(words, check=True, stdout=subprocess.DEVNULL), 3
        )
    rows = [[name, f"{value:.4g}"] for name, value in results.items()]
    return report("Starting and reading", table(["", ""], rows), results, options.json)


if __name__ == "__main__":
    main()
