"""Text preparation: speed of each stage on one core, and of the whole at several sizes with its memory.

    python benchmarks/prep.py en=novels.en.gz de=novels.de.gz --codes codes --vocab vocab --megabytes 20 200
    python benchmarks/prep.py ... --moses mosesdecoder/scripts/tokenizer    the perl scripts beside it

Larger inputs are the given text over and over, each time from another line on. MB are of raw text. The stages are
timed in CPU seconds, which other work on the machine disturbs little; the whole in seconds of the clock as well.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import stages
from data_prep.binarise import binarise
from xlm_train.text.lines import DroppedLines, Piece, cut
from xlm_train.text.vocabulary import Vocabulary

PIECE_BYTES = 1 << 22
SAMPLE_EVERY = 0.25  # seconds between two looks at the memory
COMMAND = [sys.executable, "-c", "from data_prep.prepare import main; main()"]


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def read(name: str) -> bytes:
    raw = Path(name).read_bytes()
    return gzip.decompress(raw) if name.endswith(".gz") else raw


def repeated(text: bytes, size: int) -> Iterator[bytes]:
    """`size` bytes or a little more of whole lines: the text over and over, from another line on each time."""
    made = turn = 0
    while made < size:
        start = text.find(b"\n", turn * 7919 % len(text)) + 1
        block = (text[start:] + text[:start])[: size - made]
        block += text[: text.find(b"\n") + 1] if not block.endswith(b"\n") else b""
        made += len(block)
        turn += 1
        yield block


# ---- each stage, on one core


def time_stages(language: str, text: bytes, codes: Path, vocab: Path) -> dict[str, dict[str, float]]:
    """MB/s and lines/s of every stage, with warm caches: pieces before the measured ones have been through."""
    pieces = list(cut([text], PIECE_BYTES, 1 << 20, DroppedLines()))
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def measure(stage: str, action: Callable[[int, Piece], object]) -> None:
            action(0, pieces[0])
            start = cpu_seconds()
            for number, piece in enumerate(pieces):
                action(number, piece)
            seconds = cpu_seconds() - start
            found[stage] = {
                "mb_per_s": round(len(text) / 1e6 / seconds, 2),
                "lines_per_s": round(text.count(b"\n") / seconds),
            }

        def job(number: int, piece: Piece) -> stages.TokeniseJob:
            return stages.TokeniseJob(folder / f"t{number}", piece, language, language, False, False, "replace")

        def selected(number: int) -> stages.Selection:
            return stages.Selection(folder / f"t{number}")

        measure("tokenise", lambda n, piece: stages.tokenise_piece(job(n, piece)))
        measure("words", lambda n, _: stages.count_piece_words(stages.WordsJob(folder / f"w{n}", selected(n), None, 1)))
        measure("cut", lambda n, _: stages.cut_piece(stages.CutJob(folder / f"c{n}", selected(n), codes, None)))
        encode = stages.encode_piece
        measure("encode", lambda n, _: encode(stages.EncodeJob(folder / f"i{n}", folder / f"c{n}", vocab)))
        dtype = Vocabulary.from_file(vocab).dtype
        start = cpu_seconds()
        binarise([folder / f"i{n}" for n in range(len(pieces))], "x", folder, np.dtype(dtype), 1 << 28)
        seconds = cpu_seconds() - start
        found["binarise"] = {
            "mb_per_s": round(len(text) / 1e6 / seconds, 2),
            "lines_per_s": round(text.count(b"\n") / seconds),
        }
    return found


# ---- the whole


def tree(process: int) -> list[int]:
    """A process and all below it."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(below for child in children for below in tree(int(child)))]


def memory_mb(process: int) -> float:
    """Memory of a process and all below it, shared pages counted once (PSS)."""
    total = 0
    for number in tree(process):
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total / 1024


