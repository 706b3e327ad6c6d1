"""Perplexity and accuracy of a checkpoint on a corpus, or sentence by sentence on raw text."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.runtime.console import Progress
from xlm_train.runtime.errors import CheckpointError, CorpusError, TextError
from xlm_train.runtime.files import as_number, atomic_write, beside

if TYPE_CHECKING:
    from torch import Tensor

    from xlm_train.data.corpus import Corpus, TokenStream
    from xlm_train.evaluation.perplexity import Score
    from xlm_train.model.pretrained import TrainedModel
    from xlm_train.model.translator import Translator


BASELINES = ("unigram_perplexity", "bigram_perplexity")
MEASURES = ("perplexity", "accuracy", "perplexity_per_word", "bits_per_character")


COUNTS = ("tokens", "unknown", "words", "characters", "sentences")
TOKENS = {"tokens": 0}  # the unit that progress is shown in


def evaluate(
    trained: TrainedModel,
    corpus: Corpus,
    split: str = "test",
    baselines: bool = False,
    batch_tokens: int = 8192,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a split of a corpus as the original does: one stream a language, in order, in windows of `trained.bptt`.

    A causal model predicts every token, a masked one the words that fixed masks hide, in pairs of sentences too.

    Args:
        trained: The opened checkpoint.
        corpus: Made with the checkpoint's vocabulary.
        split: train, valid or test.
        baselines: Also those of `xlm_train.evaluation.ngram`, from the corpus's train split.
        batch_tokens: Tokens that go through the model at once.
        progress: Shows on the terminal what has been scored.

    Returns:
        What `xlm-eval` writes as JSON; docs/evaluation.md lists the fields.

    Raises:
        CorpusError: The corpus was made with another vocabulary, has a language that the checkpoint does not know, or
            lacks the split.
        CheckpointError: The model's scores are not finite, or it is not scored by windows, or it is not causal and
            baselines are asked for.
    """
    from xlm_train.data.concatenation import JoinedPairs
    from xlm_train.evaluation.ngram import estimate, score
    from xlm_train.evaluation.pairs import batches_of, score_pairs
    from xlm_train.evaluation.perplexity import WINDOW_SCORES, Score

    if trained.evaluation not in WINDOW_SCORES:
        raise CheckpointError(
            f"{trained.path}: its objective's evaluation is {trained.evaluation}, known are {', '.join(WINDOW_SCORES)}"
        )
    if baselines:
        trained.require_causal("baselines=true (they predict each word from those before it)")
    check_match(trained, corpus)
    pairs = corpus.pair_names(split) if trained.evaluation == "masked" else []
    languages = [lang for lang in corpus.languages if corpus.has(split, lang)]
    languages = languages or ([] if pairs else list(corpus.languages))
    streams = {lang: corpus.stream(split, lang) for lang in languages}
    training = {lang: corpus.stream("train", lang) for lang in languages} if baselines else {}

    start, measured = time.perf_counter(), {}
    for lang, stream in streams.items():
        sums = _score_stream(trained, stream, trained.text.language(lang), batch_tokens, f"{split}.{lang}", progress)
        measured[lang] = measures(Score.from_sums(sums), {key: stream.statistics[key] for key in COUNTS}, trained)
    for name in pairs:
        text = JoinedPairs(corpus, split, name, trained.text.languages)
        if not sum(map(len, batches_of(text, trained.model.shape.max_positions))):
            raise CorpusError(f"{corpus.path}: {split}.{name}: every pair has a side beyond the model's positions")
        sides = corpus.manifest["pairs"][split][name]["sides"].values()
        counts = {key: None if (each := [side[key] for side in sides])[0] is None else sum(each) for key in COUNTS}
        measured[name] = measures(
            Score.from_sums(score_pairs(trained.model, text, device=trained.device)), counts, trained
        )
    seconds = time.perf_counter() - start
    for lang, stream in training.items():
        unigram, bigram = score(*estimate(stream, corpus.n_words), streams[lang], trained.bptt)
        measured[lang] |= {"unigram_perplexity": unigram, "bigram_perplexity": bigram}
    return {
        **origin(trained),
        "corpus": {"path": str(corpus.path), "lineage": corpus.lineage},
        "split": split,
        "evaluation": trained.evaluation,
        "bptt": trained.bptt,
        "languages": measured,
        "mean": mean({lang: measured[lang] for lang in languages} or measured),
        "tokens_per_second": sum(m["predicted_tokens"] for m in measured.values()) / seconds,
    }


