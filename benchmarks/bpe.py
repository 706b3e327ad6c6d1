"""Byte-pair encoding: speed of learning and applying beside the real fastBPE, and whether the codes are its own.

    python benchmarks/bpe.py en=novels.en.gz en=voice.en.gz de=novels.de.gz --codes 6000 30000 --json bpe.json

Times are CPU seconds (of all processes and threads), which other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import resource
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from data_prep import fastbpe, learn_bpe
from xlm_train.text.bpe import BpeEncoder
from xlm_train.text.bpe_codes import BpeCodes
from xlm_train.text.numbered import NumberedText
from xlm_train.text.tokenise import Tokeniser
from xlm_train.text.vocabulary import Vocabulary

BLOCK_LINES = 5_000


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_mb() -> float:
    """Peak memory of this process or of the largest of its finished children, whichever is more."""
    # getrusage would also count what the parent held when it started this process.
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return max(int(own.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def timed(work: Callable[[], object]) -> float:
    start = cpu_seconds()
    work()
    return cpu_seconds() - start


def tokenised(entry: str) -> list[str]:
    language, _, name = entry.partition("=")
    raw = Path(name).read_bytes()
    text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()
    return Tokeniser(language).tokenise(text.removesuffix("\n").split("\n"))


def blocks(lines: Sequence[str]) -> Iterator[Sequence[str]]:
    return (lines[start : start + BLOCK_LINES] for start in range(0, len(lines), BLOCK_LINES))


def pieces(encoder: BpeEncoder, lines: list[str]) -> list[str]:
    """Lines as their pieces, one space between two."""
    made = encoder.cut(NumberedText.of(lines))
    text = " ".join(made.pieces[number] for number in made.numbers.tolist())  # a newline stands at each line's end
    return [line.removeprefix(" ").removesuffix(" ") for line in text.split("\n")[:-1]]


def learn(text: Path, n_codes: int, engine: str) -> tuple[BpeCodes, float, float]:
    """Codes, CPU seconds and peak MB, from a file of tokenised text to codes. Runs in a process of its own."""
    start = cpu_seconds()
    if engine == "fastBPE alone":  # the tool on the file, as the original's scripts call it
        command = [str(fastbpe.binary()), "learnbpe", str(n_codes), str(text)]
        codes = BpeCodes.from_text(subprocess.run(command, capture_output=True, check=True).stdout.decode())
    else:
        lines = text.read_bytes().decode().removesuffix("\n").split("\n")
        codes = learn_bpe.learn(NumberedText.of(lines).counts(), n_codes, engine)
    return codes, cpu_seconds() - start, peak_mb()


def compare_learning(text: Path, n_codes: int) -> list[dict[str, Any]]:
    results = []
    golden: BpeCodes | None = None
    for engine in ("fastBPE alone", *learn_bpe.ENGINES):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            codes, seconds, megabytes = pool.submit(learn, text, n_codes, engine).result()
        golden = golden or codes
        results.append(
            {
                "codes": n_codes,
                "engine": engine,
                "cpu_seconds": round(seconds, 2),
                "peak_mb": round(megabytes),
                "as_fastbpe": codes.merges == golden.merges,
            }
        )
    return results


def compare_applying(folder: Path, text: Path, lines: list[str], codes: BpeCodes) -> list[dict[str, Any]]:
    codes.write(folder / "codes")
    command = [str(fastbpe.binary()), "applybpe", *map(str, (folder / "out", text, folder / "codes"))]
    seconds = {"fastBPE applybpe": timed(lambda: subprocess.run(command, capture_output=True, check=True))}
    encoder = BpeEncoder(codes)
    counts: Counter[str] = Counter()
    seconds["cut and count, new words"] = timed(lambda: counts.update(encoder.cut(NumberedText.of(lines)).counts()))
    vocabulary = Vocabulary.from_counts(counts)
    encoder = BpeEncoder(codes)
    for words in ("new", "known"):
        seconds[f"encode_ids, {words} words"] = timed(
            lambda: [encoder.encode_ids(block, vocabulary) for block in blocks(lines)]
        )
    seconds["number and count words"] = timed(lambda: NumberedText.of(lines).counts())
    golden = (folder / "out").read_bytes().decode().removesuffix("\n").split("\n")
    golden = [" ".join(piece for piece in line.split(" ") if piece) for line in golden]
    assert golden == pieces(encoder, lines), "not what fastBPE gives"
    megabytes = text.stat().st_size / 1e6
    return [
        {"what": what, "cpu_seconds": round(taken, 2), "mb_per_s": round(megabytes / taken, 1)}
        for what, taken in seconds.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([f"{row[head]}" for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", metavar="LANGUAGE=FILE", help="raw text, plain or .gz")
    parser.add_argument("--codes", nargs="+", type=int, default=[6_000, 30_000, 60_000])
    parser.add_argument("--json", type=Path, help="write the results here too")
    arguments = parser.parse_args()
    lines = [line for entry in arguments.texts for line in tokenised(entry)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text"
        text.write_bytes("".join(f"{line}\n" for line in lines).encode())
        counts = Counter(NumberedText.of(lines).counts())
        corpus = {
            "megabytes": round(text.stat().st_size / 1e6, 1),
            "lines": len(lines),
            "words": counts.total(),
            "distinct_words": len(counts),
        }
        print(corpus, flush=True)
        learning = []
        for n_codes in arguments.codes:
            learning += compare_learning(text, n_codes)
        print(table(learning), flush=True)
        codes = learn_bpe.learn(counts, arguments.codes[-1])
        applying = compare_applying(folder, text, lines, codes)
        print(table(applying))
    if arguments.json:
        arguments.json.write_text(json.dumps({"corpus": corpus, "learning": learning, "applying": applying}, indent=2))


if __name__ == "__main__":
    main()
