"""The text chain on one core: MB/s of every step, and of the original's perl scripts if they are there.

    python benchmarks/tokenise.py en=novels.en.gz de=novels.de.gz --json tokenise.json
    MOSES_SCRIPTS=mosesdecoder/scripts python benchmarks/tokenise.py ...        the perl scripts beside it

MB are of raw text, times the CPU seconds of the best of three runs (of one for perl, which is slow), which other
work on the machine disturbs little. With perl, the lines that come out differently are counted as well.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xlm_train.text.moses_normalise import normalise_punctuation, remove_non_printing, replace_unicode_punctuation
from xlm_train.text.moses_tokenise import tokenise
from xlm_train.text.numbered import NumberedText, groups
from xlm_train.text.tokenise import BLOCK_CHARACTERS, Tokeniser, join_lines, split_lines, unusual_characters


def cpu_seconds(work: Callable[[], Any], who: int = resource.RUSAGE_SELF) -> tuple[float, Any]:
    before = resource.getrusage(who)
    result = work()
    after = resource.getrusage(who)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, result


def time_steps(language: str, lines: list[str]) -> dict[str, float]:
    """CPU seconds of each step on all lines; every step gets what the one before it gave."""
    seconds = {}

    def measure(step: str, work: Callable[[], list[Any]]) -> list[Any]:
        runs = [cpu_seconds(work) for _ in range(3)]
        seconds[step] = min(run[0] for run in runs)
        return runs[0][1]

    blocks = measure("cut and join", lambda: [join_lines(group) for group in groups(lines, BLOCK_CHARACTERS)])
    unusual = measure("unusual characters", lambda: [unusual_characters(block) for block in blocks])
    steps: list[tuple[str, Callable[[str, frozenset[str]], str]]] = [
        ("replace", replace_unicode_punctuation),
        ("normalise", lambda block, characters: normalise_punctuation(block, language, characters)),
        ("nonprinting", remove_non_printing),
        ("tokens", lambda block, characters: tokenise(block, language, characters)),
    ]
    for name, step in steps:
        blocks = measure(
            name, lambda step=step, blocks=blocks: [step(*args) for args in zip(blocks, unusual, strict=True)]
        )
    measure("split", lambda: [split_lines(block) for block in blocks])
    measure("whole chain", lambda: Tokeniser(language).tokenise(lines))
    measure("and numbered", lambda: [NumberedText.of(Tokeniser(language).tokenise(lines))])
    measure("in parts", lambda: [Tokeniser(language).number(lines)])
    both = Tokeniser(language, lowercase=True, remove_accents=True)
    measure("with lower-casing", lambda: both.tokenise(lines))
    return seconds


def time_perl(scripts: Path, language: str, raw: bytes) -> tuple[dict[str, float], list[str]]:
    """CPU seconds of each perl script, and the lines that the last one prints."""
    seconds = {}
    folder = scripts / "tokenizer"
    for name, *options in [
        ("replace-unicode-punctuation.perl",),
        ("normalize-punctuation.perl", "-l", language),
        ("remove-non-printing-char.perl",),
        ("tokenizer.perl", "-q", "-no-escape", "-l", language),
    ]:
        command = ["perl", str(folder / name), *options]
        seconds[name], raw = cpu_seconds(
            lambda command=command, raw=raw: (
                subprocess.run(command, input=raw, stdout=subprocess.PIPE, check=True).stdout
            ),
            resource.RUSAGE_CHILDREN,
        )
    seconds["whole pipe"] = sum(seconds.values())
    return seconds, raw.decode().removesuffix("\n").split("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", metavar="LANGUAGE=FILE", help="raw text, one line a sentence; .gz or not")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()

    figures = []
    for entry in arguments.texts:
        language, _, name = entry.partition("=")
        raw = Path(name).read_bytes()
        raw = gzip.decompress(raw) if name.endswith(".gz") else raw
        lines = raw.decode().removesuffix("\n").split("\n")
        seconds = time_steps(language, lines)
        figure: dict[str, Any] = {"language": language, "file": Path(name).name, "bytes": len(raw), "lines": len(lines)}
        if scripts := os.environ.get("MOSES_SCRIPTS"):
            perl, printed = time_perl(Path(scripts), language, raw)
            seconds |= {f"perl: {step}": used for step, used in perl.items()}
            ours = Tokeniser(language).tokenise(lines)
            figure["differing_lines"] = sum(a != b for a, b in zip(ours, printed, strict=True))
        figure["mb_per_second"] = {step: round(len(raw) / 1e6 / max(used, 1e-4), 1) for step, used in seconds.items()}
        figures.append(figure)
        print(f"{language} {figure['file']}: {len(raw) / 1e6:.2f} MB, {len(lines):,} lines")
        for step, rate in figure["mb_per_second"].items():
            print(f"  {step:40} {rate:9.1f} MB/s")
        if "differing_lines" in figure:
            print(f"  lines that differ from perl's: {figure['differing_lines']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
