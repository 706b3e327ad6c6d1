"""`xlm-eval` of a translation model: on the pairs of a corpus, or on raw parallel text."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import Any

from xlm_train.data.corpus import Corpus
from xlm_train.evaluation.bleu import (
    detokenised_baselines,
    detokenised_scores,
    sacrebleu_metrics,
    tokenised_bleu,
)
from xlm_train.evaluation.corpus import check_match, origin
from xlm_train.evaluation.parallel import ParallelText, translate_pairs
from xlm_train.evaluation.perplexity import Score
from xlm_train.model.translation import Beam
from xlm_train.model.translator import Translator
from xlm_train.runtime.console import Progress
from xlm_train.runtime.errors import CheckpointError, ConfigError, CorpusError, TextError
from xlm_train.runtime.files import atomic_write, beside
from xlm_train.text.reader import file_problems, read_lines

SENTENCES = {"sentences": 0}  # the unit that progress is shown in
BLOCK = 1000  # lines of raw text translated between two reports of progress


def evaluate(
    translator: Translator,
    text: Corpus | Mapping[str, str],
    split: str,
    out: Path,
    beam: int = 1,
    length_penalty: float = 1.0,
    batch_tokens: int = 4000,
    progress: bool = False,
) -> dict[str, Any]:
    """Translate in both directions and score.

    Args:
        translator: The opened checkpoint.
        text: A corpus made with the checkpoint's vocabulary, all of whose pairs in the split are scored; or language code
            -> raw text file, plain or compressed, two of them, line by line each other's translations.
        split: train, valid or test, of a corpus.
        out: The translations go beside it, to `<out without .json>.de-en.txt`: a line for each pair of the text, an empty
            one where the pair was left out.
        beam: Translations followed at once; 1: greedy.
        length_penalty: See `Beam`.
        batch_tokens: Of raw text, translated together at most.
        progress: Shows on the terminal what has been translated.

    Returns:
        What `xlm-eval` writes as JSON; docs/evaluation.md lists the fields.

    Raises:
        CorpusError: The corpus was made with another vocabulary, has a language that the checkpoint does not know, or no
            pairs in the split that can be scored.
        TextError: A file cannot be read, or one has more lines than the other.
        ConfigError: There are not two files of languages that the checkpoint knows, or sacrebleu is not installed.
        CheckpointError: The model's scores are not finite.
    """
    sacrebleu_metrics()
    search = Beam(beam, length_penalty) if beam > 1 else None
    start = time.perf_counter()
    if isinstance(text, Corpus):
        about = {"corpus": {"path": str(text.path), "lineage": text.lineage}, "split": split}
        scored = _of_corpus(translator, text, split, search, progress)
    else:
        about = {"text": dict(text)}
        scored = _of_files(translator, text, search, batch_tokens, progress)
    measured = {name: scores for name, (scores, _) in scored.items()}
    return {
        **origin(translator),
        **about,
        "evaluation": "translation",
        "search": {"beam": beam, **({"length_penalty": length_penalty} if beam > 1 else {})},
        "directions": measured,
        "files": {name: _write(out, name, lines) for name, (_, lines) in scored.items()},
        "sentences_per_second": sum(m["sentences"] for m in measured.values()) / (time.perf_counter() - start),
    }


Scored = dict[str, tuple[dict[str, Any], list[str]]]  # by direction: its figures, its translations


def _of_corpus(translator: Translator, corpus: Corpus, split: str, search: Beam | None, progress: bool) -> Scored:
    check_match(translator, corpus)
    names = corpus.pair_names(split) or [
        "-".join(list(corpus.languages)[:2])
    ]  # of which `pairs` says that it lacks them
    longest, scored = translator.model.shape.max_positions, {}
    for source, target in (ways for name in names for ways in permutations(corpus.pairs(split, name).languages)):
        text = ParallelText(corpus, split, (source, target), translator.text, longest)
        if not len(text.numbers):
            raise CorpusError(
                f"{corpus.path}: {split}.{text.name}: no pair has words on both sides that the model can read"
            )
        shown = Progress(text.name, text.n_pieces, SENTENCES, shown=progress)  # long sentences come last
        sums, made = translate_pairs(translator.model, text, search, device=translator.device, tell=shown.add)
        shown.end()
        score = Score.from_sums(sums)
        if not math.isfinite(score.total_loss):
            raise CheckpointError(
                f"{translator.path}: its model gives scores that are not finite: training had diverged"
            )
        numbers = text.numbers.tolist()
        words = [text.words(made[number]) for number in numbers]
        plain = {number: text.running_text(made[number], 1) for number in numbers}
        scores = {
            "sentences": len(numbers),
            "left_out": text.n_pairs - len(numbers),
            "tokenised_bleu": {"value": tokenised_bleu(words, text.references), **text.baselines},
            **_detokenised(list(plain.values()), text.plain_references, text.plain_sources),
            "perplexity": score.perplexity,
            "accuracy": score.accuracy,
            "loss": score.loss,
            "predicted_tokens": score.predicted,
        }
        scored[text.name] = scores, [plain.get(number, "") for number in range(text.n_pairs)]
    return scored


def _of_files(
    translator: Translator, files: Mapping[str, str], search: Beam | None, batch_tokens: int, progress: bool
) -> Scored:
    if len(files) != 2:
        raise ConfigError("a translation is scored against another text: give two, text.LANGUAGE=FILE text.OTHER=FILE")
    for code, file in files.items():
        translator.text.language(code, f"text.{code}={file}")
    if problems := [problem for file in files.values() for problem in file_problems(file)]:
        raise TextError(problems)
    lines = {code: [line for block in read_lines(file) for line in block] for code, file in files.items()}
    counts = [len(found) for found in lines.values()]
    if counts[0] != counts[1] or not counts[0]:
        told = " and ".join(f"{file} {count:,}" for file, count in zip(files.values(), counts, strict=True))
        raise TextError(f"{told} lines: each line must be the other file's line in translation")
    scored = {}
    for source, target in permutations(files):
        letters = sum(map(len, lines[source]))
        shown, made = Progress(f"{source}-{target}", letters, SENTENCES, shown=progress), []
        for first in range(0, counts[0], BLOCK):
            block = lines[source][first : first + BLOCK]
            made += translator.translate(block, source, target, search, batch_tokens)
            shown.add(sum(map(len, block)), len(block))
        shown.end()
        scores = {"sentences": len(made), **_detokenised(made, lines[target], lines[source])}
        scored[f"{source}-{target}"] = scores, made
    return scored


def _detokenised(translations: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> dict[str, Any]:
    """BLEU and chrF by sacrebleu, each with its interval and signature, beside what needs no model."""
    without = detokenised_baselines(sources, references)
    scores = detokenised_scores(translations, references)
    return {kind: {**asdict(getattr(scores, kind)), **without[kind]} for kind in ("bleu", "chrf")}


def _write(out: Path, name: str, lines: Sequence[str]) -> str:
    path = beside(out, f"{name}.txt")
    with atomic_write(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    return str(path)


def table(result: Mapping[str, Any]) -> str:
    """Write a result as a table for the terminal, with sacrebleu's signatures below."""
    heads = ["", "", "score", "95 % interval", "constant", "copied"]
    grid = [heads]
    notes: dict[str, str] = {}
    for name, measured in result["directions"].items():
        for kind, title in (("tokenised_bleu", "BLEU, tokenised"), ("bleu", "sacrebleu"), ("chrf", "chrF")):
            if score := measured.get(kind):
                interval = f"{score['mean']:.2f} +- {score['interval']:.2f}" if "mean" in score else ""
                values = (f"{score[key]:.2f}" for key in ("constant", "copied"))
                grid.append([name, title, f"{score['value']:.2f}", interval, *values])
                notes |= {title: score["signature"]} if "signature" in score else {}
        if "perplexity" in measured:
            grid.append([name, "perplexity", f"{measured['perplexity']:,.2f}", "", "", ""])
            grid.append([name, "accuracy %", f"{measured['accuracy']:.2f}", "", "", ""])
        grid.append([name, "sentences", f"{measured['sentences']:,}", "", "", ""])
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = [
        "  ".join(cell.ljust(n) if place < 2 else cell.rjust(n) for place, (cell, n) in enumerate(zip(row, widths, strict=True)))
        for row in grid
    ]  # fmt: skip
    return "\n".join([*map(str.rstrip, lines), *(f"{title}: {signature}" for title, signature in notes.items())])