def run_whole(texts: dict[str, bytes], megabytes: int, workers: int, codes: Path, vocab: Path) -> dict[str, Any]:
    """xlm-prep over `megabytes` of text, as a process of its own: seconds, MB/s, peak memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = 0
        for language, text in texts.items():
            with open(folder / f"text.{language}", "wb") as file:
                for block in repeated(text, megabytes * 1_000_000 // len(texts)):
                    size += file.write(block)
        inputs = [f"train.{language}={folder}/text.{language}" for language in texts]
        command = [*COMMAND, f"out={folder}/out", *inputs, f"codes={codes}", f"vocab={vocab}", f"workers={workers}"]
        peak = 0.0
        start, used = time.monotonic(), cpu_seconds()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)
        over = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not over.wait(SAMPLE_EVERY):
                peak = max(peak, memory_mb(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        seconds, cpu = time.monotonic() - start, cpu_seconds() - used
        over.set()
        watcher.join()
        if status:
            sys.exit(f"xlm-prep failed with status {status}")
    return {
        "megabytes": round(size / 1e6, 1),
        "workers": workers,
        "seconds": round(seconds, 1),
        "mb_per_s": round(size / 1e6 / seconds, 2),
        "mb_per_cpu_s": round(size / 1e6 / cpu, 2),
        "peak_memory_mb": round(peak),
    }


def run_moses(scripts: Path, language: str, text: bytes) -> dict[str, float]:
    """The four perl scripts as a pipe, as the original runs them."""
    perl = [
        f"perl {scripts}/replace-unicode-punctuation.perl",
        f"perl {scripts}/normalize-punctuation.perl -l {language}",
        f"perl {scripts}/remove-non-printing-char.perl",
        f"perl {scripts}/tokenizer.perl -no-escape -threads 1 -l {language}",
    ]
    start, used = time.monotonic(), cpu_seconds()
    subprocess.run(
        " | ".join(perl), shell=True, input=text, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
    )
    seconds, cpu = time.monotonic() - start, cpu_seconds() - used
    return {"mb_per_s": round(len(text) / 1e6 / seconds, 2), "mb_per_cpu_s": round(len(text) / 1e6 / cpu, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", metavar="LANG=FILE", help="plain or .gz text")
    parser.add_argument("--codes", type=Path, required=True)
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[20, 200], help="sizes of the whole runs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--moses", type=Path, help="folder of tokenizer.perl and its neighbours")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    texts: dict[str, bytes] = {}
    for entry in arguments.texts:
        language, _, name = entry.partition("=")
        texts[language] = texts.get(language, b"") + read(name)
    codes, vocab = arguments.codes.absolute(), arguments.vocab.absolute()
    result: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "stages": {}, "whole": [], "moses": {}}

    print(f"{'one core':<14}" + "".join(f"{language + ' MB/s':>12}{'lines/s':>12}" for language in texts))
    for language, text in texts.items():
        result["stages"][language] = time_stages(language, text, codes, vocab)
        if arguments.moses:
            result["moses"][language] = run_moses(arguments.moses, language, text)
    for stage in next(iter(result["stages"].values())):
        cells = [result["stages"][language][stage] for language in texts]
        print(f"{stage:<14}" + "".join(f"{cell['mb_per_s']:>12}{cell['lines_per_s']:>12,}" for cell in cells))
    for language, cell in result["moses"].items():
        print(f"perl, {language}: {cell['mb_per_s']} MB/s by the clock, {cell['mb_per_cpu_s']} MB a CPU second")

    print(f"\n{'whole: MB':<14}{'workers':>10}{'seconds':>10}{'MB/s':>8}{'MB/CPU s':>10}{'peak MB':>10}")
    for megabytes in arguments.megabytes:
        row = run_whole(texts, megabytes, arguments.workers, codes, vocab)
        result["whole"].append(row)
        print(
            f"{row['megabytes']:<14}{row['workers']:>10}{row['seconds']:>10}{row['mb_per_s']:>8}"
            f"{row['mb_per_cpu_s']:>10}{row['peak_memory_mb']:>10}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