def score_text(
    trained: TrainedModel,
    files: Mapping[str, str],
    out: Path,
    batch_tokens: int = 8192,
    progress: bool = False,
) -> dict[str, Any]:
    """Score raw text sentence by sentence (one a line), each by itself, from the eos before it to its own.

    Args:
        trained: The opened checkpoint.
        files: Language code -> text file, plain or compressed.
        out: The scores of each line go beside it, to `<out without .json>.LANG.jsonl`.
        batch_tokens: Tokens that go through the model at once.
        progress: Shows on the terminal what has been scored.

    Returns:
        The totals, as `xlm-eval` writes them as JSON.

    Raises:
        UserError: A language is not known to the checkpoint, a file cannot be read, or the model is not causal.
    """
    from xlm_train.text.reader import file_problems

    trained.require_causal("scoring raw text")
    if problems := [problem for file in files.values() for problem in file_problems(file)]:
        raise TextError(problems)
    numbers = {lang: trained.text.language(lang, f"text.{lang}={file}") for lang, file in files.items()}
    start, measured, written = time.perf_counter(), {}, {}
    for lang, file in files.items():
        written[lang] = beside(out, f"{lang}.jsonl")
        measured[lang] = _score_file(trained, lang, numbers[lang], file, written[lang], batch_tokens, progress)
    seconds = time.perf_counter() - start
    return {
        **origin(trained),
        "text": dict(files),
        "files": {lang: str(path) for lang, path in written.items()},
        "context": trained.context,
        "languages": measured,
        "mean": mean(measured),
        "tokens_per_second": sum(m["predicted_tokens"] for m in measured.values()) / seconds,
    }


def measures(score: Score, counts: Mapping[str, Any], trained: TrainedModel) -> dict[str, Any]:
    """The figures of one language.

    Per word and per character, the loss of all tokens, the ends of sentences included, is shared out over the words
    before BPE and the characters of the raw text: these compare between vocabularies, perplexity per token does not.

    Args:
        score: Of its text.
        counts: tokens (eos included), unknown, words, characters and sentences of its text. characters is None in a
            corpus imported from the original's binarised files, which do not tell them; then bits_per_character is
            None too. A masked model does not predict all words: it has neither figure. Words of hundreds of pieces, as
            of text without spaces, have perplexities beyond what a number holds: None.
        trained: Named where the score is not finite.

    Raises:
        CheckpointError: The score is not finite.
    """
    from xlm_train.evaluation.perplexity import exponential

    if not math.isfinite(score.total_loss):
        raise CheckpointError(f"{trained.path}: its model gives scores that are not finite: training had diverged")
    nats, characters = score.loss * counts["tokens"], counts["characters"]
    causal = trained.evaluation == "causal"
    return {
        "perplexity": score.perplexity,
        "accuracy": score.accuracy,
        "perplexity_per_word": as_number(exponential(nats / max(1, counts["words"]))) if causal else None,
        "bits_per_character": nats / math.log(2) / max(1, characters) if causal and characters is not None else None,
        "loss": score.loss,
        "predicted_tokens": score.predicted,
        **counts,
    }


