"""Text preparation: speed of each stage on one core, and of the whole at several sizes with its memory.

    python benchmarks/prep.py en=novels.en.gz de=novels.de.gz --codes codes --vocab vocab --megabytes 20 200
    python benchmarks/prep.py ... --moses mosesdecoder/scripts/tokenizer    the perl scripts beside it
    python benchmarks/prep.py en=novels.en.gz de=novels.de.gz --megabytes 25 50 100 200 --set bpe.n_codes=6000
                                                              codes learned, too; no stages for themselves

Larger inputs are the given text over and over, each time from another line on; with --unrepeated lines of its words that
do not repeat, which also bring new words as real text does: what memory is to be measured on. MB are of raw text. The stages are
timed in CPU seconds, which other work on the machine disturbs little; the whole in seconds of the clock as well. Of three
sizes and more the straight line is told that they lie on, a + b MB, and how far off the farthest is.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bpe import cpu_seconds
from data_prep import stages
from data_prep.binarise import shard_jobs, write_shard
from data_prep.text import Encoded
from xlm_train.text.lines import DroppedLines, Piece, cut
from xlm_train.text.numbered import Numbers
from xlm_train.text.vocabulary import Vocabulary

PIECE_BYTES = 1 << 22
LINES, MOST_WORDS = 20_000, 60  # of unrepeated text: lines made at a time, words of a line
SAMPLE_EVERY = 0.25  # seconds between two looks at the memory
COMMAND = [sys.executable, "-c", "from data_prep.prepare import main; main()"]


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


def unrepeated(text: bytes, size: int) -> Iterator[bytes]:
    """`size` bytes or a little more of new lines.

    A word follows the two before it somewhere in the text; one in fifty is invented, of two halves of others.
    """
    random, known = np.random.default_rng(0), Numbers({"\n": 0})
    numbers = known.of([word for word in text.decode().replace("\n", " \n ").split(" ") if word])
    words = np.array(list(known), object)
    long = [word for word in known if len(word) > 4 and word.isalpha()]
    pairs = numbers[:-1].astype(np.int64) * len(words) + numbers[1:]
    order = np.argsort(pairs)
    first, end = (np.searchsorted(pairs, pairs, side, order) for side in ("left", "right"))
    begins = np.flatnonzero(numbers[:-1] == 0)
    while size > 0:
        pair, lines = random.choice(begins, LINES), np.arange(LINES)
        steps = []
        for _ in range(MOST_WORDS):
            steps.append((lines, numbers[pair + 1]))
            goes_on = (numbers[pair + 1] != 0) & (pair + 2 < len(numbers))
            pair, lines = pair[goes_on], lines[goes_on]
            pair = order[random.integers(first[pair], end[pair])] + 1
            goes_on = pair < len(pairs)
            pair, lines = pair[goes_on], lines[goes_on]
        of_line, taken = (np.concatenate(parts) for parts in zip(*steps, strict=True))
        by_line = np.argsort(of_line, kind="stable")
        new = words[taken[by_line]]
        for place in np.flatnonzero((taken[by_line] != 0) & (random.random(len(new)) < 0.02)).tolist():
            one, other = (long[k] for k in random.integers(len(long), size=2))
            new[place] = one[: len(one) // 2 + 1] + other[len(other) // 2 :].lower()
        lengths = np.bincount(of_line)
        lines_of = np.split(new, np.cumsum(lengths)[:-1])
        block = "".join(" ".join(line).removesuffix("\n").rstrip() + "\n" for line in lines_of).encode()
        size -= len(block)
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
        encoded = Encoded.of([folder / f"i{n}" for n in range(len(pieces))])
        for shard in shard_jobs(encoded.pieces, encoded.tokens, "x", folder, dtype, 1 << 28):
            write_shard(shard)
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


def own_cpu_seconds(process: int) -> float:
    """CPU seconds of a process without those below it; 0 when it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Grow = Callable[[bytes, int], Iterator[bytes]]


