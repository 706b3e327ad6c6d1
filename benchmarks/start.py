"""Starting and reading: what opening a corpus costs at any size, what reading a step costs beside computing it, and --help.

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
import torch

from benchmarks.turns import report, table
from xlm_train.batches import StepBatches
from xlm_train.corpus import FORMAT, VERSION, Corpus
from xlm_train.model import XLM, ModelShape
from xlm_train.module import CausalLanguageModel
from xlm_train.order import Order, language_shares

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
    corpus = Corpus(folder)
    streams = {language: corpus.stream("train", language) for language in corpus.languages}
    shares = language_shares({language: stream.n_sentences for language, stream in streams.items()}, 0.0)
    order = Order({language: s.n_windows(BPTT) for language, s in streams.items()}, shares, SLOTS, SLOT_STREAMS, 0)
    return StepBatches(streams, corpus.languages, order, BPTT, rank=0, world_size=1)


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


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as temporary:
        for tokens in (10**6, 10**8, 10**9):
            folder = make_corpus(Path(temporary) / str(tokens), tokens)

            def first(folder: Path = folder) -> None:
                loader(folder).read(0)

            results[f"open and read step 0, {tokens:.0e} tokens a language, ms"] = 1000 * timed(first, 15)
            reader = loader(folder)
            results[f"read a step, {tokens:.0e} tokens a language, ms"] = 1000 * timed(
                lambda r=reader: r.read(next(steps)), 200
            )
        shape = ModelShape(
            n_words=N_WORDS, dim=256, n_layers=4, n_heads=4, ffn_dim=1024, max_positions=128, dropout=0.0
        )
        model = CausalLanguageModel(
            XLM(shape), lambda p: torch.optim.AdamW(p, fused=True), lambda k: 1e-3, SLOTS, clip_norm=5.0, seed=0
        )
        optimizer = model.configure_optimizers()
        reader = loader(Path(temporary) / "1000000")
        steps = iter(range(10**6))

        def compute() -> None:
            for slot in reader.read(next(steps)).slots:
                (model.slot_loss(slot) / SLOTS).backward()
            optimizer.step()
            optimizer.zero_grad()

        results["a whole step at the demo's shape, ms"] = 1000 * timed(compute, 20)
    results["reading, share of a step"] = (
        results["read a step, 1e+06 tokens a language, ms"] / results["a whole step at the demo's shape, ms"]
    )
    for name in ("train", "evaluate", "generate", "export", "import_checkpoint"):
        words = [sys.executable, "-m", f"xlm_train.{name}", "--help"]
        results[f"python -m xlm_train.{name} --help, s"] = timed(
            lambda words=words: subprocess.run(words, check=True, stdout=subprocess.DEVNULL), 3
        )
    rows = [[name, f"{value:.4g}"] for name, value in results.items()]
    return report("Starting and reading", table(["", ""], rows), results, options.json)


if __name__ == "__main__":
    main()