def mean(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Arithmetic means over languages, None where a figure is not known.

    Source: the original stops and chooses checkpoints by them.
    """
    columns = {key: [m[key] for m in measured.values()] for key in MEASURES}
    return {key: None if None in values else math.fsum(values) / len(values) for key, values in columns.items()}


def check_match(trained: TrainedModel | Translator, corpus: Corpus) -> None:
    """Check that the corpus's ids mean the same words to the model, in languages that it knows.

    Words are compared, not counts: a model keeps the vocabulary it was trained with, other text gives other counts.

    Raises:
        CorpusError: With every difference.
    """
    from xlm_train.text.vocabulary import Vocabulary

    problems = [
        f"{corpus.path}: has the language {lang}; {trained.path} knows {', '.join(trained.text.languages)}"
        for lang in corpus.languages
        if lang not in trained.text.languages
    ]
    ours, theirs = trained.text.vocabulary.words, Vocabulary.from_file(corpus.vocab_path).words
    if ours != theirs:
        differing = (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        place = next(differing, min(len(ours), len(theirs)))
        problems.append(
            f"{corpus.path}: was made with another vocabulary ({len(theirs):,} words) than {trained.path}"
            f" ({len(ours):,}; they differ from id {place} on): prepare the text with the model's"
            " (xlm-prep codes=FILE vocab=FILE)"
        )
    if problems:
        raise CorpusError(problems)


def default_out(trained: TrainedModel | Translator, corpus: Corpus | None, split: str) -> Path:
    """Name the file beside the checkpoint that holds its scores on a split, or on raw text where there is no corpus.

    Args:
        trained: Whose scores they are.
        corpus: What is scored; the name of one that the checkpoint was not trained on is part of the file's.
        split: Of the corpus; does not count for raw text.
    """
    name = "text" if corpus is None else split
    if corpus is not None and corpus.lineage != trained.lineage.get("corpus"):
        name = f"{corpus.path.resolve().name}.{name}"  # beside the scores on its own corpus, not over them
    return trained.path.with_suffix(f".{name}.json")


def origin(trained: TrainedModel | Translator) -> dict[str, Any]:
    """Say what a result is of."""
    return {
        "checkpoint": {
            "path": str(trained.path),
            "sha256": trained.sha256,
            "step": trained.step,
            "trained_on": trained.lineage.get("corpus"),
        }
    }


def _score_stream(
    trained: TrainedModel,
    stream: TokenStream,
    language: int,
    batch_tokens: int,
    what: str,
    progress: bool,
) -> Tensor:
    """The sums of `perplexity.score_windows`, or of another kind of score, over a whole stream, with progress."""
    from xlm_train.evaluation.perplexity import WINDOW_SCORES

    bptt = trained.bptt
    batch = max(1, batch_tokens // bptt)
    shown = Progress(what, stream.n_windows(bptt) * (bptt - 1), TOKENS, shown=progress)
    sums = WINDOW_SCORES[trained.evaluation](
        trained.model, stream, bptt, language, None, batch, trained.device,
        tell=lambda windows: shown.add(windows * (bptt - 1), windows * (bptt - 1)),
    )  # fmt: skip
    shown.end()
    return sums


def _score_file(
    trained: TrainedModel,
    lang: str,
    language: int,
    file: str,
    out: Path,
    batch_tokens: int,
    progress: bool,
) -> dict[str, Any]:
    import numpy as np

    from xlm_train.evaluation.perplexity import Score, score_sentences
    from xlm_train.text.reader import read_lines
    from xlm_train.text.vocabulary import UNK

    shown = Progress(f"text.{lang}", None, TOKENS, shown=progress)
    total = Score(0.0, 0, 0)
    counts = dict.fromkeys(COUNTS, 0)
    with atomic_write(out) as target:
        for lines in read_lines(file):
            encoded = trained.text.encode(lines, lang)
            sentences = np.split(encoded.ids.astype(np.int64), encoded.starts[1:])
            scores = score_sentences(trained.model, sentences, language, trained.context, batch_tokens, trained.device)
            for number, (ids, score) in enumerate(zip(sentences, scores, strict=True), start=counts["sentences"] + 1):
                record = {
                    "line": number,
                    "score": -score.total_loss,
                    "tokens": score.predicted,
                    "unknown": int((ids == UNK).sum()),
                    "perplexity": score.perplexity,
                }
                target.write(json.dumps(record).encode() + b"\n")
                total += score
            counts["tokens"] += len(encoded.ids)
            counts["unknown"] += sum(encoded.unknown.values())
            counts["words"] += encoded.words
            counts["characters"] += sum(map(len, lines))
            counts["sentences"] += len(lines)
            shown.add(len(encoded.ids), len(encoded.ids))
    shown.end()
    return measures(total, counts, trained)


def table(result: Mapping[str, Any]) -> str:
    """Write a result as a table for the terminal."""
    heads = ["", "perplexity", "accuracy %", "per word", "bits/char", "predicted", "unknown %", "unigram", "bigram"]
    rows = [
        [
            lang,
            *_cells(m),
            f"{m['predicted_tokens']:,}",
            f"{100 * m['unknown'] / m['tokens']:.3f}",
            *(f"{m[key]:,.2f}" for key in BASELINES if key in m),
        ]
        for lang, m in result["languages"].items()
    ]
    grid = [heads[: len(rows[0])], *rows, ["mean", *_cells(result["mean"])]]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*grid, fillvalue="")]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) for row in grid)


def _cells(m: Mapping[str, Any]) -> list[str]:
    return [
        f"{m['perplexity']:,.2f}",
        f"{m['accuracy']:.2f}",
        "not known" if m["perplexity_per_word"] is None else f"{m['perplexity_per_word']:,.2f}",
        "not known" if m["bits_per_character"] is None else f"{m['bits_per_character']:.3f}",
    ]