def run_whole(texts: dict[str, bytes], megabytes: int, settings: Sequence[str], grow: Grow) -> dict[str, Any]:
    """xlm-prep over `megabytes` of text, as a process of its own: seconds, MB/s, peak memory, files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = 0
        for language, text in texts.items():
            with open(folder / f"text.{language}", "wb") as file:
                for block in grow(text, megabytes * 1_000_000 // len(texts)):
                    size += file.write(block)
        inputs = [f"train.{language}={folder}/text.{language}" for language in texts]
        command = [*COMMAND, f"out={folder}/out", *inputs, "keep_work=true", *settings]
        peak = own = 0.0
        start, used = time.monotonic(), cpu_seconds()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)
        over = threading.Event()

        def watch() -> None:
            nonlocal peak, own
            while not over.wait(SAMPLE_EVERY):
                peak, own = max(peak, memory_mb(process.pid)), max(own, own_cpu_seconds(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        seconds, cpu = time.monotonic() - start, cpu_seconds() - used
        over.set()
        watcher.join()
        if status:
            sys.exit(f"xlm-prep failed with status {status}")
        work = sum(path.is_file() for path in (folder / "out/.work").rglob("*"))
        corpus = sum(path.is_file() for path in (folder / "out").iterdir()) - 1  # .lock
    return {
        "megabytes": round(size / 1e6, 1),
        "seconds": round(seconds, 1),
        "mb_per_s": round(size / 1e6 / seconds, 2),
        "mb_per_cpu_s": round(size / 1e6 / cpu, 2),
        "cpu_seconds": round(cpu, 1),
        "own_cpu_seconds": round(own, 1),
        "peak_memory_mb": round(peak),
        "work_files": work,
        "corpus_files": corpus,
    }


COLUMNS = {
    "megabytes": "whole: MB", "seconds": "seconds", "mb_per_s": "MB/s", "mb_per_cpu_s": "MB/CPU s", "cpu_seconds": "CPU s",
    "own_cpu_seconds": "of it command", "peak_memory_mb": "peak MB", "work_files": "work files", "corpus_files": "corpus files",
}  # fmt: skip


def straight_lines(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The straight lines a + b MB through what grows, and the largest distance from it as a share of the largest value."""
    sizes, found = [row["megabytes"] for row in rows], {}
    for name in ("cpu_seconds", "own_cpu_seconds", "peak_memory_mb", "work_files"):
        values = np.array([row[name] for row in rows], dtype=float)
        slope, start = np.polyfit(sizes, values, 1)
        off = np.abs(values - start - slope * np.array(sizes)).max() / values.max()
        found[name] = {"a": round(float(start), 2), "b": round(float(slope), 5), "off": round(float(off), 3)}
    return found


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
    parser.add_argument("--codes", type=Path, help="of the stages and of the whole; none: it learns them")
    parser.add_argument("--vocab", type=Path)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[20, 200], help="sizes of the whole runs")
    parser.add_argument("--unrepeated", action="store_true", help="larger inputs are new lines, with new words")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of xlm-prep for the whole")
    parser.add_argument("--moses", type=Path, help="folder of tokenizer.perl and its neighbours")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    texts: dict[str, bytes] = {}
    for entry in arguments.texts:
        language, _, name = entry.partition("=")
        texts[language] = texts.get(language, b"") + read(name)
    settings = [f"workers={arguments.workers}", *arguments.set]
    result: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "stages": {}, "whole": [], "moses": {}}

    if arguments.codes and arguments.vocab:
        codes, vocab = arguments.codes.absolute(), arguments.vocab.absolute()
        settings += [f"codes={codes}", f"vocab={vocab}"]
        print(f"{'one core':<14}" + "".join(f"{language + ' MB/s':>12}{'lines/s':>12}" for language in texts))
        for language, text in texts.items():
            result["stages"][language] = time_stages(language, text, codes, vocab)
        for stage in next(iter(result["stages"].values())):
            cells = [result["stages"][language][stage] for language in texts]
            print(f"{stage:<14}" + "".join(f"{cell['mb_per_s']:>12}{cell['lines_per_s']:>12,}" for cell in cells))
    if arguments.moses:
        result["moses"] = {language: run_moses(arguments.moses, language, text) for language, text in texts.items()}
    for language, cell in result["moses"].items():
        print(f"perl, {language}: {cell['mb_per_s']} MB/s by the clock, {cell['mb_per_cpu_s']} MB a CPU second")

    grow = unrepeated if arguments.unrepeated else repeated
    print("".join(f"{title:>14}" for title in COLUMNS.values()))
    for megabytes in arguments.megabytes:
        result["whole"].append(run_whole(texts, megabytes, settings, grow))
        print("".join(f"{result['whole'][-1][name]:>14}" for name in COLUMNS), flush=True)
    if len(result["whole"]) > 2:
        result["lines"] = straight_lines(result["whole"])
        for name, line in result["lines"].items():
            print(f"{COLUMNS[name]}: {line['a']:g} + {line['b']:g} MB, at most {line['off']:.1%} of the largest off")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
